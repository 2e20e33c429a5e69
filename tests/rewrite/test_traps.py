"""What exporters and graphsurgeon do to graphs, against every rule on factor chains: rewritten right, or refused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.records import SVD
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.balance_factors import BalanceFactors
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.truncate_rank import TruncateRank
from tests.rewrite.graph_text import DOWN, PAIR, UP, model
from tests.tolerances import sum_tolerance

RULES = {
    "pad": PadRank(4),
    "truncate": TruncateRank(2),
    "merge": MergeFactors(),
    "balance": BalanceFactors(),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
VALUES = {
    "a": np.float32([[64, 0, 64, 0], [0, 128, 0, 128], [0, 0, 0, 0]]),  # unbalanced, and of rank two
    "b": np.float32([[1, 0, 1], [0, 2, 1], [3, 0, 1], [0, 4, 1]]),
}


def with_values(graph):
    """The pair's weights such that every rule has something to do and nothing to lose."""
    for tensor in graph.graph.initializer:
        if tensor.name in VALUES:
            array = VALUES[tensor.name]
            transposed = tuple(tensor.dims) != array.shape
            tensor.CopyFrom(numpy_helper.from_array(array.T.copy() if transposed else array, tensor.name))
    return graph


def outputs(graph):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return ReferenceEvaluator(graph).run(None, {"x": x})


def applied_once(graph, rule):
    """The graph after the rule, whose outputs stay."""
    after, applied, skipped = apply_rules(graph, [rule])
    assert [entry.rule for entry in applied] == [rule.name], skipped
    for one, other in zip(outputs(graph), outputs(after), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 16, float(np.abs(one).max())))
    return after


def refusals(graph, rule):
    after, applied, skipped = apply_rules(graph, [rule])
    assert applied == ()
    assert after is graph
    return [entry.reason for entry in skipped]


@every_rule
def test_a_shared_initializer_stays_for_its_other_readers(rule):
    graph = with_values(
        model(
            DOWN, UP, '["other"] z = Gemm <transB=1> (x, a)', outputs="float[batch,4] y, float[batch,3] z", weights=PAIR
        )
    )
    after = applied_once(graph, rule)
    (kept,) = (tensor for tensor in after.graph.initializer if tensor.name == "a")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), VALUES["a"])


@every_rule
def test_a_shared_bias_stays_for_its_other_readers(rule):
    graph = model(
        DOWN.replace("(x, a)", "(x, a, c)"), UP, '["other"] z = Add (x3, c)',
        inputs="float[batch,4] x", outputs="float[batch,4] y, float[3] z",
        weights=(*PAIR, ("c", (3,)), ("x3", (3,))),
    )  # fmt: skip
    applied_once(with_values(graph), rule)


@every_rule
def test_weights_that_two_chains_share_are_rewritten_for_both(rule):
    graph = model(
        DOWN, UP, '["other.down"] g = Gemm <transB=1> (x, a)', '["other.up"] z = Gemm <transB=1> (g, b)',
        outputs="float[batch,4] y, float[batch,4] z", weights=PAIR,
    )  # fmt: skip
    graph = with_values(graph)
    after, applied, _ = apply_rules(graph, [rule])
    assert [entry.node for entry in applied] == ["fc", "other"]
    for one, other in zip(outputs(graph), outputs(after), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 16, float(np.abs(one).max())))


@every_rule
def test_weights_behind_identity_and_transpose_are_read_through(rule):
    graph = model(
        '["i"] a1 = Identity (a)', '["t"] a2 = Transpose <perm=[1,0]> (a1)', '["fc.down"] h = MatMul (x, a2)',
        UP.replace("transB=1", "transB=0"), weights=(("a", (3, 4)), ("b", (3, 4))),
    )  # fmt: skip
    after = applied_once(with_values(graph), rule)
    assert not {"Identity", "Transpose"} & {node.op_type for node in after.graph.node}


@every_rule
def test_weights_in_constant_nodes_are_read(rule):
    numbers = {name: ",".join(f"{value:g}" for value in array.ravel()) for name, array in VALUES.items()}
    text = f"""{HEAD} g (float[batch,4] x) => (float[batch,4] y) {{
        a = Constant <value = float[3,4] {{{numbers["a"]}}}> ()
        b = Constant <value = float[4,3] {{{numbers["b"]}}}> ()
        {DOWN} {UP} }}"""
    after = applied_once(onnx.parser.parse_model(text), rule)
    assert "Constant" not in {node.op_type for node in after.graph.node}


