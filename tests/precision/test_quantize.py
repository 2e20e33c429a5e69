import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from lrd_deploy.engines.onnx_ranges import onnx_magnitudes
from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.precision.quantize import quantisable, quantised_weight, to_int8, values_to_measure, weight_scales
from tests.precision.graphs import (
    checked,
    computed,
    constant,
    graph_of,
    images,
    maker,
    network,
    nodes_by_name,
    normal,
    relative,
)

STYLES = ("int8", "uint8")
either = pytest.mark.parametrize("style", STYLES)
LAYERS = ("stem", "down", "up", "y")


def magnitudes(model, batch=None):
    return onnx_magnitudes(model, values_to_measure(model), [batch or images(8)], "minmax", 0.0)[0]


def quantised(model, style="int8", keep=None):
    return to_int8(model, magnitudes(model), style, keep or {})


def operators(model):
    return [node.op_type for node in model.graph.node]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), axis=st.integers(0, 1), exponent=st.integers(-20, 20))
def test_a_weight_comes_back_within_half_a_step_of_its_channel(seed, axis, exponent):
    array = (np.random.default_rng(seed).standard_normal((5, 7)) * 2.0**exponent).astype(np.float32)
    scales = weight_scales(array, axis)
    integers = quantised_weight(array, scales, axis)
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 127
    along = scales[:, None] if axis == 0 else scales[None, :]
    error = np.abs(integers.astype(np.float64) * along - array)
    assert (error <= along / 2 * (1 + 127 * np.finfo(np.float32).eps)).all()


def test_a_channel_of_zeros_stays_one():
    array = np.float32([[0, 0], [1, -2]])
    scales = weight_scales(array, 0)
    np.testing.assert_array_equal(quantised_weight(array, scales, 0)[0], [0, 0])
    assert scales[0] == 1


@either
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_outputs_move_no_further_than_rounding_explains(style, seed):
    model, batch = network(), images(8, seed)
    found = to_int8(model, magnitudes(model, batch), style, {}).model
    one, other = (computed(graph, batch)[0] for graph in (model, found))
    assert 0 < relative(one, other) <= explained_difference(model, found)


def test_everything_is_symmetric_int8_and_no_bias_is_touched():
    model = network()
    found = checked(quantised(model).model)
    for node in found.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = constant(found, node.input[2])
            assert (zero.dtype, not zero.any()) == (np.int8, True)
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in found.graph.initializer)
    for name in ("stem", "up", "y"):
        before, after = (nodes_by_name(graph)[name].input[2] for graph in (model, found))
        assert before == after
        np.testing.assert_array_equal(constant(model, before), constant(found, after))


def test_weights_are_stored_as_int8_with_one_scale_per_output_channel():
    model = network()
    found = quantised(model).model
    for name, channels in zip(LAYERS, (8, 4, 8, 5), strict=True):
        reader = maker(found, nodes_by_name(found)[name].input[1])
        assert (reader.op_type, reader.attribute[0].i) == ("DequantizeLinear", 0)
        weight, scales, zeros = (constant(found, source) for source in reader.input)
        assert (weight.dtype, scales.shape, zeros.shape) == (np.int8, (channels,), (channels,))
        own = constant(model, nodes_by_name(model)[name].input[1])
        expected = np.abs(own).reshape(channels, -1).max(axis=1) / np.float32(127)
        np.testing.assert_allclose(scales, expected, rtol=np.finfo(np.float32).eps)


PRODUCTS = {
    "Gemm": ("Gemm", {}, (6, 3), 1),
    "Gemm, turned": ("Gemm", {"transB": 1}, (3, 6), 0),
    "MatMul": ("MatMul", {}, (6, 3), 1),
}


