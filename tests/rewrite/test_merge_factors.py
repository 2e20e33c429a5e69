import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.records import SVD, ChannelSVD, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.rewrite.graph_text import DOWN, PAIR, UP, model
from tests.tolerances import sum_tolerance

CONV = {"kind": "conv2d", "in_channels": 6, "out_channels": 8, "spatial": (9, 7)}
KERNEL = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
CASES = {
    "linear": (LayerSignature(kind="linear", in_channels=6, out_channels=8), SVD(rank=3)),
    "sequence": (LayerSignature(kind="linear", in_channels=6, out_channels=8, spatial=(5,)), SVD(rank=3)),
    "pointwise": (LayerSignature(**CONV, stride=(2, 2)), SVD(rank=3)),
    "tucker2": (
        LayerSignature(**CONV, **KERNEL),
        Tucker2(rank_in=2, rank_out=5),
    ),
    "kernel first": (LayerSignature(**CONV, **KERNEL), ChannelSVD(rank=7)),
    "kernel last": (LayerSignature(**CONV, **KERNEL), ChannelSVD(rank=5, kernel_on="up")),
    "spatial": (LayerSignature(**CONV, **KERNEL), SpatialSVD(rank=9)),
    "spatial of a row": (LayerSignature(**CONV, kernel=(1, 3), padding=(0, 1)), SpatialSVD(rank=5)),
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
    assert skipped[0].reason == "'c.first' and 'c.core' both span, stride or pad along the height"


SPATIAL = (("a", (2, 4, 3, 1)), ("b", (4, 2, 1, 3)), ("c", (2,)))


def spatial_pair(down="pads=[1,0,0,0]", up="pads=[0,0,0,2]", down_bias=""):
    """A pair over (height, width) with padding at the top and at the right."""
    return model(
        f'["c.down"] h = Conv <{down}> (x, a{down_bias})',
        f'["c.up"] y = Conv <{up}> (h, b)',
        inputs="float[batch,4,7,6] x",
        outputs="float[batch,4,h,w] y",
        weights=SPATIAL,
    )


def merged_and_compared(graph):
    """The only node that merging leaves, after its output was compared with the pair's."""
    merged, applied, _ = apply_rules(graph, [MergeFactors()])
    assert len(applied) == 1
    x = np.linspace(-1, 1, 168, dtype=np.float32).reshape(1, 4, 7, 6)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (graph, merged))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 4 * 9 + 2, np.abs(one).max()))
    (node,) = merged.graph.node
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_each_axis_keeps_the_padding_of_the_factor_that_places_it():
    assert merged_and_compared(spatial_pair()) == {"kernel_shape": [3, 3], "pads": [1, 0, 0, 2]}


def test_each_axis_keeps_stride_and_dilation_of_the_factor_that_places_it():
    graph = spatial_pair("strides=[2,1], pads=[1,0,1,0]", "strides=[1,3], dilations=[1,2], pads=[0,2,0,1]")
    assert merged_and_compared(graph) == {
        "kernel_shape": [3, 3],
        "strides": [2, 3],
        "pads": [1, 2, 1, 1],
        "dilations": [1, 2],
    }


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_on_both_factors_stays_auto_pad(word):
    graph = spatial_pair(f'auto_pad="{word}"', f'auto_pad="{word}"')
    assert merged_and_compared(graph) == {"kernel_shape": [3, 3], "auto_pad": word.encode()}


def test_auto_pad_valid_is_no_padding():
    assert merged_and_compared(spatial_pair('auto_pad="VALID"', 'auto_pad="NOTSET"')) == {"kernel_shape": [3, 3]}


@pytest.mark.parametrize("up", ["pads=[0,1,0,1]", 'auto_pad="SAME_LOWER"', 'auto_pad="VALID"'])
def test_two_ways_of_padding_are_refused(up):
    _, applied, skipped = apply_rules(spatial_pair('auto_pad="SAME_UPPER"', up), [MergeFactors()])
    assert applied == ()
    assert skipped[0].reason == "its factors pad by auto_pad along one axis and in another way along the other"


def test_a_stride_beside_the_factor_that_spans_the_axis_is_refused():
    _, applied, skipped = apply_rules(spatial_pair(up="strides=[2,1]"), [MergeFactors()])
    assert applied == ()
    assert skipped[0].reason == "'c.down' and 'c.up' both span, stride or pad along the height"


def test_an_inner_bias_before_a_factor_that_pads_is_refused():
    _, applied, skipped = apply_rules(spatial_pair(down_bias=", c"), [MergeFactors()])
    assert applied == ()
    assert skipped[0].reason == "'c.down' has a bias, which the padding of 'c.up' would cut at the borders"


def test_an_inner_bias_before_a_factor_that_spans_without_padding_is_carried_through():
    merged_and_compared(spatial_pair(up="strides=[1,2]", down_bias=", c"))


def test_a_bias_is_not_carried_past_a_neutral_factor_into_padding():
    graph = conv_pair(first_bias=True, pads="0,0,0,0")
    del graph.graph.initializer[1]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "b"))
    graph.graph.node[2].attribute.append(onnx.helper.make_attribute("pads", [0, 1, 0, 1]))
    _, _, skipped = apply_rules(graph, [MergeFactors()])
    assert skipped[0].reason == "'c.first' has a bias, which the padding of 'c.last' would cut at the borders"


def test_a_rule_after_merging_meets_no_leftovers():
    _, applied, skipped = apply_rules(model(DOWN, UP, weights=PAIR), [MergeFactors(), PadRank(4)])
    assert len(applied) == 1
    assert skipped == ()


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
