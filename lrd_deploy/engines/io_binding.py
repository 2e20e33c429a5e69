"""A call of an ONNX Runtime session on inputs and outputs that stay where the model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.records import Execution

_NO_GRAPH = ("gpu_graph_id", "-1")  # a run that is neither captured nor replayed


@dataclass(frozen=True)
class BoundCall:
    """Runs a session on fixed buffers and returns when the device is done.

    Attributes:
        session: an `onnxruntime.InferenceSession`.
        binding: its `IOBinding`.
        inputs: `OrtValue`s on the device.
        outputs: likewise.
    """

    session: Any
    binding: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    @classmethod
    def of(cls, session: Any, feeds: Arrays, execution: Execution) -> BoundCall:
        """Copies the inputs to the device, runs once to learn the outputs' shapes, and keeps both where they are.

        With a CUDA graph the second run, here, captures it, so that timed calls replay it.
        """
        place = ("cpu", 0) if execution.gpu is None else ("cuda", execution.gpu)
        inputs = tuple(_on_device(array, place) for array in feeds.values())
        binding = session.io_binding()
        for name, value in zip(feeds, inputs, strict=True):
            binding.bind_ortvalue_input(name, value)
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name, *place)
        session.run_with_iobinding(binding, outside_graphs(execution))
        outputs = tuple(binding.get_outputs())
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        call = cls(session, binding, inputs, outputs)
        call()
        return call

    def __call__(self) -> None:
        """Runs once."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def copies(self, feeds: Arrays) -> tuple[Callable[[], object], Callable[[], object]]:
        """Returns a call that copies the inputs to the device, and one that copies the outputs back."""
        arrays = [np.ascontiguousarray(array) for array in feeds.values()]

        def to_device() -> None:
            for value, array in zip(self.inputs, arrays, strict=True):
                value.update_inplace(array)

        def to_host() -> None:
            for value in self.outputs:
                value.numpy()

        return to_device, to_host


def outside_graphs(execution: Execution) -> Any:
    """Returns the options of a run that a CUDA graph has nothing to do with; None where there is no graph."""
    if not execution.cuda_graph:
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(*_NO_GRAPH)
    return options


def _on_device(array: np.ndarray, place: tuple[str, int]) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *place)
