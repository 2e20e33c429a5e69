"""Which graph inputs are ids, and how many there are of each."""

from __future__ import annotations

from onnx import ModelProto

# What hands ids on as they are, in another shape or type.
_HANDS_ON = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def table_rows(model: ModelProto) -> dict[str, int]:
    """Returns how many rows the smallest table has that an input's values are looked up in, by input.

    Limits: lookups by Gather along the first axis of an initializer; ids that are computed with first are not followed.
    """
    tables = {tensor.name: tensor.dims for tensor in model.graph.initializer if tensor.dims}
    source = {value.name: value.name for value in model.graph.input}
    rows: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _HANDS_ON and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in tables and node.input[1] in source:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            if axis == 0:
                name, size = source[node.input[1]], tables[node.input[0]][0]
                rows[name] = min(size, rows.get(name, size))
    return rows
