"""What a converted model says of itself in its metadata, and how two such models differ."""

from __future__ import annotations

from onnx import ModelProto
from pydantic import ValidationError

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import weight_precision
from lrd_deploy.precision.values import is_standard
from lrd_deploy.records import ConvertedShare, PrecisionMark, PrecisionPolicy

KEY = "lrd_deploy.precision"
_SLACK = 0.01  # of the multiply–accumulates
_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"}


def set_mark_(model: ModelProto, policy: PrecisionPolicy, share: ConvertedShare) -> None:
    """Writes the policy and the converted share into the model's metadata."""
    text = PrecisionMark(policy=policy, share=share).model_dump_json()
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, text


def mark_of(model: ModelProto) -> PrecisionMark | None:
    """Returns what a model says of its conversion; None where it says nothing, or nothing that can be read."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    try:
        return PrecisionMark.model_validate_json(text) if text is not None else None
    except ValidationError:
        return None


def check_unconverted(model: ModelProto, policy: PrecisionPolicy) -> PrecisionMark | None:
    """Returns the mark of a model that was converted by this very policy; None where it is yet to be.

    Raises:
        InputError: it was converted in another way, or is quantised already.
    """
    mark = mark_of(model)
    if mark is not None and mark.policy == policy:
        return mark
    found = f"a model in {policy_in_words(mark.policy)}" if mark is not None else None
    if found is None and any(is_standard(node) and node.op_type in _QUANTISED for node in model.graph.node):
        found = "a graph that is quantised already"
    if found is not None:
        raise InputError(
            f"converting '{model.graph.name}' to {policy_in_words(policy)}",
            found=found,
            accepted="the float32 model",
            remedy="start from the file that this one was made of",
        )
    return None


def precision_differences(models: tuple[ModelProto, ModelProto], arms: tuple[str, str]) -> tuple[str, ...]:
    """Returns in a sentence how the precision of two models differs, so that a ratio of them is read as what it is.

    Args:
        models: as they are compared.
        arms: what they are called.
    """
    marks = tuple(map(mark_of, models))
    said = tuple(
        f"converted to {policy_in_words(mark.policy)}" if mark else f"in {weight_precision(model)}"
        for mark, model in zip(marks, models, strict=True)
    )
    if said[0] != said[1]:
        return (f"the {arms[0]} is {said[0]}, the {arms[1]} {said[1]}: the ratio shows that difference too",)
    shares = tuple(mark.share.macs if mark else 0.0 for mark in marks)
    if abs(shares[0] - shares[1]) <= _SLACK:
        return ()
    return (
        f"{shares[0]:.0%} of the {arms[0]}'s multiply–accumulates are {said[0]}, "
        f"{shares[1]:.0%} of the {arms[1]}'s: the ratio shows that difference too",
    )


def policy_in_words(policy: PrecisionPolicy) -> str:
    """Returns a policy as reports say it."""
    parts = [policy.precision.upper()]
    if policy.activation_type is not None:
        parts.append(f"{policy.activation_type} activations")
    if policy.method is not None:
        parts.append(f"ranges by {policy.method}")
    if policy.keep:
        parts.append(f"without {', '.join(policy.keep)}")
    return ", ".join(parts)
