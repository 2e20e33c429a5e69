"""Making a candidate the baseline: the only way that a baseline changes."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, log1p
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.model_files import model_sha256, onnx_files
from lrd_deploy.export.onnx_file import default_opset, graph_inputs, read_model
from lrd_deploy.gate.baseline import (
    INPUTS,
    MODEL,
    OUTPUTS,
    Baseline,
    is_bundle,
    read_baseline,
    timestamp,
    write_baseline,
)
from lrd_deploy.gate.outputs import answers
from lrd_deploy.gate.reference import Samples, random_samples, read_samples
from lrd_deploy.records import BaselineManifest, CaseVerdict, GateResult, Promotion
from lrd_deploy.version import __version__


def promote(
    folder: Path, candidate: Path, *, inputs: Path | None, result: GateResult | None, reason: str | None
) -> Baseline:
    """Stores a candidate as the new baseline and returns the bundle; the same model again changes nothing.

    Args:
        folder: the bundle; made where there is none.
        candidate: an ONNX file.
        inputs: an .npz file of samples; None: the present baseline's, or random ones for a first baseline.
        result: the gate's result for this candidate against the present baseline.
        reason: why it is promoted although the gate did not pass it; kept in the history.

    Raises:
        UsageError: the result is of other models; or there is a baseline, and neither a PASS nor a reason.
        InputError: the candidate gives NaN or infinity on the samples.
        StorageError: the folder cannot be written.
    """
    _refuse_foreign(folder)
    present = read_baseline(folder) if is_bundle(folder) else None
    digest = model_sha256(candidate)
    samples = _samples(candidate, inputs, present)
    if present and digest == present.manifest.promotion.model_sha256 and _same(samples, present):
        return present
    if result is not None or (present and not reason):
        _require_result(result, digest, present, pass_needed=not reason)
    promotion = _promotion(digest, result, reason)
    model = read_model(candidate)
    manifest = BaselineManifest(
        version=__version__,
        folder="0" * 16,  # named after its content when it is written
        files={},
        model=candidate.name,
        opset=default_opset(model),
        inputs=graph_inputs(model),
        samples=len(samples),
        labelled=samples.labels is not None,
        promotion=promotion,
        environment=environment(),
    )
    with TemporaryDirectory(prefix="lrd-deploy-") as staged:
        _stage(Path(staged), candidate, samples)
        return write_baseline(folder, Path(staged), manifest, (*(present.history if present else ()), promotion))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not is_bundle(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UsageError(
            f"promoting into '{folder}'",
            found="a file" if folder.is_file() else "a folder with other things in it",
            accepted="a path where nothing is yet, an empty folder, or a baseline",
            remedy="name a folder of its own for the baseline",
        )


def _require_result(result: GateResult | None, digest: str, present: Baseline | None, *, pass_needed: bool) -> None:
    """Refuses a result of other models, and without a reason anything but a PASS."""
    before = present.manifest.promotion.model_sha256 if present else None
    seen = result and result.evidence.baseline and result.evidence.baseline.sha256
    if result is None:
        found = "no result of a gate"
    elif result.evidence.candidate.sha256 != digest:
        found = f"a gate's result for another candidate, {result.evidence.candidate.name}"
    elif seen != before:
        found = "a gate's result against another baseline"
    elif present and pass_needed and result.verdict != "PASS":
        found = f"the verdict {result.verdict}: {'; '.join(result.reasons)}"
    else:
        return
    raise UsageError(
        f"promoting a candidate over the baseline '{present.folder}'" if present else "promoting a first baseline",
        found=found,
        accepted="a PASS of this candidate against this baseline",
        remedy="run the gate again and pass its gate.json with --gate"
        + (", or say why with --accept-regression REASON" if pass_needed else ", or leave --gate out"),
    )


def _samples(candidate: Path, inputs: Path | None, present: Baseline | None) -> Samples:
    if inputs:
        return read_samples(inputs, candidate)
    return read_samples(present.inputs, candidate) if present else random_samples(candidate)


def _same(samples: Samples, present: Baseline) -> bool:
    stored = read_samples(present.inputs, present.model)
    if samples.inputs.keys() != stored.inputs.keys() or (samples.labels is None) != (stored.labels is None):
        return False
    pairs = [(samples.inputs[name], array) for name, array in stored.inputs.items()]
    if stored.labels is not None:
        pairs.append((samples.labels, stored.labels))
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def _promotion(digest: str, result: GateResult | None, reason: str | None) -> Promotion:
    timed = _timed_against_baseline(result) if result else []
    return Promotion(
        promoted_at=timestamp(),
        model_sha256=digest,
        verdict=result.verdict if result else None,
        change=_mean([case.change for case in timed]),
        low=_mean([case.low for case in timed]),
        high=_mean([case.high for case in timed]),
        base_ms=timed[0].base_ms if timed else None,
        candidate_ms=timed[0].candidate_ms if timed else None,
        fingerprint=environment().fingerprint,
        reason=reason,
    )


def _timed_against_baseline(result: GateResult) -> list[CaseVerdict]:
    ours = {case.name for case in result.evidence.cases if case.against == "baseline"}
    return [case for case in result.cases if case.name in ours and case.change is not None]


def _mean(shares: Sequence[float]) -> float | None:
    """The geometric mean of ratios given as shares: the largest of several would drift upwards by noise alone."""
    return expm1(sum(map(log1p, shares)) / len(shares)) if shares else None


def _stage(folder: Path, candidate: Path, samples: Samples) -> None:
    """Copies the model with its external data, and writes samples and outputs."""
    onnx_files(candidate, read_model(candidate)).copy_to(folder / MODEL.parent)
    labels = {} if samples.labels is None else {"labels": samples.labels}
    save_arrays(folder / INPUTS, {**samples.inputs, **labels})
    outputs = answers(folder / MODEL, samples)
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise InputError(
            f"promoting '{candidate}'",
            found="NaN or infinity in its outputs on the samples",
            accepted="finite outputs, for later candidates to be compared with",
            remedy="look for overflow in the model, or pass other samples with --inputs",
        )
    save_arrays(folder / OUTPUTS, {f"output_{number}": output for number, output in enumerate(outputs)})