@pytest.mark.parametrize(("operator", "attributes", "shape", "axis"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_channels_of_a_product_are_those_of_its_output(operator, attributes, shape, axis):
    weight = normal(*shape)
    nodes = [(operator, ("x", "w"), ("y",), attributes)]
    model = graph_of(nodes, {"w": weight}, {"x": ("batch", 6)}, {"y": ("batch", 3)})
    x = {"x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)}
    found = checked(to_int8(model, magnitudes(model, x), "int8", {}).model)
    reader = maker(found, nodes_by_name(found)["y"].input[1])
    assert reader.attribute[0].i == axis
    np.testing.assert_allclose(
        constant(found, reader.input[1]), np.abs(weight).max(axis=1 - axis) / 127, rtol=np.finfo(np.float32).eps
    )
    assert relative(computed(model, x)[0], computed(found, x)[0]) <= explained_difference(model, found)


def test_between_two_factors_there_is_one_pair():
    found = quantised(network()).model
    dequantise = maker(found, nodes_by_name(found)["up"].input[0])
    quantise = maker(found, dequantise.input[0])
    assert (quantise.op_type, dequantise.op_type) == ("QuantizeLinear", "DequantizeLinear")
    assert quantise.input[0] == "down"
    assert sum("down" in node.input for node in found.graph.node) == 1


@either
def test_readers_of_one_value_share_its_pair_and_nodes_of_one_weight_share_its_integers(style):
    nodes = [("MatMul", ("x", "w"), ("y",), {}), ("MatMul", ("x", "w"), ("z",), {})]
    ports = {"y": ("batch", 3), "z": ("batch", 3)}
    model = graph_of(nodes, {"w": normal(6, 3)}, {"x": ("batch", 6)}, ports)
    found = checked(to_int8(model, {"x": 2.0}, style, {}).model)
    assert operators(found).count("QuantizeLinear") == 1
    assert operators(found).count("DequantizeLinear") == 2


def test_for_onnx_runtime_convolutions_give_integers_out_after_their_relu():
    found = checked(quantised(network(), "uint8").model)
    readers = {
        name: [node.op_type for node in found.graph.node if name in node.input]
        for name in ("stem", "stem_relu", "down", "up", "sum", "relu")
    }
    assert readers == {
        "stem": ["Relu"],
        "stem_relu": ["QuantizeLinear"],  # the sum reads what was rounded too
        "down": ["QuantizeLinear"],
        "up": ["QuantizeLinear"],
        "sum": ["Relu"],
        "relu": ["GlobalAveragePool"],
    }
    zeros = {value: constant(found, f"{value}.zero_point") for value in ("x", "stem_relu", "down")}
    assert {name: (zero.dtype, int(zero)) for name, zero in zeros.items()} == {
        "x": (np.uint8, 128),
        "stem_relu": (np.uint8, 0),
        "down": (np.uint8, 128),
    }


def test_uint8_around_128_has_the_values_of_int8_around_zero():
    nodes = [("MatMul", ("x", "w"), ("y",), {})]
    model = graph_of(nodes, {"w": normal(6, 3)}, {"x": ("batch", 6)}, {"y": ("batch", 3)})
    x = {"x": np.random.default_rng(0).uniform(-1, 1, (8, 6)).astype(np.float32)}
    one, other = (computed(to_int8(model, {"x": 1.0}, style, {}).model, x)[0] for style in STYLES)
    np.testing.assert_array_equal(one, other)


@either
def test_an_output_that_a_layer_gives_is_not_rounded_for_those_who_read_it_as_it_is(style):
    nodes = [("Conv", ("x", "w"), ("y",), {}), ("Neg", ("y",), ("z",), {})]
    ports = {"y": ("batch", 4, 6, 6), "z": ("batch", 4, 6, 6)}
    model = graph_of(nodes, {"w": normal(4, 3, 1, 1)}, {"x": ("batch", 3, 6, 6)}, ports)
    found = checked(quantised(model, style).model)
    assert maker(found, "y").op_type == "Conv"
    assert maker(found, "z").input == ["y"]


def test_what_is_kept_stays_as_it_was():
    found = quantised(network(), keep={0: "asked"})
    assert found.kept == {0: "asked"}
    assert list(nodes_by_name(found.model)["stem"].input) == ["x", "w1", "b1"]


LEFT = {
    "two activations": (("MatMul", ("x", "h"), ("y",), {}), {}, "it has no constant weight"),
    "a stack of matrices": (("MatMul", ("x", "w"), ("y",), {}), {"w": normal(1, 4, 3)}, "its weight has 3 dimensions"),
    "NaN": (
        ("MatMul", ("x", "w"), ("y",), {}),
        {"w": np.float32([[np.nan]] * 4)},
        "its weight has values that are NaN or infinite",
    ),
}


@pytest.mark.parametrize(("node", "weights", "reason"), LEFT.values(), ids=LEFT)
def test_what_int8_cannot_take_is_left_with_the_reason(node, weights, reason):
    nodes = [("Transpose", ("x",), ("h",), {}), node]
    model = graph_of(nodes, weights, {"x": (4, 4)}, {"y": None})
    assert quantisable(model) == ([], {1: reason})


def test_a_node_whose_input_was_always_zero_is_left():
    found = to_int8(network(), {**magnitudes(network()), "flat": 0.0}, "int8", {})
    assert found.kept == {8: "the value that it reads, 'flat', was always zero"}


def test_metadata_survives_and_the_model_is_left_as_it_was():
    model = network()
    model.graph.node[0].metadata_props.add(key="module", value="stem")
    before = model.SerializeToString()
    assert nodes_by_name(quantised(model).model)["stem"].metadata_props[0].value == "stem"
    assert model.SerializeToString() == before
