"""Making a candidate the baseline: the only way that a baseline changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.onnx_file import default_opset, graph_inputs, model_files, model_sha256, read_model
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
from lrd_deploy.records import BaselineManifest, GateResult, Promotion
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
        UsageError: there is a baseline, and neither a PASS of just these two models nor a reason.
        InputError: the candidate gives NaN or infinity on the samples.
        StorageError: the folder cannot be written.
    """
    present = read_baseline(folder) if is_bundle(folder) else None
    digest = model_sha256(candidate)
    if present and digest == present.manifest.promotion.model_sha256 and inputs is None:
        return present
    if present and not reason:
        _require_pass(result, digest, present)
    samples = _samples(candidate, inputs, present)
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


def _require_pass(result: GateResult | None, digest: str, present: Baseline) -> None:
    before = present.manifest.promotion.model_sha256
    if result is None:
        found = "no result of a gate"
    elif result.evidence.candidate.sha256 != digest:
        found = f"a gate's result for another candidate, {result.evidence.candidate.name}"
    elif result.evidence.baseline is None or result.evidence.baseline.sha256 != before:
        found = "a gate's result against another baseline"
    elif result.verdict != "PASS":
        found = f"the verdict {result.verdict}: {'; '.join(result.reasons)}"
    else:
        return
    raise UsageError(
        f"promoting a candidate over the baseline '{present.folder}'",
        found=found,
        accepted="a PASS of this candidate against this baseline",
        remedy="run the gate and pass its gate.json with --gate, or say why with --accept-regression REASON",
    )


def _samples(candidate: Path, inputs: Path | None, present: Baseline | None) -> Samples:
    if inputs:
        return read_samples(inputs, candidate)
    return read_samples(present.inputs, candidate) if present else random_samples(candidate)


def _promotion(digest: str, result: GateResult | None, reason: str | None) -> Promotion:
    case = next((case for case in result.cases if case.change == result.change), None) if result else None
    return Promotion(
        promoted_at=timestamp(),
        model_sha256=digest,
        verdict=result.verdict if result else None,
        change=case and case.change,
        low=case and case.low,
        high=case and case.high,
        base_ms=case and case.base_ms,
        candidate_ms=case and case.candidate_ms,
        fingerprint=environment().fingerprint,
        reason=reason,
    )


def _stage(folder: Path, candidate: Path, samples: Samples) -> None:
    """Copies the model with its external data, and writes samples and outputs."""
    source, *external = model_files(candidate)
    (folder / MODEL).parent.mkdir()
    shutil.copyfile(source, folder / MODEL)
    for file in external:
        target = folder / MODEL.parent / file.relative_to(candidate.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
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
