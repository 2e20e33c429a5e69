import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors, relative_error, svd_factors, tucker2_factors
from lrd_deploy.records import Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.truncate_rank import TruncateRank
from tests.rewrite.graph_text import DOWN, LOWERED, PAIR, UP, model
from tests.tolerances import sum_tolerance

forms = pytest.mark.parametrize(("signature", "choice", "lower"), LOWERED.values(), ids=LOWERED)


def refusals(graph, quantum=2):
    _, applied, skipped = apply_rules(graph, [TruncateRank(quantum)])
    assert applied == ()
    return [entry.reason for entry in skipped]


def weights(graph):
    """Weights in data-flow order, (out, in) or (out, in, kh, kw); these graphs store matrices as (in, out)."""
    arrays = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.graph.initializer}
    found = [arrays[node.input[1]] for node in graph.graph.node if node.op_type != "Add"]
    return [array.T if array.ndim == 2 else array for array in found]


def product(graph):
    found = weights(graph)
    if len(found) == 2:
        return SVDFactors(*found).product()
    first, core, last = found
    return Tucker2Factors(first[:, :, 0, 0], core, last[:, :, 0, 0]).product()


def outputs(graph, signature):
    return ReferenceEvaluator(graph).run(None, {"x": layer_input(signature, 2)})[0]


@forms
def test_the_product_is_as_near_as_that_rank_allows_and_the_report_says_how_near(signature, choice, lower):
    before = layer_graph(signature, choice)
    after, (applied,), _ = apply_rules(before, [TruncateRank(4)])
    factorise = tucker2_factors if isinstance(lower, Tucker2) else svd_factors
    best = relative_error(product(before), factorise(product(before), lower))
    found = float(np.linalg.norm(product(before) - product(after)) / np.linalg.norm(product(before)))
    rounding = sum_tolerance(np.float32, 6 * 9)
    assert found == pytest.approx(best, abs=rounding)
    assert applied.relative_error == pytest.approx(found, abs=rounding)
    assert f"relative error {applied.relative_error:.2g}" in applied.change
    assert best > rounding


@forms
def test_the_shapes_are_those_of_the_lower_rank(signature, choice, lower):
    after, _, _ = apply_rules(layer_graph(signature, choice), [TruncateRank(4)])
    assert [w.shape for w in weights(after)] == [w.shape for w in weights(layer_graph(signature, lower))]
    assert outputs(after, signature).shape == outputs(layer_graph(signature, choice), signature).shape


@forms
def test_components_of_zeros_are_truncated_without_loss(signature, choice, lower):
    graph = layer_graph(signature, choice)
    first = next(tensor for tensor in graph.graph.initializer if tensor.name == "w0")
    array = numpy_helper.to_array(first).copy()
    kept = lower.rank_in if isinstance(lower, Tucker2) else lower.rank
    array[(slice(None), slice(kept, None)) if array.ndim == 2 else slice(kept, None)] = 0
    first.CopyFrom(numpy_helper.from_array(array, "w0"))
    if isinstance(lower, Tucker2):
        core = next(tensor for tensor in graph.graph.initializer if tensor.name == "w1")
        array = numpy_helper.to_array(core).copy()
        array[lower.rank_out :] = 0
        core.CopyFrom(numpy_helper.from_array(array, "w1"))
    after, (applied,), _ = apply_rules(graph, [TruncateRank(4)])
    one, other = outputs(graph, signature), outputs(after, signature)
    atol = sum_tolerance(np.float32, 6 * 9 + 12, scale=float(np.abs(one).max()))
    np.testing.assert_allclose(other, one, rtol=0, atol=atol)
    assert applied.relative_error < sum_tolerance(np.float32, 6 * 9)


@forms
def test_a_second_time_changes_nothing(signature, choice, lower):  # noqa: ARG001, the same cases
    once, _, _ = apply_rules(layer_graph(signature, choice), [TruncateRank(4)])
    twice, applied, _ = apply_rules(once, [TruncateRank(4)])
    assert applied == ()
    assert twice is once


def biased(last="Gemm <transB=1> (h, b, d)", weights=()):
    return model(
        '["fc.down"] h = Gemm <transB=1> (x, a, c)',
        f'["fc.up"] y = {last}',
        weights=(("a", (3, 4)), ("b", (4, 3)), ("c", (3,)), *weights),
    )


