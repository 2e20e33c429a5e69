"""Do two ONNX files compute the same?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log10
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from lrd_deploy.engines.backend import Arrays, SessionSettings
from lrd_deploy.engines.catalogue import runtime
from lrd_deploy.engines.difference import answers, compare_outputs
from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs, read_model, weight_precision
from lrd_deploy.files import sha256_of
from lrd_deploy.records import TensorInfo, Verification, VerifyPolicy


def verify(
    reference: Path,
    candidate: Path,
    batches: Sequence[Arrays],
    policy: VerifyPolicy | None = None,
    inputs: Literal["given", "random"] = "given",
) -> Verification:
    """Runs both in ONNX Runtime on the same inputs, compares their outputs and judges the difference.

    Args:
        reference: an ONNX file.
        candidate: an ONNX file with the same inputs and outputs.
        batches: inputs by name, one per batch.
        policy: what must hold; by default that rounding in the files' precisions explains the difference.
        inputs: where the batches come from, for the record.

    Raises:
        InputError: a file is invalid, or the outputs cannot be compared.
        BackendError: ONNX Runtime refuses a model or its inputs.
    """
    policy = policy or VerifyPolicy()
    models = read_model(reference), read_model(candidate)
    check_same_inputs(*models)
    backend = runtime("onnxruntime")
    expected = answers(backend.load(reference, SessionSettings()).run, batches)
    rounding = explained_difference(*models)
    found = compare_outputs(expected, backend.load(candidate, SessionSettings()).run, batches, rounding)
    unjudged = Verification(
        **found.model_dump(),
        inputs=inputs,
        sqnr_db=-20 * log10(found.relative_l2) if found.relative_l2 else None,
        rounding=rounding,
        reference_sha256=sha256_of(reference),
        candidate_sha256=sha256_of(candidate),
        precisions=tuple(map(weight_precision, models)),
        policy=policy,
        reasons=(),
    )
    return judged(unjudged, policy)


def judged(verification: Verification, policy: VerifyPolicy) -> Verification:
    """Returns a verification as another policy judges it; nothing is run."""
    tolerance = verification.rounding if policy.tolerance is None else policy.tolerance
    reasons = tuple(_objections(verification, policy, tolerance))
    changes = {"policy": policy, "tolerance": tolerance, "reasons": reasons, "passed": not reasons}
    return verification.model_copy(update=changes)


def _objections(found: Verification, policy: VerifyPolicy, tolerance: float) -> Iterator[str]:
    if found.relative_l2 > tolerance:
        yield f"a relative L2 difference of {found.relative_l2:.3g} is above {tolerance:.3g}"
    if policy.max_abs is not None and found.max_abs > policy.max_abs:
        yield f"a largest difference of {found.max_abs:.3g} is above {policy.max_abs:.3g}"
    if policy.min_cosine is not None and found.cosine < policy.min_cosine:
        yield f"a cosine of {found.cosine:.6g} is below {policy.min_cosine:.6g}"
    if policy.min_sqnr_db is not None and found.sqnr_db is not None and found.sqnr_db < policy.min_sqnr_db:
        yield f"a signal of {found.sqnr_db:.1f} dB over the difference is below {policy.min_sqnr_db:.1f} dB"
    if policy.min_top1_agreement is not None and found.top1_agreement < policy.min_top1_agreement:
        yield f"a top-1 agreement of {found.top1_agreement:.2%} is below {policy.min_top1_agreement:.2%}"


def check_same_inputs(reference: ModelProto, candidate: ModelProto) -> None:
    """Raises `InputError` when two models cannot be fed the same arrays."""
    ours, theirs = (graph_inputs(model) for model in (reference, candidate))
    if [_kind(tensor) for tensor in ours] != [_kind(tensor) for tensor in theirs]:
        raise InputError(
            "comparing two models",
            found=f"inputs {_listed(ours)} and {_listed(theirs)}",
            accepted="the same names, types and shapes",
            remedy="export both models alike, with the same batch dimension",
        )


def _kind(tensor: TensorInfo) -> tuple[str, str, tuple[int | None, ...]]:
    return tensor.name, tensor.dtype, tuple(None if isinstance(dim, str) else dim for dim in tensor.shape)


def _listed(inputs: Sequence[TensorInfo]) -> str:
    return (
        ", ".join(f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]" for tensor in inputs) or "none"
    )
