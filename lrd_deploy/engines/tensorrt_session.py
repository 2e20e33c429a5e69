"""Running a TensorRT plan on a GPU, over TensorRT's runtime API and polygraphy's CUDA wrappers.

Both are parameters, so that everything but the GPU's own work is tested without one. **No GPU has run this yet**: it
follows NVIDIA's documentation, and a stand-in with the same protocol.

Source: NVIDIA, TensorRT 11 documentation, Python API, sections Runtime, ICudaEngine and IExecutionContext.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.errors import BackendError, InputError


def open_session(trt: Any, cuda: Any, logger: Any, plan: bytes, *, host_code: bool) -> TensorRTSession:
    """Loads a plan whose manifest was checked.

    Args:
        trt: the package `tensorrt` or `tensorrt_rtx`.
        cuda: `polygraphy.cuda`.
        logger: of that package.
        plan: the engine.
        host_code: the plan brings its own runtime, as a version-compatible one does, and that may run.

    Raises:
        BackendError: TensorRT does not take the plan.
    """
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _failed("loading a plan", "deserialize_cuda_engine gave no engine")
    context = engine.create_execution_context()
    if context is None:
        raise _failed("loading a plan", "create_execution_context gave no context; the GPU may be out of memory")
    stream = cuda.Stream()  # TensorRT would synchronise more on the default one
    session = TensorRTSession(trt, cuda, runtime, engine, context, stream)
    weakref.finalize(session, stream.free)
    return session


@dataclass(frozen=True, eq=False)
class TensorRTSession:
    """One engine with one execution context on one stream; the context needs the engine, and that the runtime."""

    trt: Any
    cuda: Any
    runtime: Any
    engine: Any
    context: Any
    stream: Any

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Copies the inputs to the GPU, runs, and returns the outputs by name.

        Raises:
            InputError: the inputs are not those of the engine.
            BackendError: TensorRT or CUDA refuses a step.
        """
        with ExitStack() as memory:
            outputs = self._bind(inputs, memory)
            self._enqueue()
            found = {name: np.empty(buffer.shape, self._dtype(name)) for name, buffer in outputs.items()}
            for name, buffer in outputs.items():
                self._cuda("copying outputs", lambda buffer=buffer, name=name: buffer.copy_to(found[name], self.stream))
            self._cuda("waiting for the GPU", self.stream.synchronize)
        return found

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call that enqueues and waits, inputs and outputs staying on the GPU: copies are not in the time."""
        memory = ExitStack()
        try:
            self._bind(inputs, memory)
        except BaseException:
            memory.close()
            raise

        def call() -> None:
            self._enqueue()
            self.stream.synchronize()

        weakref.finalize(call, memory.close)
        self._cuda("running an engine once", call)  # the first call after a change of shape is slow
        return call

    def _bind(self, inputs: Arrays, memory: ExitStack) -> dict[str, Any]:
        """Gives every tensor its shape and its memory; returns the buffers of the outputs."""
        arrays = self._checked(inputs)
        for name, array in arrays.items():
            self._must(self.context.set_input_shape(name, array.shape), f"set_input_shape of '{name}' to {array.shape}")
        if unknown := self.context.infer_shapes():
            raise _failed("running an engine", f"infer_shapes wants more of {', '.join(unknown)}")
        for name, array in arrays.items():
            buffer = self._buffer(name, array.shape, memory)
            self._cuda("copying inputs", lambda buffer=buffer, array=array: buffer.copy_from(array, self.stream))
        outputs = {name: self._buffer(name, self._output_shape(name), memory) for name in self._names("OUTPUT")}
        self._cuda("copying inputs", self.stream.synchronize)
        return outputs

    def _enqueue(self) -> None:
        self._must(self.context.execute_async_v3(self.stream.ptr), "execute_async_v3")

    def _buffer(self, name: str, shape: Sequence[int], memory: ExitStack) -> Any:
        from polygraphy.datatype import DataType

        dtype = DataType.from_dtype(self._dtype(name))
        buffer = self._cuda("allocating memory", lambda: self.cuda.DeviceArray(shape=tuple(shape), dtype=dtype))
        memory.callback(buffer.free)
        self._must(self.context.set_tensor_address(name, buffer.ptr), f"set_tensor_address of '{name}'")
        return buffer

    def _output_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.context.get_tensor_shape(name))
        if -1 in shape:
            raise _failed("running an engine", f"the shape of '{name}' depends on the data")
        return shape

    def _checked(self, inputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        wanted = {name: self._dtype(name) for name in self._names("INPUT")}
        if wanted != {name: array.dtype for name, array in inputs.items()}:
            raise InputError(
                "running an engine",
                found=", ".join(f"{name} {array.dtype}" for name, array in inputs.items()) or "no inputs",
                accepted=", ".join(f"{name} {dtype}" for name, dtype in wanted.items()),
                remedy="pass the inputs by these names, in these types",
            )
        return {name: np.ascontiguousarray(inputs[name]) for name in wanted}

    def _names(self, mode: str) -> list[str]:
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        return [name for name in names if self.engine.get_tensor_mode(name) == getattr(self.trt.TensorIOMode, mode)]

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self.engine.get_tensor_dtype(name)
        try:
            return np.dtype(self.trt.nptype(kind))
        except TypeError as exc:
            raise _failed("running an engine", f"'{name}' is {kind}, a type that NumPy lacks") from exc

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise _failed("running an engine", f"{what} failed")

    def _cuda(self, doing: str, call: Callable[[], Any]) -> Any:
        from polygraphy.exception import PolygraphyException

        try:
            return call()
        except PolygraphyException as exc:
            raise _failed(doing, " ".join(str(exc).split())[:400]) from exc


def _failed(doing: str, found: str) -> BackendError:
    return BackendError(
        f"{doing} with TensorRT",
        found=found,
        accepted="shapes within the engine's profile, and free GPU memory",
        remedy="compare the inputs with the profile in the engine's manifest, and look at nvidia-smi",
    )
