"""FP16 and BF16: every node that can computes in half precision, and casts lead in and out.

A value keeps its name where it is float32, and has a second name where it is half; a Cast makes the one from the other
where somebody needs both. So graph inputs and outputs keep their types, an output may be read inside as well, and a
value between two nodes that stay in float32 is never rounded on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.precision.conversion import Conversion, with_nodes
from lrd_deploy.precision.values import FreshNames, GraphValues, has_body, is_standard

HalfPrecision = Literal["fp16", "bf16"]
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPE_WORDS = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
# What onnx defines and TensorRT-RTX 1.7 does not compile; exact in float32, since a BF16 value is one of float32 too.
_NOT_COMPILED = {"bf16": {"IsNaN"}, "fp16": set()}


class _Plan(NamedTuple):
    """Which inputs and outputs of a node become half."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def rounded(precision: HalfPrecision, array: NDArray[np.floating]) -> NDArray[np.generic]:
    """Returns an array rounded to half precision, in a type that numpy handles."""
    return array.astype(helper.tensor_dtype_to_np_dtype(_TYPES[precision]))


def to_half(model: ModelProto, precision: HalfPrecision, keep: Mapping[int, str]) -> Conversion:
    """Returns the graph in half precision, its inputs and outputs in the types they had.

    Args:
        model: of an opset whose operators take the type; left as it was.
        precision: the type.
        keep: reasons to leave a node in float32, by its position.

    Raises:
        InputError: the graph's types contradict each other.
    """
    values = GraphValues.of(model)
    plans: dict[int, _Plan] = {}
    kept: dict[int, str] = {}
    for position, node in enumerate(model.graph.node):
        found = _plan(node, values, precision)
        if found is None:
            continue
        reason = keep.get(position) or (found if isinstance(found, str) else None)
        if reason:
            kept[position] = reason
        else:
            plans[position] = found
    return Conversion(_rewired(model, values, plans, precision), kept, tuple(plans))


def _plan(node: NodeProto, values: GraphValues, precision: HalfPrecision) -> _Plan | str | None:
    """What of a node becomes half; why nothing may; or None where it handles no float32 value."""
    touches = any(map(values.is_float, (*node.input, *node.output)))
    is_constant = all(name in values.constants for name in node.output)  # rounded where it is read
    if not touches or is_constant or (is_standard(node) and node.op_type == "Cast"):
        return None
    if has_body(node):
        return "it has a body of its own"
    if is_standard(node) and node.op_type in _NOT_COMPILED[precision]:
        return f"TensorRT-RTX 1.7 does not compile {node.op_type} in {precision.upper()}"
    if not values.not_tensors.isdisjoint((*node.input, *node.output)):
        return "it handles sequences or optional values"
    if not is_standard(node) or not onnx.defs.has(node.op_type, values.opset, ""):
        return f"'{node.op_type}' of '{node.domain or 'ai.onnx'}' is no operator whose types are known"
    return _plan_by_schema(node, onnx.defs.get_schema(node.op_type, values.opset, ""), values, precision)


def _plan_by_schema(
    node: NodeProto, schema: onnx.defs.OpSchema, values: GraphValues, precision: HalfPrecision
) -> _Plan | str | None:
    """What the operator's definition lets become half: all float32 inputs of a free type, and outputs of that type."""
    takes = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
    inputs = {  # without those that are float32 whatever the others are, such as the scales of Resize
        place: word
        for place, (name, word) in enumerate(_typed(node.input, schema.inputs))
        if values.is_float(name) and word in takes
    }
    if not inputs:
        return None
    words = set(inputs.values())
    if any(_TYPE_WORDS[precision] not in takes[word] for word in words):
        return f"{node.op_type} of opset {schema.since_version} takes no {precision.upper()}"
    outputs = list(enumerate(_typed(node.output, schema.outputs)))
    if any(values.is_float(name) and word in takes.keys() - words for _, (name, word) in outputs):
        return "the type of what it gives out does not follow from what it reads"
    return _Plan(tuple(inputs), tuple(place for place, (name, word) in outputs if name and word in words))


def _typed(names: Sequence[str], formal: Sequence[onnx.defs.OpSchema.FormalParameter]) -> Iterator[tuple[str, str]]:
    """Names with the word of their type; the last formal parameter may take many."""
    for place, name in enumerate(names):
        yield name, formal[min(place, len(formal) - 1)].type_str


@dataclass
class _Wiring:
    """The new nodes as they come about, and the values that exist as half by now."""

    values: GraphValues
    precision: HalfPrecision
    names: FreshNames
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    half: dict[str, str] = field(default_factory=dict)

    def as_half(self, name: str) -> str:
        """The half of a value: there already, a rounded constant, or cast here."""
        if name not in self.half:
            self.half[name] = self.names.unused(f"{name}.{self.precision}")
            if name in self.values.constants:
                array = tensor_values(self.values.constants[name])
                self.initializers.append(numpy_helper.from_array(rounded(self.precision, array), self.half[name]))
            else:
                self.cast(name, self.half[name], _TYPES[self.precision])
        return self.half[name]

    def cast(self, source: str, target: str, element_type: int) -> None:
        """Adds a Cast."""
        name = self.names.unused(f"{target}.cast")
        self.nodes.append(helper.make_node("Cast", [source], [target], name=name, to=element_type))


def _rewired(
    model: ModelProto, values: GraphValues, plans: Mapping[int, _Plan], precision: HalfPrecision
) -> ModelProto:
    nodes = model.graph.node
    wiring = _Wiring(values, precision, FreshNames.of(model))
    wanted = values.captured | {output.name for output in model.graph.output}
    wanted |= {
        name
        for position, node in enumerate(nodes)
        for place, name in enumerate(node.input)
        if position not in plans or place not in plans[position].inputs
    }
    for position, node in enumerate(nodes):
        plan = plans.get(position, _Plan((), ()))
        copy = NodeProto()
        copy.CopyFrom(node)
        for place in plan.inputs:
            copy.input[place] = wiring.as_half(node.input[place])
        for place in plan.outputs:
            name = wiring.names.unused(f"{node.output[place]}.{precision}")
            copy.output[place] = wiring.half[node.output[place]] = name
        wiring.nodes.append(copy)
        for place in plan.outputs:
            if node.output[place] in wanted:
                wiring.cast(copy.output[place], node.output[place], TensorProto.FLOAT)
    return with_nodes(model, wiring.nodes, wiring.initializers)
