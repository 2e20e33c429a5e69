"""A stand-in for TensorRT's Python package and polygraphy's CUDA wrappers: the same protocol, no GPU.

Every call is logged in order. The names in `fails` fail the way TensorRT does: False, None or -1, never an exception.
An engine of this stand-in doubles its input.
"""

# ruff: noqa: ARG002, ARG005
from enum import Enum
from types import SimpleNamespace

import numpy as np
from polygraphy.exception import PolygraphyException


class StandIn:
    """What a test hands out as `trt` and as `cuda`."""

    BuilderFlag = Enum("BuilderFlag", ["TF32", "VERSION_COMPATIBLE", "REFIT", "ERROR_ON_TIMING_CACHE_MISS"])
    ComputeCapability = Enum("ComputeCapability", ["SM86", "SM120"])
    ProfilingVerbosity = Enum("ProfilingVerbosity", ["DETAILED"])
    LayerInformationFormat = Enum("LayerInformationFormat", ["JSON"])
    TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])

    def __init__(self, *fails, shape=(-1, 3), dtype="float32"):
        self.fails, self.shape, self.dtype = set(fails), shape, dtype
        self.log, self.memory, self.freed = [], {}, []

    def did(self, name, good=True, bad=False):
        self.log.append(name)
        return bad if name in self.fails else good

    @staticmethod
    def nptype(kind):
        if kind == "bfloat16":
            raise TypeError(kind)
        return np.dtype(kind)

    # Building

    def builder(self):
        config = SimpleNamespace(
            on=set(), off=set(), targets=[], cache=None,
            set_compute_capability=lambda target, index: self.did("set_compute_capability")
            and (config.targets.append((index, target.name)) or True),
            add_optimization_profile=lambda profile: self.did("add_optimization_profile", 0, -1),
            create_timing_cache=lambda content: self.did("create_timing_cache", Timings(self, content), None),
            get_timing_cache=lambda: config.cache,
        )  # fmt: skip
        config.set_flag = lambda flag: config.on.add(flag.name)
        config.clear_flag = lambda flag: config.off.add(flag.name)
        config.set_timing_cache = lambda cache, ignore_mismatch: self._set_timing_cache(config, cache, ignore_mismatch)
        profile = Profile(self)
        return SimpleNamespace(
            create_builder_config=lambda: config, create_optimization_profile=lambda: profile, profile=profile
        )

    def _set_timing_cache(self, config, cache, ignore_mismatch):
        assert ignore_mismatch is False
        config.cache = cache
        return self.did("set_timing_cache")

    @staticmethod
    def network(*inputs):
        return SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__)

    @staticmethod
    def tensor(name, shape, *, is_shape_tensor=False):
        return SimpleNamespace(name=name, shape=shape, is_shape_tensor=is_shape_tensor)

    # Running

    def Runtime(self, logger):  # noqa: N802, TensorRT's names from here on
        runtime = SimpleNamespace(engine_host_code_allowed=False)
        runtime.deserialize_cuda_engine = lambda plan: self.did("deserialize_cuda_engine", self.engine(), None)
        self.runtime = runtime
        return runtime

    def engine(self):
        modes = {"x": self.TensorIOMode.INPUT, "y": self.TensorIOMode.OUTPUT}
        inspector = SimpleNamespace(get_engine_information=lambda kind: self.did("inspect", '{"Layers": []}', ""))
        return SimpleNamespace(
            num_io_tensors=2, get_tensor_name=list(modes).__getitem__, get_tensor_mode=modes.__getitem__,
            get_tensor_dtype=lambda name: self.dtype, create_engine_inspector=lambda: inspector,
            create_execution_context=lambda: self.did("create_execution_context", Context(self), None),
        )  # fmt: skip

    # CUDA

    def Stream(self):  # noqa: N802
        return SimpleNamespace(
            ptr=77, synchronize=lambda: self.did("synchronize"), free=lambda: self.freed.append("stream")
        )

    def DeviceArray(self, shape, dtype):  # noqa: N802
        if not self.did("malloc"):
            raise PolygraphyException("CUDA Error: 2")
        return Buffer(self, shape)


class Profile:
    def __init__(self, trt):
        self.trt, self.shapes = trt, {}

    def set_shape(self, name, low, opt, high):
        self.shapes[name] = (low, opt, high)

    def __bool__(self):
        return self.trt.did("profile")


class Timings:
    """Timings as lines of text; joining them is a union."""

    def __init__(self, trt, content):
        self.trt, self.lines = trt, set(content.split())

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.lines |= other.lines
        return self.trt.did("combine")

    def serialize(self):
        return b"\n".join(sorted(self.lines))


class Buffer:
    def __init__(self, trt, shape):
        self.trt, self.shape, self.ptr = trt, shape, len(trt.memory) + 1
        trt.memory[self.ptr] = np.zeros(shape, np.float32)

    def copy_from(self, array, stream):
        assert stream.ptr == 77
        assert array.flags.c_contiguous
        self.trt.log.append("copy_from")
        self.trt.memory[self.ptr][...] = array

    def copy_to(self, array, stream):
        assert stream.ptr == 77
        self.trt.log.append("copy_to")
        array[...] = self.trt.memory[self.ptr]

    def free(self):
        self.trt.freed.append(self.ptr)


class Context:
    def __init__(self, trt):
        self.trt, self.shape, self.addresses = trt, None, {}

    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)
        return self.trt.did("set_input_shape")

    def infer_shapes(self):
        return self.trt.did("infer_shapes", [], ["x"])

    def get_tensor_shape(self, name):
        return self.trt.did("get_tensor_shape", self.shape, (-1, 3))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.trt.did("set_tensor_address")

    def execute_async_v3(self, stream):
        assert stream == 77
        if not self.trt.did("execute_async_v3"):
            return False
        self.trt.memory[self.addresses["y"]][...] = 2 * self.trt.memory[self.addresses["x"]]
        return True
