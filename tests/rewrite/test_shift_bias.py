import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.rewrite.shift_bias import biased_value, shift_bias_
from tests.rewrite.graph_text import model
from tests.tolerances import sum_tolerance

SHIFT = np.array([0.5, -1.0, 2.0, 0.25])
W = ("w", (4, 4))
NO_ADD = "it is a MatMul, and what reads it is no Add of a constant"
GEMM, GEMM_BIAS = '["fc"] y = Gemm <transB=1> (x, w)', '["fc"] y = Gemm <transB=1> (x, w, b)'
MATMUL = '["fc"] p = MatMul (x, w)'
GRAPHS = {
    "Gemm": model(GEMM, weights=(W,)),
    "Gemm with a bias": model(GEMM_BIAS, weights=(W, ("b", (4,)))),
    "MatMul before an Add": model(MATMUL, '["add"] y = Add (p, b)', weights=(W, ("b", (4,)))),
    "MatMul behind in an Add": model(MATMUL, '["add"] y = Add (b, p)', weights=(W, ("b", (4,)))),
}


def outputs(graph, name="y"):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return dict(
        zip([value.name for value in graph.graph.output], ReferenceEvaluator(graph).run(None, {"x": x}), strict=True)
    )[name]


def shifted(graph, name="fc"):
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    reason = shift_bias_(copy, name, SHIFT)
    onnx.checker.check_model(copy, full_check=True)
    return copy, reason


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_the_output_moves_by_the_shift_and_no_constant_is_left_over(graph):
    after, reason = shifted(graph)
    assert reason is None
    expected = outputs(graph) + SHIFT
    np.testing.assert_allclose(
        outputs(after), expected, rtol=0, atol=sum_tolerance(np.float32, 5, float(expected.max()))
    )
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read


def test_a_convolution_gets_a_bias():
    graph = model(
        '["c"] y = Conv (x, w)', inputs="float[b,4,3,3] x", outputs="float[b,4,3,3] y", weights=(("w", (4, 4, 1, 1)),)
    )
    after, reason = shifted(graph, "c")
    x = np.ones((1, 4, 3, 3), np.float32)
    one, other = (ReferenceEvaluator(each).run(None, {"x": x})[0] for each in (graph, after))
    assert reason is None
    np.testing.assert_allclose(other, one + SHIFT[:, None, None], rtol=0, atol=sum_tolerance(np.float32, 5, 20.0))


def test_twice_moves_twice():
    once, _ = shifted(GRAPHS["Gemm"])
    twice, _ = shifted(once)
    expected = outputs(GRAPHS["Gemm"]) + 2 * SHIFT
    np.testing.assert_allclose(
        outputs(twice), expected, rtol=0, atol=sum_tolerance(np.float32, 6, float(expected.max()))
    )


def test_a_bias_that_others_read_stays_for_them():
    graph = model(GEMM_BIAS, '["o"] z = Add (x, b)', outputs="float[b,4] y, float[b,4] z", weights=(W, ("b", (4,))))
    after, reason = shifted(graph)
    assert reason is None
    np.testing.assert_array_equal(outputs(after, "z"), outputs(graph, "z"))


def test_a_bias_that_a_body_reads_stays_for_it():
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[b,4] x, bool f) => (float[b,4] y, float[b,4] z)
        <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float[4] b = {1,2,3,4}> {
        ["fc"] y = Gemm <transB=1> (x, w, b)
        z = If (f) <then_branch = t () => (float[b,4] z1) { z1 = Add (x, b) },
                    else_branch = e () => (float[b,4] z2) { z2 = Relu (x) }> }"""
    after, reason = shifted(onnx.parser.parse_model(text))
    assert reason is None
    assert "b" in {tensor.name for tensor in after.graph.initializer}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_is_that_of_the_weight(dtype):
    graph = onnx.ModelProto()
    graph.CopyFrom(GRAPHS["Gemm"])
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    after, _ = shifted(graph)
    assert len({tensor.data_type for tensor in after.graph.initializer}) == 1


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (model(MATMUL.replace(" p ", " y "), weights=(W,)), NO_ADD),
        (
            model(MATMUL, "y = Add (p, x)", weights=(W,)),
            NO_ADD,
        ),
        (
            model(MATMUL, "y = Add (p, b)", "z = Relu (p)", outputs="float[b,4] y, float[b,4] z",
                  weights=(W, ("b", (4,)))),
            NO_ADD,
        ),
        (
            model(MATMUL, "y = Add (p, b)", outputs="float[b,4] y, float[b,4] p", weights=(W, ("b", (4,)))),
            NO_ADD,
        ),
        (model(GEMM_BIAS, weights=(W, ("b", (1,)))), "its bias does not have one value per channel"),
        (
            model("b = Relu (r)", GEMM_BIAS, inputs="float[b,4] x, float[4] r", weights=(W,)),
            "its bias is no initializer",
        ),
    ],
    ids=["no Add", "an Add of no constant", "another reader", "an output", "a bias that broadcasts", "a computed bias"],
)  # fmt: skip
def test_a_bias_that_cannot_be_shifted_is_left_alone_with_the_reason(graph, reason):
    after, found = shifted(graph)
    assert found == reason
    assert after == graph


def test_the_value_with_the_bias_is_that_of_the_add():
    graph = GRAPHS["MatMul before an Add"].graph
    assert biased_value(graph, graph.node[0]) == "y"
    alone = model(MATMUL, "y = Relu (p)", weights=(W,)).graph
    assert biased_value(alone, alone.node[0]) == "p"
