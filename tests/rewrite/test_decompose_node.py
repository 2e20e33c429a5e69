import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.decompose.factorize import factors_of, svd_factors
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.ranks.forms import largest_ranks
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.rewrite.graph_text import model
from tests.tolerances import sum_tolerance

LINEAR = LayerSignature(kind="linear", in_channels=6, out_channels=8)
SEQUENCE = LayerSignature(kind="linear", in_channels=6, out_channels=8, spatial=(5,))
POINTWISE = LayerSignature(kind="conv2d", in_channels=6, out_channels=8, spatial=(9, 7), stride=(2, 2))
KERNEL = LayerSignature(
    kind="conv2d", in_channels=6, out_channels=8, spatial=(9, 7),
    kernel=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1),
)  # fmt: skip
CASES = {
    "linear": (LINEAR, SVD(rank=3)),
    "sequence": (SEQUENCE, SVD(rank=3)),
    "pointwise": (POINTWISE, SVD(rank=3)),
    "kernel first": (KERNEL, ChannelSVD(rank=3)),
    "kernel last": (KERNEL, ChannelSVD(rank=3, kernel_on="up")),
    "spatial": (KERNEL, SpatialSVD(rank=3)),
    "tucker2": (KERNEL, Tucker2(rank_in=3, rank_out=5)),
}
forms = pytest.mark.parametrize(("signature", "choice"), CASES.values(), ids=CASES)


def at_full_rank(signature, choice):
    largest = largest_ranks(signature, choice)
    names = ("rank_in", "rank_out") if isinstance(choice, Tucker2) else ("rank",)
    return choice.model_copy(update=dict(zip(names, largest, strict=True)))


def dense_graph(signature):
    """A layer as a graph whose weighted node is called `fc`."""
    graph = layer_graph(signature, KeepDense())
    graph.graph.node[0].name = "fc"
    return graph


def in_reference(graph, x):
    return ReferenceEvaluator(graph).run(None, {"x": x})[0]


def in_onnxruntime(graph, x, path):
    write_model(graph, path)
    return next(iter(runtime("onnxruntime").load(path, SessionSettings()).run({"x": x}).values()))


def close(other, one, signature, rank):
    length = signature.in_channels * np.prod(signature.kernel) + rank
    atol = sum_tolerance(np.float32, int(length), scale=float(np.abs(one).max()) + 1)
    np.testing.assert_allclose(other, one, rtol=0, atol=atol)


def refusals(graph, choice, name="fc"):
    _, applied, skipped = apply_rules(graph, [DecomposeNode({name: choice})])
    assert applied == ()
    assert [entry.node for entry in skipped] == [name]
    return [entry.reason for entry in skipped]


def conv(attributes="group=1", shape=(4, 4, 3, 3)):
    return model(
        f'["fc"] y = Conv <{attributes}> (x, w)',
        inputs="float[batch,4,9,9] x",
        outputs="float[batch,4,h,w] y",
        weights=(("w", shape),),
    )


def gemm(attributes="transB=1", bias=""):
    return model(f'["fc"] y = Gemm <{attributes}> (x, w{bias})', weights=(("w", (4, 4)), ("b", (4,))))


@forms
def test_factors_compute_what_a_node_with_their_product_does(signature, choice):
    dense = dense_graph(signature)
    after, applied, _ = apply_rules(dense, [DecomposeNode({"fc": choice})])
    assert applied[0].change == f"dense to {choice}"
    (stored,) = (tensor for tensor in dense.graph.initializer if len(tensor.dims) > 1)
    weight = numpy_helper.to_array(stored)
    is_matrix = weight.ndim == 2  # (in, out), as these graphs multiply
    product = factors_of(weight.T if is_matrix else weight, choice).product().astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(product.T if is_matrix else product, stored.name))
    x = layer_input(signature, 2)
    close(in_reference(after, x), in_reference(dense, x), signature, 5)


@forms
def test_factors_have_the_shapes_that_are_timed_for_the_form(signature, choice):
    after, _, _ = apply_rules(dense_graph(signature), [DecomposeNode({"fc": choice})])
    timed = layer_graph(signature, choice)
    one, other = (
        [dims[node.input[1]] for node in graph.graph.node if node.op_type != "Add"]
        for graph in (after, timed)
        for dims in [{tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}]
    )
    assert one == other


