"""Is the candidate still in the form that made the baseline fast? Ranks on the quantum, weights in few bits."""

from __future__ import annotations

from pathlib import Path

from lrd_deploy.export.onnx_file import read_model, weight_shares
from lrd_deploy.records import ParityEvidence
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.pad_rank import PadRank


def compare_form(baseline: Path, candidate: Path, quantum: int | None) -> ParityEvidence:
    """Returns the factors that padding to the quantum would change, and both models' shares of weights by dtype.

    Args:
        baseline: an ONNX file.
        candidate: an ONNX file.
        quantum: what ranks must be multiples of; None: any rank will do.
    """
    model = read_model(candidate)
    off = apply_rules(model, [PadRank(quantum)])[1] if quantum else ()
    return ParityEvidence(
        quantum=quantum,
        off_quantum=tuple(place.node for place in off),
        baseline_precision=weight_shares(read_model(baseline)),
        candidate_precision=weight_shares(model),
    )
