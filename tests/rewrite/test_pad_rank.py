import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.errors import InputError
from lrd_deploy.records import ChannelSVD, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.rewrite.graph_text import DOWN, PAIR, UP, model
from tests.tolerances import sum_tolerance


def refusals(graph, quantum=4):
    _, applied, skipped = apply_rules(graph, [PadRank(quantum)])
    assert applied == ()
    return [entry.reason for entry in skipped]


@given(width=st.integers(2, 12), out=st.integers(2, 12), rank=st.integers(1, 11), quantum=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_padding_reaches_the_quantum_and_keeps_the_output(width, out, rank, quantum):
    pair = (("a", (rank, width)), ("b", (out, rank)))
    shapes = {"inputs": f"float[batch,{width}] x", "outputs": f"float[batch,{out}] y"}
    before = model(DOWN, UP, weights=pair, **shapes)
    after, applied, _ = apply_rules(before, [PadRank(quantum)])
    if applied:
        weights = {node.name: node.input[1] for node in after.graph.node}
        dims = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
        assert dims[weights["fc.down"]][0] % quantum == 0
        assert dims[weights["fc.down"]][0] - rank < quantum
    x = np.linspace(-1, 1, 3 * width, dtype=np.float32).reshape(3, width)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, width + rank, np.abs(one).max() + 1))


def test_a_rank_on_the_quantum_is_left_alone():
    assert refusals(model(DOWN, UP, weights=PAIR), quantum=3) == ["its rank 3 is already on the quantum 3"]


def test_padding_past_the_layer_is_refused():
    assert refusals(model(DOWN, UP, weights=PAIR), quantum=8) == [
        "a rank of 8 would exceed 4, at which factors of its shape are exact"
    ]


def test_an_inner_value_with_a_second_reader_is_refused():
    graph = model(DOWN, UP, '["r"] z = Relu (h)', outputs="float[batch,4] y, float[batch,3] z", weights=PAIR)
    assert refusals(graph) == ["the value between its factors is read by 2 nodes"]


def test_an_inner_value_that_is_an_output_is_refused():
    graph = model(DOWN, UP, outputs="float[batch,4] y, float[batch,3] h", weights=PAIR)
    assert refusals(graph) == ["the value between its factors is the graph output 'h'"]


def test_a_gemm_that_scales_is_refused():
    graph = model('["fc.down"] h = Gemm <transB=1, alpha=0.5> (x, a)', UP, weights=PAIR)
    assert refusals(graph) == ["'fc.down' scales or transposes its input"]


def test_a_grouped_core_is_refused():
    graph = model(
        '["c.first"] p = Conv (x, a)',
        '["c.core"] q = Conv <group=2> (p, b)',
        '["c.last"] y = Conv (q, c)',
        inputs="float[batch,4,5,5] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (2, 4, 1, 1)), ("b", (2, 1, 3, 3)), ("c", (4, 2, 1, 1))),
    )
    assert refusals(graph, quantum=3) == ["'c.core' is a grouped convolution"]


def test_wide_neighbours_and_activations_in_between_are_no_factors():
    wide = model(DOWN.replace("fc.", "one."), UP, weights=(("a", (4, 4)), ("b", (4, 4))))
    active = model(DOWN.replace(" h ", " p "), '["r"] h = Relu (p)', UP, weights=PAIR)
    assert refusals(wide) == refusals(active) == []


def test_factors_that_are_named_so_are_found_at_full_rank_too():
    wide = model(DOWN, UP, weights=(("a", (4, 4)), ("b", (4, 4))))
    assert refusals(wide) == ["its rank 4 is already on the quantum 4"]


def test_a_neighbour_takes_no_factor_from_a_named_chain():
    graph = model(
        '["dense"] d = Gemm <transB=1> (x, w)',
        DOWN.replace("(x,", "(d,"),
        UP,
        weights=(*PAIR, ("w", (4, 4))),
    )
    _, applied, _ = apply_rules(graph, [PadRank(4)])
    assert [entry.node for entry in applied] == ["fc"]


CONV = {"kind": "conv2d", "in_channels": 2, "out_channels": 3, "kernel": (3, 5), "spatial": (9, 8)}
FORMS = {
    "kernel first": (ChannelSVD(rank=2), 3),
    "kernel last": (ChannelSVD(rank=1, kernel_on="up"), 2),
    "spatial": (SpatialSVD(rank=5), 6),
    "tucker2": (Tucker2(rank_in=1, rank_out=2), None),
}


@pytest.mark.parametrize(("choice", "largest"), FORMS.values(), ids=FORMS)
def test_a_form_pads_up_to_the_rank_at_which_it_is_exact(choice, largest):
    signature = LayerSignature(**CONV, stride=(2, 1), padding=(1, 2))
    before = layer_graph(signature, choice)
    if largest is None:
        assert refusals(before, quantum=3)[0].startswith("a rank of 3 would exceed 2,")
        return
    assert refusals(before, quantum=largest + 1) == [
        f"a rank of {largest + 1} would exceed {largest}, at which factors of its shape are exact"
    ]
    after, applied, _ = apply_rules(before, [PadRank(largest)])
    assert applied[0].change == f"rank {choice.rank} is padded to {largest}"
    x = layer_input(signature, 2)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 2 * 15 + 6, np.abs(one).max() + 1))


def test_a_form_at_full_rank_without_names_is_no_chain():
    full = layer_graph(LayerSignature(**CONV), ChannelSVD(rank=3))
    assert refusals(full) == []