def test_an_inner_bias_moves_to_the_end_and_loses_nothing():
    graph = biased(weights=(("d", (4,)),))
    after, _, _ = apply_rules(graph, [TruncateRank(2)])
    zero = np.zeros((1, 4), np.float32)
    one, other = (ReferenceEvaluator(each).run(None, {"x": zero})[0] for each in (graph, after))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 4, float(one.max())))
    assert [len(node.input) for node in after.graph.node] == [2, 3]


def test_a_chain_gets_a_bias_where_it_had_none_at_its_end():
    graph = biased("Gemm <transB=1> (h, b)")
    after, _, _ = apply_rules(graph, [TruncateRank(2)])
    zero = np.zeros((1, 4), np.float32)
    one, other = (ReferenceEvaluator(each).run(None, {"x": zero})[0] for each in (graph, after))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 4, float(one.max())))


def test_an_inner_bias_that_no_later_node_can_hold_is_refused():
    graph = model(
        '["fc.down"] h = Gemm (x, a, c)',
        '["fc.up"] y = MatMul (h, b)',
        weights=(("a", (4, 3)), ("b", (3, 4)), ("c", (3,))),
    )
    assert refusals(graph) == ["'fc.down' has a bias, which 'fc.up', a MatMul, cannot take over"]


def test_an_inner_bias_before_padding_is_refused():
    graph = model(
        '["c.down"] h = Conv (x, a, c)',
        '["c.up"] y = Conv <pads=[1,1,1,1]> (h, b)',
        inputs="float[batch,4,5,5] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (3, 4, 1, 1)), ("b", (4, 3, 3, 3)), ("c", (3,))),
    )
    assert refusals(graph) == ["'c.down' has a bias, which the padding of 'c.up' would cut at the borders"]


def test_three_products_are_truncated_as_one_matrix():
    shapes = (("a", (5, 6)), ("b", (4, 5)), ("c", (6, 4)))
    graph = model(
        '["fc.first"] g = Gemm <transB=1> (x, a)',
        '["fc.core"] h = Gemm <transB=1> (g, b)',
        '["fc.last"] y = Gemm <transB=1> (h, c)',
        inputs="float[batch,6] x",
        outputs="float[batch,6] y",
        weights=shapes,
    )
    random = np.random.default_rng(0)
    for tensor, (name, shape) in zip(graph.graph.initializer, shapes, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    after, (applied,), _ = apply_rules(graph, [TruncateRank(2)])
    assert applied.change.startswith("ranks 5, 4 are truncated to 4, 4, ")
    a, b, c = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.graph.initializer)
    assert applied.relative_error < sum_tolerance(np.float32, 36)  # the product's rank is 4
    got = ReferenceEvaluator(after).run(None, {"x": np.eye(6, dtype=np.float32)})[0].T
    np.testing.assert_allclose(
        got, c @ b @ a, rtol=0, atol=sum_tolerance(np.float32, 36, float(np.abs(c @ b @ a).max()))
    )


def test_a_rank_on_the_quantum_is_left_alone():
    assert refusals(model(DOWN, UP, weights=PAIR), quantum=3) == ["its rank 3 is already on the quantum 3"]


def test_a_rank_below_the_quantum_is_refused():
    assert refusals(model(DOWN, UP, weights=PAIR), quantum=4) == ["a rank of 3 is below the quantum 4"]


def test_ranks_of_which_one_is_below_the_quantum_are_refused():
    graph = layer_graph(LOWERED["tucker2"][0], Tucker2(rank_in=3, rank_out=7))
    assert refusals(graph, quantum=4) == ["a rank of 3 is below the quantum 4"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    graph = model(DOWN, UP, weights=PAIR)
    array = numpy_helper.to_array(graph.graph.initializer[1]).copy()
    array[0, 0] = bad
    graph.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "b"))
    assert refusals(graph) == ["'fc.up' has values that are NaN or infinite"]


def test_only_the_named_chains_are_truncated():
    graph = model(DOWN, UP, weights=PAIR)
    assert apply_rules(graph, [TruncateRank(2, only=frozenset({"other"}))])[1] == ()
    assert [one.node for one in apply_rules(graph, [TruncateRank(2, only=frozenset({"fc"}))])[1]] == ["fc"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_of_the_weights_stays(dtype):
    graph = biased(weights=(("d", (4,)),))
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = code
    after, applied, _ = apply_rules(graph, [TruncateRank(2)])
    assert len(applied) == 1
    assert {tensor.data_type for tensor in after.graph.initializer} == {code}
