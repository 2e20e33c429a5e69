"""A graph whose open dimensions have the sizes of the inputs that it is going to get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import ModelProto
from onnx.onnx_ml_pb2 import TensorShapeProto


def with_sizes(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Returns a copy in which the open dimensions of inputs are as in `shapes`, but for the batch, which stays open.

    The batch is the first dimension, and every other of its name. A dimension with a name gets its size wherever the
    graph names it.

    Args:
        model: left as it was.
        shapes: of inputs, by name; others stay open.
    """
    sized = ModelProto()
    sized.CopyFrom(model)
    inputs = {value.name: value.type.tensor_type.shape.dim for value in sized.graph.input}
    batches = {dims[0].dim_param for dims in inputs.values() if dims} - {""}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(inputs.get(name, ())[1:], shape[1:], strict=False):
            if not dim.HasField("dim_value") and dim.dim_param not in batches:
                if dim.dim_param:
                    sizes.setdefault(dim.dim_param, size)
                dim.dim_value = size
    for dim in _dimensions(sized):
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
    return sized


def _dimensions(model: ModelProto) -> Iterator[TensorShapeProto.Dimension]:
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        yield from value.type.tensor_type.shape.dim