def test_two_convolutions_that_span_one_axis_are_no_factors():
    graph = model(
        '["c.down"] h = Conv (x, a)',
        '["c.up"] y = Conv (h, b)',
        inputs="float[batch,4,9,9] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (2, 4, 3, 1)), ("b", (4, 2, 3, 3))),
    )
    assert refusals(graph) == []


def test_a_shared_weight_is_copied_before_it_is_changed():
    graph = model(
        DOWN,
        UP,
        '["other"] z = Gemm <transB=1> (x, a)',
        outputs="float[batch,4] y, float[batch,3] z",
        weights=PAIR,
    )
    after, applied, _ = apply_rules(graph, [PadRank(4)])
    assert len(applied) == 1
    dims = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    assert dims["a"] == [3, 4]


def test_metadata_of_model_graph_and_nodes_survives():
    graph = model(DOWN, UP, weights=PAIR)
    for holder, key in ((graph, "m"), (graph.graph, "g"), (graph.graph.node[0], "n")):
        holder.metadata_props.add(key=key, value="kept")
    graph.graph.node[1].doc_string = "about up"
    after, _, _ = apply_rules(graph, [PadRank(4)])
    assert [entry.key for entry in after.metadata_props] == ["m"]
    assert [entry.key for entry in after.graph.metadata_props] == ["g"]
    down, up = after.graph.node
    assert [entry.key for entry in down.metadata_props] == ["n"]
    assert up.doc_string == "about up"


@pytest.mark.parametrize("quantum", [1, 3])
def test_a_model_that_no_rule_changes_comes_back_untouched(quantum):
    graph = model(DOWN, UP, weights=PAIR)
    after, _, _ = apply_rules(graph, [PadRank(quantum)])
    assert after is graph


def test_nodes_without_names_get_their_own_and_keep_their_own_weights():
    unnamed = model("h = Gemm <transB=1> (x, a)", "y = Gemm <transB=1> (h, b)", weights=PAIR)
    after, applied, _ = apply_rules(unnamed, [PadRank(4)])
    assert len(applied) == 1
    assert len({node.name for node in after.graph.node}) == 2
    x = np.ones((1, 4), np.float32)
    one, other = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (unnamed, after))
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 16, float(one.max())))


def test_a_new_weight_never_takes_the_name_of_another_tensor():
    taken = '"fc.down.weight_padded_to_4"'
    graph = model(f'["r"] {taken} = Relu (x)', DOWN.replace("(x,", f"({taken},"), UP, weights=PAIR)
    with pytest.raises(InputError, match="tensor names that are unique"):
        apply_rules(graph, [PadRank(4)])


def test_nothing_is_printed(capfd):
    apply_rules(model(DOWN, UP, weights=PAIR), [PadRank(4)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("attribute", ["alpha=0.5", "beta=0.5", "transA=1"])
def test_a_last_gemm_that_scales_or_transposes_is_refused_too(attribute):
    up = f'["fc.up"] y = Gemm <transB=1, {attribute}> (h, b, c)'
    graph = model(DOWN, up, weights=(*PAIR, ("c", (4,))))
    assert refusals(graph) == ["'fc.up' scales or transposes its input"]


@pytest.mark.parametrize("shape", [(1,), (1, 3)])
def test_a_bias_that_broadcasts_is_refused(shape):
    graph = model(DOWN.replace("(x, a)", "(x, a, c)"), UP, weights=(*PAIR, ("c", shape)))
    assert refusals(graph) == ["the bias of 'fc.down' is no constant with one value per channel"]


def test_a_bias_that_is_computed_is_refused():
    graph = model('["r"] c = Relu (z)', DOWN.replace("(x, a)", "(x, a, c)"), UP,
                  inputs="float[batch,4] x, float[3] z", weights=PAIR)  # fmt: skip
    assert refusals(graph) == ["the bias of 'fc.down' is no constant with one value per channel"]


def test_a_follower_inside_an_if_body_is_no_factor():
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[2,4] x, bool flag) => (float[2,4] y)
        <float[3,4] a = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4,3] b = {1,0,0,0,1,0,0,0,1,1,1,1}> {
        ["fc.down"] h = Gemm <transB=1> (x, a)
        y = If (flag) <
            then_branch = t () => (float[2,4] y1) { ["fc.up"] y1 = Gemm <transB=1> (h, b) },
            else_branch = e () => (float[2,4] y2) { y2 = Relu (x) }> }"""
    assert refusals(onnx.parser.parse_model(text)) == []


def test_weights_that_a_caller_may_override_are_refused():
    graph = model(DOWN, UP, weights=PAIR)
    graph.graph.input.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [3, 4]))
    with pytest.raises(InputError, match="initializers that are graph inputs too, such as 'a'"):
        apply_rules(graph, [PadRank(4)])


def test_version_and_domain_of_the_model_survive():
    graph = model(DOWN, UP, weights=PAIR)
    graph.model_version, graph.domain = 7, "org.example"
    after, _, _ = apply_rules(graph, [PadRank(4)])
    assert (after.model_version, after.domain, after.ir_version) == (7, "org.example", 10)


def test_weights_of_a_type_that_numpy_does_not_have_are_refused():
    graph = model(DOWN, UP, weights=PAIR)
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, tensor.dims, values.ravel()))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    assert refusals(graph) == ["the weight of 'fc.down' is bfloat16, which this rule does not handle"]
