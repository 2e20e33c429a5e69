import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.records import SVD, LayerSignature, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.merge_factors import MergeFactors
from tests.rewrite.graph_text import DOWN, PAIR, UP, model
from tests.tolerances import sum_tolerance

CONV = {"kind": "conv2d", "in_channels": 6, "out_channels": 8, "spatial": (9, 7)}
CASES = {
    "linear": (LayerSignature(kind="linear", in_channels=6, out_channels=8), SVD(rank=3)),
    "sequence": (LayerSignature(kind="linear", in_channels=6, out_channels=8, spatial=(5,)), SVD(rank=3)),
    "pointwise": (LayerSignature(**CONV, stride=(2, 2)), SVD(rank=3)),
    "tucker2": (
        LayerSignature(**CONV, kernel=(3, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
        Tucker2(rank_in=2, rank_out=5),
    ),
}


@pytest.mark.parametrize(("signature", "choice"), CASES.values(), ids=CASES)
def test_merging_keeps_the_output_and_leaves_one_weighted_node(signature, choice):
    factors = layer_graph(signature, choice)
    merged, applied, _ = apply_rules(factors, [MergeFactors()])
    assert len(applied) == 1
    assert sum(node.op_type in {"Conv", "Gemm", "MatMul"} for node in merged.graph.node) == 1
    x = layer_input(signature, 2)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (factors, merged))
    atol = sum_tolerance(np.float32, 6 * 9 + 10, scale=float(np.abs(one).max()))
    np.testing.assert_allclose(other, one, rtol=0, atol=atol)


def conv_pair(first_bias, pads):
    return model(
        f'["c.first"] p = Conv (x, a{", d" if first_bias else ""})',
        f'["c.core"] q = Conv <pads=[{pads}]> (p, b)',
        '["c.last"] y = Conv (q, c)',
        inputs="float[batch,4,5,5] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (2, 4, 1, 1)), ("b", (2, 2, 3, 3)), ("c", (4, 2, 1, 1)), ("d", (2,))),
    )


def test_a_bias_that_padding_would_cut_is_refused():
    _, applied, skipped = apply_rules(conv_pair(first_bias=True, pads="1,1,1,1"), [MergeFactors()])
    assert applied == ()
    assert skipped[0].reason == "'c.first' has a bias, which the padding of 'c.core' would cut at the borders"


def test_the_same_bias_without_padding_is_carried_through():
    graph = conv_pair(first_bias=True, pads="0,0,0,0")
    merged, applied, _ = apply_rules(graph, [MergeFactors()])
    assert len(applied) == 1
    x = np.linspace(-1, 1, 100, dtype=np.float32).reshape(1, 4, 5, 5)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (graph, merged))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 64, np.abs(one).max()))


def test_a_stride_beside_the_core_is_refused():
    graph = model(
        '["c.first"] p = Conv <strides=[2,2]> (x, a)',
        '["c.core"] q = Conv (p, b)',
        '["c.last"] y = Conv (q, c)',
        inputs="float[batch,4,9,9] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (2, 4, 1, 1)), ("b", (2, 2, 3, 3)), ("c", (4, 2, 1, 1))),
    )
    _, _, skipped = apply_rules(graph, [MergeFactors()])
    assert skipped[0].reason == "'c.first' strides or pads beside 'c.core'"


def test_a_product_without_bias_merges_into_the_gemm_that_has_one():
    graph = model(
        '["fc.down"] h = MatMul (x, a)',
        '["fc.up"] y = Gemm (h, b, c)',
        weights=(("a", (4, 3)), ("b", (3, 4)), ("c", (4,))),
    )
    merged, _, _ = apply_rules(graph, [MergeFactors()])
    (node,) = merged.graph.node
    assert node.op_type == "Gemm"
    assert len(node.input) == 3


def test_only_the_named_chains_are_merged():
    graph = model(DOWN, UP, weights=PAIR)
    assert apply_rules(graph, [MergeFactors(only=frozenset({"other"}))])[1] == ()
    assert apply_rules(graph, [MergeFactors(only=frozenset({"fc"}))])[1][0].node == "fc"


def test_the_merged_node_carries_the_layers_name():
    merged, _, _ = apply_rules(model(DOWN, UP, weights=PAIR), [MergeFactors()])
    assert [node.name for node in merged.graph.node] == ["fc"]


def test_layers_with_similar_names_are_merged_side_by_side():
    graph = model(
        '["attn.q_down"] p = Gemm <transB=1> (x, a)',
        '["attn.q_up"] y = Gemm <transB=1> (p, b)',
        '["attn.v_down"] q = Gemm <transB=1> (x, a)',
        '["attn.v_up"] z = Gemm <transB=1> (q, b)',
        '["attn.q_down + attn.q_up"] w = Relu (y)',
        outputs="float[batch,4] w, float[batch,4] z",
        weights=PAIR,
    )
    merged, applied, _ = apply_rules(graph, [MergeFactors()])
    assert len(applied) == 2
    names = [node.name for node in merged.graph.node]
    assert len(set(names)) == len(names) == 3


def test_padding_by_auto_pad_counts_as_padding():
    graph = conv_pair(first_bias=True, pads="0,0,0,0")
    del graph.graph.node[1].attribute[:]
    graph.graph.node[1].attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    _, _, skipped = apply_rules(graph, [MergeFactors()])
    assert "which the padding of 'c.core' would cut" in skipped[0].reason
