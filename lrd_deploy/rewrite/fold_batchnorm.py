"""`fold_batchnorm`: a BatchNormalization goes into the layer before it, in float64, before any precision is lowered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.stored_weight import stored_weight
from lrd_deploy.rewrite.weighted_node import (
    Array,
    bias,
    has_plain_bias,
    is_weighted,
    out_channels,
    set_bias,
    set_weight,
    weight,
)

_EPSILON = 1e-5  # the operator's default


@dataclass(frozen=True)
class NormedNode:
    """A BatchNormalization and what computes its input, None where that is the graph's caller."""

    norm: gs.Node
    layer: gs.Node | None

    @property
    def name(self) -> str:
        """The normalisation's name, in reports."""
        return self.norm.name


@dataclass(frozen=True)
class FoldBatchNorm:
    """Scales a layer's output channels and shifts its bias as the BatchNormalization after it would.

    pattern:  x ─ Conv or Gemm ─ BatchNormalization ─ y        constant statistics
    rewrite:  x ─ Conv or Gemm ─ y                             w·γ/√(σ²+ε),  (b − μ)·γ/√(σ²+ε) + β

    Exact up to rounding. A convolution may have groups: every output channel is scaled by itself.
    """

    name: str = "fold_batchnorm"

    def match(self, graph: gs.Graph) -> list[NormedNode]:
        """Every BatchNormalization of the graph itself."""
        return [
            NormedNode(node, node.inputs[0].inputs[0] if node.inputs[0].inputs else None)
            for node in graph.nodes
            if node.op == "BatchNormalization" and node.domain in (None, "", "ai.onnx")
        ]

    def check(self, graph: gs.Graph, normed: NormedNode) -> str | None:
        """Refuses statistics of the batch at hand, layers that cannot take a bias, and values that others read."""
        norm, layer = normed.norm, normed.layer
        if norm.attrs.get("training_mode", 0) or len(norm.outputs) > 1:
            return "it takes its statistics from the batch"
        if layer is None or layer.op not in {"Conv", "Gemm"} or not is_weighted(layer):
            return "what it normalises is no Conv or Gemm with a constant weight"
        between = norm.inputs[0]
        if len(between.outputs) > 1 or any(between is output for output in graph.outputs):
            return f"others read what '{layer.name}' gives out too"
        constants = [stored_weight(tensor) for tensor in norm.inputs[1:]]
        if any(found is None or found.obstacle or found.shape != (out_channels(layer),) for found in constants):
            return "its scale, shift and statistics are no constants with one value per channel"
        if not has_plain_bias(layer) or any(layer.attrs.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return f"the bias of '{layer.name}' is no constant with one value per channel"
        return None

    def rewrite(self, normed: NormedNode) -> Change:
        """Gives the layer the folded weight and bias, and the normalisation's output."""
        norm, layer = normed.norm, normed.layer
        scale, shift, mean, variance = (stored_weight(tensor).values().astype(np.float64) for tensor in norm.inputs[1:])
        factor = scale / np.sqrt(variance + norm.attrs.get("epsilon", _EPSILON))  # (out,)
        before, own = weight(layer), bias(layer)
        folded = (np.zeros_like(mean) if own is None else own.astype(np.float64)) - mean
        set_weight(layer, _scaled(before, factor), f"{layer.name}.weight_folded")
        set_bias(layer, (folded * factor + shift).astype(before.dtype), f"{layer.name}.bias_folded")
        output = norm.outputs[0]
        norm.inputs.clear()
        norm.outputs.clear()
        layer.outputs = [output]
        return Change(f"folded into '{layer.name}'")


def _scaled(array: Array, factor: Array) -> Array:
    """Scales the rows of (out, in) or the leading axis of (out, in, kh, kw)."""
    return (array * factor.reshape(-1, *[1] * (array.ndim - 1))).astype(array.dtype)
