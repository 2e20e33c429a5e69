"""Average pools whose window is larger than the map, said as what they are: global ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from lrd_deploy.export.onnx_layers import Shape, inferred_shapes


def name_global_pools_(model: ModelProto) -> None:
    """Turns every AveragePool whose window reaches beyond the whole map, in place, into a GlobalAveragePool.

    PyTorch averages over what of the map is in the window, so that both compute the same. TensorRT takes no window that
    is larger than the map; EfficientNet of transformers has one, as wide as the model has channels.
    """
    pools = [node for node in model.graph.node if node.op_type == "AveragePool" and _attributes(node).get("ceil_mode")]
    shapes = inferred_shapes(model) if pools else {}
    for node in pools:
        if _exceeds(_attributes(node), shapes.get(node.input[0], ())[2:]):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def _exceeds(attributes: Mapping[str, Any], size: Shape) -> bool:
    """True where a single window covers a map of this size and more."""
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides", [1] * len(kernel))
    plain = not any(attributes.get("pads", ())) and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    known = len(size) == len(kernel) and all(isinstance(dim, int) for dim in size)
    single = known and all(0 <= k - dim < stride for k, dim, stride in zip(kernel, size, strides, strict=True))
    return plain and single and tuple(kernel) != size


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