@every_rule
def test_quantised_weights_are_refused(rule):
    text = f"""{HEAD} g (float[batch,4] x) => (float[batch,4] y)
        <int8[3,4] q = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float s = {{0.5}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        ["dq"] a = DequantizeLinear (q, s) {DOWN} {UP} }}"""
    assert refusals(onnx.parser.parse_model(text), rule) == ["the weight of 'fc.down' is quantised"]


@every_rule
def test_weights_that_are_cast_are_refused(rule):
    text = f"""{HEAD} g (float[batch,4] x) => (float[batch,4] y)
        <double[3,4] d = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        ["c"] a = Cast <to=1> (d) {DOWN} {UP} }}"""
    assert refusals(onnx.parser.parse_model(text), rule) == ["the weight of 'fc.down' is cast from another type"]


@every_rule
def test_factors_inside_an_if_are_refused_with_the_node(rule):
    text = f"""{HEAD} g (float[batch,4] x, bool flag) => (float[batch,4] y)
        <float[3,4] a = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        ["choice"] y = If (flag) <
            then_branch = t () => (float[batch,4] y1) {{ {DOWN} {UP.replace(" y ", " y1 ")} }},
            else_branch = e () => (float[batch,4] y2) {{ y2 = Relu (x) }}> }}"""
    assert refusals(onnx.parser.parse_model(text), rule) == ["it is inside a body of 'choice', a node of type If"]


@every_rule
def test_factors_inside_a_loop_are_refused_with_the_node(rule):
    text = f"""{HEAD} g (float[batch,4] x, int64 n, bool go) => (float[batch,4] last)
        <float[3,4] a = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        ["again"] last = Loop (n, go, x) <
            body = l (int64 i, bool c, float[batch,4] x1) => (bool c1, float[batch,4] y) {{
                c1 = Identity (c) {DOWN.replace("(x,", "(x1,")} {UP} }}> }}"""
    assert refusals(onnx.parser.parse_model(text), rule) == ["it is inside a body of 'again', a node of type Loop"]


@every_rule
def test_a_chain_beside_an_if_is_rewritten_and_the_body_stays(rule):
    text = f"""{HEAD} g (float[batch,4] x, bool flag) => (float[batch,4] y, float[batch,4] z)
        <float[3,4] a = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        {DOWN} {UP}
        ["choice"] z = If (flag) <
            then_branch = t () => (float[batch,4] y1) {{ ["c.down"] h1 = Gemm <transB=1> (x, a)
                                                        ["c.up"] y1 = Gemm <transB=1> (h1, b) }},
            else_branch = e () => (float[batch,4] y2) {{ y2 = Relu (x) }}> }}"""
    graph = with_values(onnx.parser.parse_model(text))
    after, applied, skipped = apply_rules(graph, [rule])
    assert [entry.node for entry in applied] == ["fc"]
    assert [entry.node for entry in skipped] == ["c"]
    feeds = {"x": np.ones((1, 4), np.float32), "flag": np.array(True)}
    for one, other in zip(*(ReferenceEvaluator(each).run(None, feeds) for each in (graph, after)), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 16, float(np.abs(one).max())))


@every_rule
@pytest.mark.parametrize("attribute", ["alpha=0.5", "beta=0.5", "transA=1"])
def test_a_gemm_that_scales_or_transposes_its_input_is_refused(rule, attribute):
    graph = model(DOWN.replace("transB=1", f"transB=1, {attribute}"), UP, weights=PAIR)
    assert refusals(graph, rule) == ["'fc.down' scales or transposes its input"]


@every_rule
@pytest.mark.parametrize("transposed", [0, 1])
def test_either_orientation_of_a_gemm_is_kept(rule, transposed):
    shapes = PAIR if transposed else (("a", (4, 3)), ("b", (3, 4)))
    graph = model(*(line.replace("transB=1", f"transB={transposed}") for line in (DOWN, UP)), weights=shapes)
    after = applied_once(with_values(graph), rule)
    assert {attribute.i for node in after.graph.node for attribute in node.attribute} == {transposed}


