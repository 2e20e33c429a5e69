import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrd_deploy.engines.onnx_moments import onnx_moments
from lrd_deploy.errors import BackendError, InputError
from lrd_deploy.export.onnx_layers import survey_onnx
from tests.tolerances import sum_tolerance

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "stem_w": RANDOM.standard_normal((4, 2, 3, 3)) / 4,
    "point_w": RANDOM.standard_normal((5, 4, 1, 1)),
    "tokens_w": RANDOM.standard_normal((5, 6)),
    "twin_w": RANDOM.standard_normal((5, 6)),
    "head_w": RANDOM.standard_normal((3, 6)),
}
NODES = (
    ("Conv", ["images", "stem_w"], "stem", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Relu", ["stem"], "relu", {}),
    ("Conv", ["relu", "point_w"], "point", {"strides": [2, 2]}),
    ("Reshape", ["point", "flat"], "columns", {}),
    ("Transpose", ["columns"], "rows", {"perm": [0, 2, 1]}),
    ("MatMul", ["rows", "tokens_w"], "tokens", {}),
    ("MatMul", ["rows", "twin_w"], "twin", {}),
    ("Add", ["tokens", "twin"], "both", {}),
    ("ReduceMean", ["both", "axis"], "mean", {"keepdims": 0}),
    ("Gemm", ["mean", "head_w"], "head", {"transB": 1}),
)


def model_of(nodes, weights, inputs, outputs):
    """Nodes are named after their outputs; weights and values are float32."""
    constants = {name: array.astype(np.float32) for name, array in weights.items()}
    constants |= {"flat": np.array([0, 5, -1]), "axis": np.array([1])}
    graph = helper.make_graph(
        [helper.make_node(kind, reads, [name], name=name, **attributes) for kind, reads, name, attributes in nodes],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def model():
    return model_of(NODES, WEIGHTS, {"images": ("batch", 2, 9, 9)}, ["head"])


@pytest.fixture
def batches():
    random = np.random.default_rng(1)
    return [{"images": random.standard_normal((size, 2, 9, 9)).astype(np.float32)} for size in (3, 5)]


def convolved(x, weight, stride, padding):
    """A convolution in float64, tap by tap."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    down, across = (size - kernel + 1 for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True))
    return sum(
        np.einsum("bihw,oi->bohw", x[:, :, i : i + down : stride, j : j + across : stride], weight[:, :, i, j])
        for i, j in np.ndindex(*weight.shape[2:])
    )  # (batch, out, height, width)


def layer_inputs(images):
    """What every layer of the model reads, in float64."""
    relu = np.maximum(convolved(images, WEIGHTS["stem_w"], 2, 1), 0)
    point = convolved(relu, WEIGHTS["point_w"], 2, 0)
    rows = point.reshape(*point.shape[:2], -1).transpose(0, 2, 1)  # (batch, tokens, in)
    mean = (rows @ (WEIGHTS["tokens_w"] + WEIGHTS["twin_w"])).mean(1)
    return {"stem": images, "point": relu[:, :, ::2, ::2], "tokens": rows, "twin": rows, "head": mean}


def second_moment(inputs):
    vectors = inputs if inputs.ndim < 4 else inputs.transpose(0, 2, 3, 1)
    vectors = vectors.reshape(-1, vectors.shape[-1])  # (positions, in)
    return vectors.T @ vectors / len(vectors), len(vectors)


def tap_correlation(images, axis):
    """How the three rows or columns that a 3×3 kernel reads correlate, with padding 1."""
    padded = np.pad(images, [(0, 0)] * axis + [(1, 1)] + [(0, 0)] * (3 - axis))
    taps = np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, 3, axis), -1, 0).reshape(3, -1)  # (taps, rest)
    products = taps @ taps.T
    return products * 3 / np.trace(products)


def tolerance(found):
    """Rounding of float32 activations through four layers, the longest sum of 18 products, at the moment's size."""
    return sum_tolerance(np.float32, 4 * 18, float(np.abs(found).max()))


def test_moments_are_those_of_the_arrays_that_the_layers_read(model, batches):
    found = onnx_moments(model, survey_onnx(model), batches)
    expected = layer_inputs(np.concatenate([batch["images"] for batch in batches]).astype(np.float64))
    assert list(found) == list(expected)
    for name, inputs in expected.items():
        channels, positions = second_moment(inputs)
        assert found[name].positions == positions
        np.testing.assert_allclose(found[name].channels, channels, rtol=0, atol=tolerance(channels))


def test_the_taps_of_a_kernel_are_correlated_and_one_tap_is_not(model, batches):
    found = onnx_moments(model, survey_onnx(model), batches)
    images = np.concatenate([batch["images"] for batch in batches]).astype(np.float64)
    for axis, taps in ((2, found["stem"].height), (3, found["stem"].width)):
        np.testing.assert_allclose(taps, tap_correlation(images, axis), rtol=0, atol=tolerance(taps))
    assert found["point"].height.shape == (1, 1)


def test_how_the_samples_are_batched_does_not_matter(model, batches):
    layers = survey_onnx(model)
    together = [{"images": np.concatenate([batch["images"] for batch in batches])}]
    one, other = onnx_moments(model, layers, batches), onnx_moments(model, layers, together)
    for name in one:
        np.testing.assert_allclose(
            one[name].channels, other[name].channels, rtol=0, atol=tolerance(other[name].channels)
        )


def test_refused_layers_have_no_moment_and_the_model_is_left_as_it_was(model, batches):
    before = model.SerializeToString()
    found = onnx_moments(model, survey_onnx(model, skip=("t*",)), batches)
    assert list(found) == ["stem", "point", "head"]
    assert model.SerializeToString() == before


@pytest.fixture
def fetched(monkeypatch):
    """The names of the outputs of every session that is opened."""
    opened = []
    session_class = onnxruntime.InferenceSession

    def record(*args, **keywords):
        session = session_class(*args, **keywords)
        opened.append([output.name for output in session.get_outputs()])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    return opened


def test_a_value_that_two_nodes_read_is_fetched_once_and_a_graph_input_never(model, batches, fetched):
    found = onnx_moments(model, survey_onnx(model), batches)
    assert fetched == [["relu", "rows", "mean"]]
    assert np.array_equal(found["tokens"].channels, found["twin"].channels)


def test_a_model_whose_layers_read_only_its_inputs_is_not_run(model, batches, fetched):
    onnx_moments(model, survey_onnx(model)[:1], batches)
    assert fetched == []


def test_a_deep_model_is_run_in_passes_of_sixteen_values(fetched):
    nodes = [("MatMul", [f"v{n - 1}" if n else "x", "w"], f"v{n}", {}) for n in range(34)]
    model = model_of(nodes, {"w": np.eye(2)}, {"x": ("batch", 2)}, ["v33"])
    x = np.array([[1.0, 2.0]], np.float32)
    found = onnx_moments(model, survey_onnx(model), [{"x": x}])
    assert [len(outputs) for outputs in fetched] == [15, 16, 2]
    assert len(found) == 34
    assert all(np.array_equal(moment.channels, x.T @ x) for moment in found.values())


def test_no_batch_is_refused(model):
    with pytest.raises(InputError, match="no calibration data; at least one batch"):
        onnx_moments(model, survey_onnx(model), [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_with_the_layer(model, batches, bad):
    batches[1]["images"][0, 0, 0, 0] = bad
    with pytest.raises(InputError, match=r"at the layer 'stem': 1 values that are NaN or infinite"):
        onnx_moments(model, survey_onnx(model), batches)


def test_an_overflow_inside_the_model_is_refused_with_the_layer(batches):
    weights = WEIGHTS | {"point_w": np.full((5, 4, 1, 1), np.finfo(np.float32).max)}
    model = model_of(NODES, weights, {"images": ("batch", 2, 9, 9)}, ["head"])
    with pytest.raises(InputError, match=r"at the layer 'tokens': .* NaN or infinite"):
        onnx_moments(model, survey_onnx(model), batches)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"pixels": (1, 2, 9, 9)}, r"pixels \(1, 2, 9, 9\)"),
        ({"images": (1, 2, 9, 9), "labels": (1,)}, r"images \(1, 2, 9, 9\), labels \(1\)"),
        ({"images": (1, 3, 9, 9)}, r"images \(1, 3, 9, 9\)"),
        ({"images": (2, 9, 9)}, r"images \(2, 9, 9\)"),
        ({}, "no array"),
    ],
)
def test_arrays_that_are_not_the_models_inputs_are_refused(model, batches, arrays, found):
    wrong = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    with pytest.raises(InputError, match=rf"batch 3 of the calibration data: {found}; images \(batch, 2, 9, 9\)"):
        onnx_moments(model, survey_onnx(model), [*batches, wrong])


def test_arrays_of_another_type_are_refused_by_the_runtime(model, batches):
    with pytest.raises(BackendError, match=r"running the model with ONNX Runtime: .*double"):
        onnx_moments(model, survey_onnx(model), [{"images": batches[0]["images"].astype(np.float64)}])


def test_layers_of_another_model_are_refused(model, batches):
    layers = survey_onnx(model)
    model.graph.node[0].name = "renamed"
    with pytest.raises(InputError, match=r"at the layer 'stem': no node of this name in the graph 'net'"):
        onnx_moments(model, layers, batches)
