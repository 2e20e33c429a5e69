import re

import pytest

from lrd_deploy.errors import InputError, Problems
from lrd_deploy.serving.tensors import served_graph
from tests.serving.graphs import graph


def described(text, **options):
    served = served_graph(graph(text), **options)
    tensors = (*served.inputs, *served.outputs)
    return served.batched, [(tensor.info.name, tensor.data_type, tensor.dims, tensor.lone_batch) for tensor in tensors]


def test_a_free_first_dimension_everywhere_is_the_batch_and_left_out():
    assert described("g (float[batch,3,h,w] x) => (float[batch,10] y) { y = Foo (x) }") == (
        True,
        [("x", "TYPE_FP32", (3, -1, -1), False), ("y", "TYPE_FP32", (10,), False)],
    )


def test_a_fixed_batch_keeps_its_dimension():
    assert described("g (float[2,3] x, int64[batch,1] i) => (float[2,3] y) { y = Foo (x, i) }") == (
        False,
        [("x", "TYPE_FP32", (2, 3), False), ("i", "TYPE_INT64", (-1, 1), False), ("y", "TYPE_FP32", (2, 3), False)],
    )


def test_a_tensor_that_is_only_a_batch_gets_a_dimension_of_one():
    assert described("g (float[n] x) => (bool[n] y) { y = Foo (x) }") == (
        True,
        [("x", "TYPE_FP32", (1,), True), ("y", "TYPE_BOOL", (1,), True)],
    )


def test_without_batching_a_free_first_dimension_is_any_size():
    found = described("g (float[n,2] x) => (string[n] y) { y = Foo (x) }", may_batch=False)
    assert found == (False, [("x", "TYPE_FP32", (-1, 2), False), ("y", "TYPE_STRING", (-1,), False)])


def test_a_weight_that_is_listed_as_an_input_is_none():
    text = "g (float[n,2] x, float[2,2] w) => (float[n,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul (x, w) }"
    assert [tensor.info.name for tensor in served_graph(graph(text)).inputs] == ["x"]


TYPES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float", "double"]


@pytest.mark.parametrize("dtype", [*TYPES, "string"])
def test_every_type_that_onnx_runtime_serves_is_named(dtype):
    (_, data_type, _, _), _ = described(f"g ({dtype}[n,1] x) => ({dtype}[n,1] y) {{ y = Identity (x) }}")[1]
    assert data_type.startswith("TYPE_")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[n,1] x, float s) => (float[n,1] y) { y = Mul (x, s) }", "input 's' to the server: a scalar"),
        ("g (float[n,1] x) => (float y) { y = ReduceSum (x) }", "output 'y' to the server: a scalar"),
        ("g (bfloat16[n,1] x) => (float[n,1] y) { y = Foo (x) }", "values of type bfloat16; .*float64, text; .*Cast"),
        ("g (complex64[n,1] x) => (float[n,1] y) { y = Foo (x) }", "values of type complex64"),
        ("g (float[n,1] x) => (seq(float[n,1]) y) { y = Foo (x) }", "output 'y' to the server: a sequence; a tensor"),
        ("g () => (float[1] y) <float[1] w = {1}> { y = Relu (w) }", "no input; at least one input"),
    ],
)
def test_what_no_request_can_carry_is_refused_with_the_reason(text, reason):
    with pytest.raises(InputError, match=reason):
        served_graph(graph(text))


def test_a_shape_that_is_not_stated_is_refused():
    model = graph("g (float[n,1] x) => (float[n,1] y) { y = Relu (x) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match=r"whose shape is not stated; .*infer_shapes"):
        served_graph(model)


def test_all_refusals_come_together():
    with pytest.raises(Problems, match=re.compile("input 'x'.*output 'y'", re.DOTALL)):
        served_graph(graph("g (complex64[n,1] x) => (float y) { y = Foo (x) }"))


def test_tensorrt_takes_other_types():
    text = "g ({0}[n,1] x) => ({0}[n,1] y) {{ y = Identity (x) }}"
    assert described(text.format("bfloat16"), backend="tensorrt")[1][0][1] == "TYPE_BF16"
    with pytest.raises(Problems, match="values of type float64; a type the tensorrt backend takes"):
        served_graph(graph(text.format("double")), "tensorrt")