@every_rule
def test_an_inner_value_that_is_an_output_is_refused(rule):
    graph = model(DOWN, UP, outputs="float[batch,4] y, float[batch,3] h", weights=PAIR)
    assert refusals(graph, rule) == ["the value between its factors is the graph output 'h'"]


@every_rule
def test_an_inner_value_with_a_second_reader_is_refused(rule):
    graph = model(DOWN, UP, '["r"] z = Relu (h)', outputs="float[batch,4] y, float[batch,3] z", weights=PAIR)
    assert refusals(graph, rule) == ["the value between its factors is read by 2 nodes"]


@every_rule
def test_a_chain_whose_end_is_an_output_and_is_read_too_is_rewritten(rule):
    graph = model(DOWN, UP, '["r"] z = Relu (y)', outputs="float[batch,4] y, float[batch,4] z", weights=PAIR)
    applied_once(with_values(graph), rule)


@every_rule
def test_an_operator_of_another_domain_is_no_factor(rule):
    text = f"""<ir_version: 10, opset_import: ["" : 20, "other" : 1]> g (float[batch,4] x) => (float[batch,4] y)
        <float[3,4] a = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[4,3] b = {{1,0,0,0,1,0,0,0,1,1,1,1}}> {{
        {DOWN.replace("Gemm", "other.Gemm")} {UP} }}"""
    assert refusals(onnx.parser.parse_model(text), rule) == []


@every_rule
def test_metadata_survives(rule):
    graph = with_values(model(DOWN, UP, '["after"] z = Relu (y)', outputs="float[batch,4] z", weights=PAIR))
    for holder, key in ((graph, "m"), (graph.graph, "g"), *((node, node.name) for node in graph.graph.node)):
        holder.metadata_props.add(key=key, value="kept")
    graph.graph.node[2].doc_string = "about it"
    after = applied_once(graph, rule)
    assert [entry.key for entry in after.metadata_props] == ["m"]
    assert [entry.key for entry in after.graph.metadata_props] == ["g"]
    assert after.graph.node[-1].doc_string == "about it"
    assert all(node.metadata_props for node in after.graph.node)


@every_rule
def test_stale_shapes_of_inner_values_are_inferred_again(rule):
    graph = with_values(model(DOWN, UP, weights=PAIR))
    graph.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["batch", 3]))
    onnx.checker.check_model(applied_once(graph, rule), full_check=True)


def test_weights_that_are_not_finite_are_not_merged():
    graph = with_values(model(DOWN, UP, weights=PAIR))
    (down,) = (tensor for tensor in graph.graph.initializer if tensor.name == "a")
    array = VALUES["a"].copy()
    array[0, 0] = np.nan
    down.CopyFrom(numpy_helper.from_array(array, "a"))
    assert refusals(graph, MergeFactors()) == ["'fc.down' has values that are NaN or infinite"]


def test_an_attribute_that_holds_a_type_survives():
    graph = with_values(model(DOWN, UP, '["none"] n = Optional ()', '["has"] is = OptionalHasElement (n)',
                              outputs="float[batch,4] y, bool is", weights=PAIR))  # fmt: skip
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])
    graph.graph.node[2].attribute.append(onnx.helper.make_attribute("type", kind))
    after, applied, _ = apply_rules(graph, [PadRank(4)])
    assert len(applied) == 1
    (node,) = (node for node in after.graph.node if node.name == "none")
    assert [attribute.tp for attribute in node.attribute] == [kind]


def test_a_weight_behind_identity_is_decomposed():
    graph = model('["i"] w1 = Identity (w)', '["fc"] y = Gemm <transB=1> (x, w1)', weights=(("w", (4, 4)),))
    _, applied, _ = apply_rules(graph, [DecomposeNode({"fc": SVD(rank=1)})])
    assert [entry.node for entry in applied] == ["fc"]


def test_a_quantised_weight_is_not_decomposed():
    text = f"""{HEAD} g (float[batch,4] x) => (float[batch,3] y)
        <int8[3,4] q = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float s = {{0.5}}> {{
        ["dq"] a = DequantizeLinear (q, s) ["fc"] y = Gemm <transB=1> (x, a) }}"""
    graph = onnx.parser.parse_model(text)
    assert refusals(graph, DecomposeNode({"fc": SVD(rank=1)})) == ["the weight of 'fc' is quantised"]
