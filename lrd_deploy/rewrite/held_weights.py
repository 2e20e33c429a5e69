"""Weights kept out of a graph while it is rewritten, so that what copies the graph copies no weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from lrd_deploy.export.skeleton import is_weight, shell
from lrd_deploy.export.tensor_data import SMALL_BYTES, all_tensors, external_entries, is_beside, tensor_values

_HELD = "held"  # the key of a stand-in's external data: which of the held weights it stands in for


class HeldWeights:
    """The weights of a graph; in the graph itself stand-ins of their type and shape take their place."""

    def __init__(self) -> None:
        self._held: list[TensorProto | NDArray[np.generic] | None] = []

    def taken_out(self, model: ModelProto) -> ModelProto:
        """Returns a copy of a model with stand-ins for its weights, and without its functions, which no rule sees."""
        light = shell(model)
        del light.functions[:]
        for tensor in model.graph.initializer:
            if is_weight(tensor) or is_beside(tensor):
                light.graph.initializer.append(self._stand_in(tensor, tensor.name, tensor.data_type, tensor.dims))
            else:
                light.graph.initializer.append(tensor)
        return light

    def lend_(self, graph: gs.Graph) -> None:
        """Lets the constants of a graph that was imported from that copy read their values, each time anew."""
        for constant in _constants(graph):
            stored = getattr(constant, "_values", None)
            if isinstance(stored, LazyValues) and isinstance(stored.tensor, TensorProto):
                constant.values = _Lent(stored.tensor, self._source(stored.tensor))

    def take_new_(self, graph: gs.Graph) -> None:
        """Puts stand-ins in the place of weights that rules have made."""
        for constant in _constants(graph):
            array = getattr(constant, "_values", None)
            if isinstance(array, np.ndarray) and array.nbytes >= SMALL_BYTES:
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                constant.values = LazyValues(self._stand_in(array, constant.name, kind, array.shape))

    def put_back_(self, model: ModelProto) -> None:
        """Replaces the stand-ins in an exported model by what they stand in for; new weights are let go of."""
        for tensor in all_tensors(model):
            number = external_entries(tensor).get(_HELD)
            if number is None:
                continue
            name, held = tensor.name, self._held[int(number)]
            if isinstance(held, TensorProto):
                tensor.CopyFrom(held)
                tensor.name = name
            else:
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.raw_data = held.tobytes()
                self._held[int(number)] = None

    def _stand_in(
        self, held: TensorProto | NDArray[np.generic], name: str, data_type: int, dims: tuple[int, ...]
    ) -> TensorProto:
        stand_in = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
        stand_in.external_data.add(key=_HELD, value=str(len(self._held)))
        self._held.append(held)
        return stand_in

    def _source(self, tensor: TensorProto) -> TensorProto:
        number = external_entries(tensor).get(_HELD)
        return tensor if number is None else self._held[int(number)]


class _Lent(LazyValues):
    """Values that are read where they are stored, and not kept."""

    def __init__(self, tensor: TensorProto, source: TensorProto) -> None:
        super().__init__(tensor)
        self.source = source

    def load(self) -> NDArray[np.generic]:
        """Returns them."""
        return tensor_values(self.source)


def constant_values(constant: gs.Constant) -> NDArray[np.generic]:
    """Returns the values of a constant without making it keep them, as its own property `values` would."""
    stored = constant._values
    return stored.load() if isinstance(stored, LazyValues) else np.asarray(stored)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every constant that a graph and its bodies read or have in attributes, each once."""
    seen: set[int] = set()
    for each in (graph, *graph.subgraphs(recursive=True)):
        found = [tensor for node in each.nodes for tensor in (*node.inputs, *node.attrs.values())]
        for tensor in (*found, *each.outputs):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
