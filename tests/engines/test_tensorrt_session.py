import gc

import numpy as np
import pytest

from lrd_deploy.engines.tensorrt_session import open_session
from lrd_deploy.errors import BackendError, InputError
from tests.engines.stand_in import StandIn

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
BINDING = [
    "set_input_shape", "infer_shapes", "malloc", "set_tensor_address", "copy_from", "get_tensor_shape", "malloc",
    "set_tensor_address", "synchronize",
]  # fmt: skip


def session(trt, *, host_code=False):
    return open_session(trt, trt, None, b"plan", host_code=host_code)


def test_a_run_makes_the_calls_in_the_documented_order_and_frees_its_memory():
    trt = StandIn()
    found = session(trt).run(X)
    np.testing.assert_array_equal(found["y"], 2 * X["x"])
    assert trt.log == [
        "deserialize_cuda_engine", "create_execution_context", *BINDING, "execute_async_v3", "copy_to", "synchronize",
    ]  # fmt: skip
    assert sorted(trt.freed, key=str) == [1, 2, "stream"]


def test_a_bound_call_only_enqueues_and_waits():
    trt = StandIn()
    loaded = session(trt)
    call = loaded.bind(X)
    assert trt.log[2:] == [*BINDING, "execute_async_v3", "synchronize"]  # once, for the first call is slow
    trt.log.clear()
    call()
    assert trt.log == ["execute_async_v3", "synchronize"]
    assert trt.freed == []
    del call, loaded
    gc.collect()
    assert sorted(trt.freed, key=str) == [1, 2, "stream"]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("deserialize_cuda_engine", "deserialize_cuda_engine gave no engine"),
        ("create_execution_context", "create_execution_context gave no context"),
        ("set_input_shape", r"set_input_shape of 'x' to \(2, 3\) failed"),
        ("infer_shapes", "infer_shapes wants more of x"),
        ("malloc", "allocating memory with TensorRT: CUDA Error: 2"),
        ("set_tensor_address", "set_tensor_address of 'x' failed"),
        ("get_tensor_shape", "the shape of 'y' depends on the data"),
        ("execute_async_v3", "execute_async_v3 failed"),
    ],
)
@pytest.mark.parametrize("way", ["run", "bind"])
def test_every_step_that_fails_is_told_and_its_memory_freed(step, reason, way):
    trt = StandIn(step)
    with pytest.raises(BackendError, match=reason):
        getattr(session(trt), way)(X)
    gc.collect()
    assert {each for each in trt.freed if each != "stream"} == set(trt.memory)


def test_code_in_a_plan_may_run_only_where_that_was_said():
    for host_code in (False, True):
        trt = StandIn()
        session(trt, host_code=host_code)
        assert trt.runtime.engine_host_code_allowed is host_code


@pytest.mark.parametrize("inputs", [{}, {"z": X["x"]}, X | {"z": X["x"]}, {"x": X["x"].astype(np.float64)}])
def test_inputs_that_are_not_the_engines_are_refused(inputs):
    with pytest.raises(InputError, match="; x float32; pass the inputs by these names"):
        session(StandIn()).run(inputs)


def test_an_input_of_another_layout_is_made_contiguous():
    trt = StandIn()
    column_major = {"x": np.asfortranarray(X["x"])}
    np.testing.assert_array_equal(session(trt).run(column_major)["y"], 2 * X["x"])


def test_a_type_that_numpy_lacks_is_refused():
    with pytest.raises(BackendError, match="'x' is bfloat16, a type that NumPy lacks"):
        session(StandIn(dtype="bfloat16")).run(X)