@forms
def test_full_rank_and_back_is_the_dense_graph(signature, choice, tmp_path):
    dense, full = dense_graph(signature), at_full_rank(signature, choice)
    factors, applied, _ = apply_rules(dense, [DecomposeNode({"fc": full})])
    merged, merges, _ = apply_rules(factors, [MergeFactors()])
    assert (len(applied), len(merges)) == (1, 1)
    assert [node.op_type for node in merged.graph.node] == [node.op_type for node in dense.graph.node]
    assert merged.graph.node[0].name == "fc"
    x, rank = layer_input(signature, 2), max(largest_ranks(signature, choice))
    exact = in_reference(dense, x)
    for number, graph in enumerate((factors, merged)):
        close(in_reference(graph, x), exact, signature, rank)
        close(in_onnxruntime(graph, x, tmp_path / f"{number}.onnx"), exact, signature, rank)


@given(
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    choice=st.sampled_from([ChannelSVD(rank=1), ChannelSVD(rank=1, kernel_on="up"), SpatialSVD(rank=1),
                            Tucker2(rank_in=1, rank_out=1), SVD(rank=1)]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_full_rank_and_back_gives_the_weight_and_its_window_again(channels, kernel, stride, pads, choice):
    signature = LayerSignature(
        kind="conv2d", in_channels=channels[0], out_channels=channels[1], kernel=kernel, spatial=(3, 3)
    )
    if signature.pointwise != isinstance(choice, SVD):
        return
    dense = layer_graph(signature, KeepDense())
    node = dense.graph.node[0]
    node.name = "fc"
    for dim, size in zip(dense.graph.output[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.dim_param = size
    window = {"kernel_shape": list(kernel), "strides": list(stride), "pads": list(pads)}
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in window.items())
    rules = [DecomposeNode({"fc": at_full_rank(signature, choice)}), MergeFactors()]
    merged, applied, _ = apply_rules(dense, rules)
    assert [entry.rule for entry in applied] == ["decompose_node", "merge_factors"]
    got = {a.name: list(a.ints) for a in merged.graph.node[0].attribute}
    neutral = {"strides": [1, 1], "pads": [0, 0, 0, 0]}
    assert neutral | got == window
    before, after = (
        next(numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if len(tensor.dims) == 4)
        for graph in (dense, merged)
    )
    atol = sum_tolerance(np.float32, max(largest_ranks(signature, choice)), scale=float(np.linalg.norm(before)))
    np.testing.assert_allclose(after, before.astype(np.float64), rtol=0, atol=atol)


@forms
def test_padding_after_decomposing_keeps_the_outputs(signature, choice):
    factors, _, _ = apply_rules(dense_graph(signature), [DecomposeNode({"fc": choice})])
    both, applied, skipped = apply_rules(dense_graph(signature), [DecomposeNode({"fc": choice}), PadRank(2)])
    assert [entry.node for entry in applied] == ["fc", "fc"]
    assert skipped == ()
    x = layer_input(signature, 2)
    close(in_reference(both, x), in_reference(factors, x), signature, 8)


@forms
def test_a_second_time_changes_nothing_and_says_where_the_factors_are(signature, choice):
    rule = DecomposeNode({"fc": choice})
    once, _, _ = apply_rules(dense_graph(signature), [rule])
    twice, applied, skipped = apply_rules(once, [rule])
    assert applied == ()
    assert twice is once
    first = "first" if isinstance(choice, Tucker2) else "down"
    assert skipped[0].reason == (
        f"the graph has no node of that name outside If and Loop bodies, but has its factor 'fc.{first}'"
    )


def test_the_same_rule_twice_in_one_go_decomposes_once():
    rule = DecomposeNode({"fc": SVD(rank=3)})
    _, applied, skipped = apply_rules(dense_graph(LINEAR), [rule, rule])
    assert (len(applied), len(skipped)) == (1, 1)
    assert "but has its factor 'fc.down'" in skipped[0].reason


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    "choice",
    [ChannelSVD(rank=4), ChannelSVD(rank=4, kernel_on="up"), SpatialSVD(rank=12), Tucker2(rank_in=4, rank_out=4)],
)
def test_auto_pad_stays_with_the_factors_that_span_pixels(word, choice, tmp_path):
    dense = conv(f'auto_pad="{word}", strides=[2,1]')
    factors, _, _ = apply_rules(dense, [DecomposeNode({"fc": choice})])
    merged, applied, _ = apply_rules(factors, [MergeFactors()])
    assert len(applied) == 1
    x = np.linspace(-1, 1, 324, dtype=np.float32).reshape(1, 4, 9, 9)
    exact = in_onnxruntime(dense, x, tmp_path / "dense.onnx")
    atol = sum_tolerance(np.float32, 4 * 9 + 12, scale=float(np.abs(exact).max()))
    for number, graph in enumerate((factors, merged)):
        got = in_onnxruntime(graph, x, tmp_path / f"{number}.onnx")
        np.testing.assert_allclose(got, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_its_orientation_and_its_bias_goes_to_the_last_factor(transposed):
    shape = (8, 4) if transposed else (4, 8)
    dense = model(
        f'["fc"] y = Gemm <transB={transposed}> (x, w, b)',
        outputs="float[batch,8] y",
        weights=(("w", shape), ("b", (1, 8))),
    )
    after, _, _ = apply_rules(dense, [DecomposeNode({"fc": SVD(rank=3)})])
    down, up = after.graph.node
    dims = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert (list(down.input), list(up.input)) == (["x", "fc.down.weight"], ["fc.down.output", "fc.up.weight", "b"])
    expected = ((3, 4), (8, 3)) if transposed else ((4, 3), (3, 8))
    assert (dims["fc.down.weight"], dims["fc.up.weight"]) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_factors_have_the_dtype_of_the_weight(dtype):
    graph = gemm()
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = code
    after, _, _ = apply_rules(graph, [DecomposeNode({"fc": SVD(rank=2)})])
    assert {tensor.data_type for tensor in after.graph.initializer} == {code}


def test_factors_of_another_make_are_taken():
    doubled = DecomposeNode({"fc": SVD(rank=4)}, lambda weight, choice: svd_factors(2 * weight, choice))
    after, _, _ = apply_rules(gemm(), [doubled])
    x = np.ones((2, 4), np.float32)
    one, other = in_reference(gemm(), x), in_reference(after, x)
    np.testing.assert_allclose(other, 2 * one, rtol=0, atol=sum_tolerance(np.float32, 8, scale=float(other.max())))


def test_a_shared_weight_stays_as_it_is_for_its_other_reader():
    graph = model(
        '["fc"] y = Gemm <transB=1> (x, w)',
        '["other"] z = Gemm <transB=1> (x, w)',
        outputs="float[batch,4] y, float[batch,4] z",
        weights=(("w", (4, 4)),),
    )
    after, applied, _ = apply_rules(graph, [DecomposeNode({"fc": SVD(rank=1)})])
    assert len(applied) == 1
    kept = next(tensor for tensor in after.graph.initializer if tensor.name == "w")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), numpy_helper.to_array(graph.graph.initializer[0]))


def test_factors_inherit_the_metadata_of_their_node():
    graph = gemm()
    graph.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc', 'linear']")
    graph.graph.node[0].doc_string = "about fc"
    after, _, _ = apply_rules(graph, [DecomposeNode({"fc": SVD(rank=2)})])
    assert [node.name for node in after.graph.node] == ["fc.down", "fc.up"]
    for node in after.graph.node:
        assert [(entry.key, entry.value) for entry in node.metadata_props] == [
            ("pkg.torch.onnx.name_scopes", "['', 'fc', 'linear']")
        ]
        assert node.doc_string == "about fc"


def test_a_choice_to_stay_dense_leaves_a_node_alone():
    graph = gemm()
    after, applied, skipped = apply_rules(graph, [DecomposeNode({"fc": KeepDense()})])
    assert after is graph
    assert applied == skipped == ()


def test_a_name_that_no_node_has_is_reported_beside_what_was_done():
    _, applied, skipped = apply_rules(gemm(), [DecomposeNode({"fd": SVD(rank=2), "fc": SVD(rank=2)})])
    assert [entry.node for entry in applied] == ["fc"]
    assert [(entry.node, entry.reason) for entry in skipped] == [
        ("fd", "the graph has no node of that name outside If and Loop bodies")
    ]


def test_a_node_inside_an_if_body_is_not_looked_at():
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[2,4] x, bool flag) => (float[2,3] y)
        <float[3,4] a = {1,2,3,4,5,6,7,8,9,10,11,12}> {
        y = If (flag) <
            then_branch = t () => (float[2,3] y1) { ["fc"] y1 = Gemm <transB=1> (x, a) },
            else_branch = e () => (float[2,3] y2) { y2 = Gemm <transB=1> (x, a) }> }"""
    reasons = refusals(onnx.parser.parse_model(text), SVD(rank=1))
    assert reasons == ["the graph has no node of that name outside If and Loop bodies"]


def test_a_node_of_another_kind_is_refused():
    graph = model('["fc"] y = Relu (x)')
    assert refusals(graph, SVD(rank=1)) == ["it is a Relu, and only Conv, Gemm and MatMul have factors"]


def test_a_weight_that_is_computed_is_refused():
    graph = model('["r"] v = Relu (w)', '["fc"] y = Gemm <transB=1> (x, v)', weights=(("w", (4, 4)),))
    assert refusals(graph, SVD(rank=1)) == [
        "its second input is no initializer of a matrix or a two-dimensional kernel"
    ]


def test_a_convolution_over_one_axis_is_refused():
    graph = model(
        '["fc"] y = Conv (x, w)',
        inputs="float[batch,4,9] x",
        outputs="float[batch,4,l] y",
        weights=(("w", (4, 4, 3)),),
    )
    expected = "its second input is no initializer of a matrix or a two-dimensional kernel"
    assert refusals(graph, ChannelSVD(rank=1)) == [expected]


def test_a_grouped_convolution_is_refused():
    assert refusals(conv("group=2", shape=(4, 2, 3, 3)), ChannelSVD(rank=1)) == ["'fc' is a grouped convolution"]


@pytest.mark.parametrize("attribute", ["alpha=0.5", "beta=0.5", "transA=1"])
def test_a_gemm_that_scales_or_transposes_is_refused(attribute):
    assert refusals(gemm(attribute, bias=", b"), SVD(rank=1)) == ["'fc' scales or transposes its input"]


@pytest.mark.parametrize("choice", [ChannelSVD(rank=1), SpatialSVD(rank=1), Tucker2(rank_in=1, rank_out=1)])
def test_a_form_for_kernels_is_refused_for_one_matrix(choice):
    expected = f"{choice} does not fit its kernel of 1×1, which takes svd"
    assert refusals(gemm(), choice) == refusals(conv(shape=(4, 4, 1, 1)), choice) == [expected]


def test_plain_svd_is_refused_for_a_kernel():
    expected = "svd 1 does not fit its kernel of 3×3, which takes channel_svd, spatial_svd or tucker2"
    assert refusals(conv(), SVD(rank=1)) == [expected]


@pytest.mark.parametrize(
    ("graph", "choice", "rank", "largest"),
    [
        (gemm(), SVD(rank=5), 5, 4),
        (conv(), ChannelSVD(rank=5), 5, 4),
        (conv(), SpatialSVD(rank=13), 13, 12),
        (conv(), Tucker2(rank_in=2, rank_out=6), 6, 4),
    ],
)
def test_a_rank_beyond_exact_factors_is_refused(graph, choice, rank, largest):
    expected = f"a rank of {rank} would exceed {largest}, at which factors of its shape are exact"
    assert refusals(graph, choice) == [expected]


def test_a_weight_that_is_not_finite_is_refused():
    graph = gemm()
    broken = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    broken[1, 2] = np.nan
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))
    assert refusals(graph, SVD(rank=1)) == ["its weight has values that are NaN or infinite"]


def test_a_weight_of_a_type_that_numpy_does_not_have_is_refused():
    graph = gemm()
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, tensor.dims, values.ravel()))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    assert refusals(graph, SVD(rank=1)) == ["the weight of 'fc' is bfloat16, which this rule does not handle"]


def test_a_factors_name_that_another_node_has_is_refused():
    graph = model('["fc"] h = Gemm <transB=1> (x, w)', '["fc.up"] y = Relu (h)', weights=(("w", (4, 4)),))
    assert refusals(graph, SVD(rank=1)) == ["the graph has a node 'fc.up' already"]
