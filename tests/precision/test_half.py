import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.precision.half import to_half
from tests.precision.graphs import checked, computed, graph_of, images, network, nodes_by_name, normal, relative

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSETS = {"fp16": 20, "bf16": 22}
both = pytest.mark.parametrize("precision", TYPES)


def vector(nodes, weights=None, outputs=("y",), opset=20):
    ports = dict.fromkeys(outputs, ("batch", 4))
    return graph_of(nodes, weights or {}, {"x": ("batch", 4)}, ports, opset)


def element_types(model):
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in known}


def row(*values):
    return {"x": np.float32([values])}


@both
def test_every_node_computes_in_half_and_the_ports_keep_their_types(precision):
    model = network(OPSETS[precision])
    found = to_half(model, precision, {})
    assert (found.kept, found.converted) == ({}, tuple(range(9)))
    types = element_types(checked(found.model))
    assert (types["x"], types["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    for name, node in nodes_by_name(found.model).items():
        if node.op_type != "Cast":
            assert {types[value] for value in node.output} == {TYPES[precision]}, name
    assert {tensor.data_type for tensor in found.model.graph.initializer} == {TYPES[precision]}
    assert sum(node.op_type == "Cast" for node in found.model.graph.node) == 2  # in and out


@both
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_outputs_move_no_further_than_rounding_explains(precision, seed):
    model = network(OPSETS[precision])
    converted = to_half(model, precision, {}).model
    one, other = (computed(found, images(3, seed))[0] for found in (model, converted))
    assert 0 < relative(one, other) <= explained_difference(model, converted)


@both
def test_any_choice_of_nodes_gives_a_valid_graph_with_the_same_outputs(precision):
    model = network(OPSETS[precision])
    reference = computed(model, images())[0]
    for chosen in range(0, 2**9, 7):
        keep = {place: "asked" for place in range(9) if chosen >> place & 1}
        found = to_half(model, precision, keep)
        assert found.kept == keep
        got = computed(checked(found.model), images())[0]
        assert relative(reference, got) <= explained_difference(model, to_half(model, precision, {}).model)
    assert computed(to_half(model, precision, dict.fromkeys(range(9), "asked")).model, images())[0].tolist() == (
        reference.tolist()
    )


@both
def test_an_output_that_is_read_inside_too_keeps_its_type_for_the_caller(precision):
    nodes = [("Neg", ("x",), ("y",), {}), ("Relu", ("y",), ("z",), {}), ("Abs", ("y",), ("v",), {})]
    found = to_half(vector(nodes, outputs=("y", "z", "v")), precision, {})
    checked(found.model)
    y, z, v = computed(found.model, row(1, -2, 3, -4))
    assert (y.dtype, z.dtype, v.dtype) == (np.float32, np.float32, np.float32)
    np.testing.assert_array_equal(y, [[-1, 2, -3, 4]])
    np.testing.assert_array_equal(z, [[0, 2, 0, 4]])


@both
def test_a_value_between_two_float32_nodes_is_never_rounded(precision):
    large, small = np.float32(2.0**17), np.float32(2.0**-17)  # beyond FP16 in between
    nodes = [("Mul", ("x", "a"), ("h",), {}), ("Mul", ("h", "b"), ("g",), {}), ("Neg", ("g",), ("y",), {})]
    found = to_half(vector(nodes, {"a": large, "b": small}), precision, {0: "asked", 1: "asked"})
    assert computed(checked(found.model), row(1, 2, 3, 4))[0].tolist() == [[-1, -2, -3, -4]]


def test_a_constant_that_both_kinds_of_node_read_is_rounded_for_one_of_them_only():
    third = np.float32(1 / 3)
    nodes = [("Mul", ("x", "c"), ("y",), {}), ("Mul", ("x", "c"), ("z",), {})]
    found = to_half(vector(nodes, {"c": third}, outputs=("y", "z")), "fp16", {0: "asked"})
    y, z = computed(checked(found.model), row(1, 1, 1, 1))
    assert y[0, 0] == third
    assert z[0, 0] == np.float16(third)


def test_an_operator_without_the_type_stays_in_float32_with_the_reason():
    nodes = [("Abs", ("x",), ("a",), {}), ("TopK", ("a", "k"), ("top", "at"), {}), ("Neg", ("top",), ("y",), {})]
    model = graph_of(nodes, {"k": np.int64([2])}, {"x": ("batch", 4)}, {"y": ("batch", 2)}, opset=22)
    found = to_half(model, "bf16", {})
    assert found.kept == {1: "TopK of opset 11 takes no BF16"}
    assert computed(checked(found.model), row(1, 2, 3, 4))[0].tolist() == [[-4, -3]]
    assert to_half(model, "fp16", {}).kept == {}


def masked_attention(opset):
    """Softmax as PyTorch guards it where a mask may hide everything: what is NaN becomes 0."""
    return vector(
        [
            ("Softmax", ("x",), ("shares",), {}),
            ("IsNaN", ("shares",), ("hidden",), {}),
            ("Where", ("hidden", "zero", "shares"), ("y",), {}),
        ],
        {"zero": np.float32(0)},
        opset=opset,
    )


def test_isnan_stays_in_float32_in_bf16_alone():
    kept = to_half(masked_attention(22), "bf16", {}).kept
    assert kept == {1: "TensorRT-RTX 1.7 does not compile IsNaN in BF16"}
    assert to_half(masked_attention(20), "fp16", {}).kept == {}


def test_an_operator_of_another_domain_stays_in_float32():
    model = vector([("Neg", ("x",), ("h",), {}), ("Relu", ("h",), ("y",), {})])
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    found = to_half(model, "fp16", {})
    assert found.kept == {1: "'Relu' of 'com.example' is no operator whose types are known"}
    assert nodes_by_name(found.model)["y"].input == ["h"]


def test_what_a_body_reads_keeps_its_name_and_type():
    then, other = (
        helper.make_graph(
            [helper.make_node(kind, ["h"], [f"{kind}_out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, ["batch", 4])],
        )
        for kind in ("Neg", "Abs")
    )
    nodes = [
        ("Sqrt", ("x",), ("h",), {}),
        ("If", ("flag",), ("g",), {"then_branch": then, "else_branch": other}),
        ("Relu", ("g",), ("y",), {}),
    ]
    found = to_half(vector(nodes, {"flag": np.array(True)}), "fp16", {})
    assert found.kept == {1: "it has a body of its own"}
    assert computed(checked(found.model), row(1, 4, 9, 16))[0].tolist() == [[0, 0, 0, 0]]


def test_sequences_stay_in_float32():
    nodes = [
        ("Neg", ("x",), ("h",), {}),
        ("SequenceConstruct", ("h", "x"), ("pair",), {}),
        ("SequenceAt", ("pair", "first"), ("g",), {}),
        ("Abs", ("g",), ("y",), {}),
    ]
    found = to_half(vector(nodes, {"first": np.int64(0)}), "fp16", {})
    assert found.kept == dict.fromkeys((1, 2), "it handles sequences or optional values")
    assert computed(checked(found.model), row(1, 2, 3, 4))[0].tolist() == [[1, 2, 3, 4]]


def test_an_output_whose_type_is_another_matter_stays_in_float32():
    nodes = [("RandomNormalLike", ("x",), ("n",), {}), ("Add", ("x", "n"), ("y",), {})]
    found = to_half(vector(nodes), "fp16", {})
    assert found.kept == {0: "the type of what it gives out does not follow from what it reads"}
    checked(found.model)


def test_what_is_float32_by_definition_stays_so_in_a_half_node():
    nodes = [("Resize", ("x", "", "scales"), ("y",), {"mode": "nearest"})]
    model = graph_of(nodes, {"scales": np.float32([1, 1, 2, 2])}, {"x": (1, 1, 2, 2)}, {"y": (1, 1, 4, 4)})
    found = to_half(model, "fp16", {})
    assert (found.kept, found.converted) == ({}, (0,))
    assert nodes_by_name(checked(found.model))["y"].input[2] == "scales"


@pytest.mark.parametrize("where", ["Constant", "Identity", "Transpose"])
def test_weights_behind_harmless_nodes_are_rounded_once(where):
    weight = normal(4, 4)
    stored = weight.T if where == "Transpose" else weight
    before = ("Constant", (), ("w",), {"value": onnx.numpy_helper.from_array(weight)})
    if where != "Constant":
        before = (where, ("stored",), ("w",), {})
    model = vector([before, ("MatMul", ("x", "w"), ("y",), {})], {} if where == "Constant" else {"stored": stored})
    found = checked(to_half(model, "fp16", {}).model)
    (tensor,) = found.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), weight.astype(np.float16))
    assert [node.op_type for node in found.graph.node] == ["Cast", "MatMul", "Cast"]


def test_new_names_give_way_to_those_that_are_taken():
    nodes = [("Neg", ("x",), ("x.fp16",), {}), ("Sub", ("x", "x.fp16"), ("y",), {})]
    found = to_half(vector(nodes), "fp16", {0: "asked"})
    assert computed(checked(found.model), row(1, 2, 3, 4))[0].tolist() == [[2, 4, 6, 8]]


def test_nodes_keep_their_metadata_and_the_model_is_left_as_it_was():
    model = network()
    model.graph.node[0].metadata_props.add(key="module", value="stem")
    before = model.SerializeToString()
    found = to_half(model, "fp16", {})
    assert nodes_by_name(found.model)["stem"].metadata_props[0].value == "stem"
    assert model.SerializeToString() == before
