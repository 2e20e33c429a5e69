import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.export.onnx_layers import survey_onnx
from lrd_deploy.export.torch_export import export_onnx
from lrd_deploy.models.survey import survey
from lrd_deploy.records import LayerSignature

BATCH = "batch"
SPARE = helper.make_node("Gemm", ["spare_x", "spare_w"], ["spare_y"], name="spare")  # so that something is left


def array(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def graph_of(nodes, weights, inputs, *, outputs=(), overridable=()):
    """A model of these nodes; shapes of inputs by name, arrays of weights by name, every end of a chain an output."""
    ends = outputs or [node.output[0] for node in nodes if not any(node.output[0] in other.input for other in nodes)]
    fed = {**inputs, **{name: weights[name].shape for name in overridable}}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in fed.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)], ir_version=10
    )


def survey_beside_spare(nodes, weights, inputs, *, skip=(), **details):
    """Layers by name of a graph that also holds a Gemm which can be factorised."""
    model = graph_of([*nodes, SPARE], weights | {"spare_w": array(4, 4)}, inputs | {"spare_x": (BATCH, 4)}, **details)
    return {layer.name: layer for layer in survey_onnx(model, skip=skip)}


def refusal_of(node, weight, shape, **details):
    """The refusal of one node `n` that reads `x` and the weight `w`."""
    return survey_beside_spare([node], {"w": weight}, {"x": shape}, **details)["n"].refusal


def conv(name="n", **attributes):
    return helper.make_node("Conv", ["x", "w"], ["y"], name=name, **attributes)


def gemm(name="n", **attributes):
    return helper.make_node("Gemm", ["x", "w"], ["y"], name=name, **attributes)


def matmul(name="n"):
    return helper.make_node("MatMul", ["x", "w"], ["y"], name=name)


IMAGE = (BATCH, 4, 8, 8)


class TestAgainstTheModule:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=(1, 0), bias=False)
            self.pointwise = nn.Conv2d(16, 24, 1, stride=2)
            self.depthwise = nn.Conv2d(24, 24, 3, padding="same", groups=24, dilation=2)
            self.tokens = nn.Linear(24, 20)
            self.head = nn.Linear(20, 5, bias=False)

        def forward(self, x):
            x = self.depthwise(torch.relu(self.pointwise(torch.relu(self.conv(x))))).flatten(2).mT
            return self.head(torch.relu(self.tokens(x)).mean(1))

    def test_the_file_gives_the_layers_that_the_module_gives(self, tmp_path):
        torch.manual_seed(0)
        net, example = self.Net().eval(), torch.randn(2, 3, 19, 17)
        export_onnx(net, example, tmp_path / "m.onnx", opset=20)
        found = survey_onnx(read_model(tmp_path / "m.onnx"))
        expected = survey(net, example)
        assert [(layer.name, layer.signature, layer.refusal, layer.calls) for layer in found] == [
            (layer.name, layer.signature, layer.refusal, layer.calls) for layer in expected
        ]
        for one, other in zip(found, expected, strict=True):
            assert one.weight().dtype == other.weight().dtype
            assert np.array_equal(one.weight(), other.weight())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_weight_is_read_as_out_by_in(trans_b, dtype):
    weight = array(3, 4, dtype=dtype)
    layer = survey_beside_spare(
        [gemm(transB=trans_b)], {"w": weight if trans_b else weight.T.copy()}, {"x": (BATCH, 4)}
    )["n"]
    assert layer.signature == LayerSignature(kind="linear", in_channels=4, out_channels=3, spatial=())
    assert layer.refusal is None
    assert np.array_equal(layer.weight(), weight)


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [((BATCH, 7, 4), (7,)), ((BATCH, 4), ()), ((BATCH, 3, 5, 4), (3, 5)), ((2, 7, 4), (7,))],
)
def test_a_matmul_is_a_linear_layer_at_its_tokens(shape, spatial):
    layer = survey_beside_spare([matmul()], {"w": array(4, 3)}, {"x": shape})["n"]
    assert layer.signature == LayerSignature(kind="linear", in_channels=4, out_channels=3, spatial=spatial)
    assert layer.may_be_factorised
    assert np.array_equal(layer.weight(), array(4, 3).T)


def test_an_open_number_of_tokens_is_that_of_the_inputs():
    graph = graph_of([matmul()], {"w": array(4, 3)}, {"x": (BATCH, "sequence", 4)})
    with pytest.raises(InputError, match=r"the size of its input is not fixed \(sequence\)"):
        survey_onnx(graph)
    (layer,) = survey_onnx(graph, shapes={"x": (5, 7, 4)})
    assert layer.signature == LayerSignature(kind="linear", in_channels=4, out_channels=3, spatial=(7,))
    assert layer.may_be_factorised


def test_a_convolution_without_attributes_has_those_of_the_standard():
    layer = survey_beside_spare([conv()], {"w": array(2, 4, 3, 1)}, {"x": IMAGE})["n"]
    assert layer.signature == LayerSignature(
        kind="conv2d", in_channels=4, out_channels=2, kernel=(3, 1), spatial=(8, 8)
    )
    assert np.array_equal(layer.weight(), array(2, 4, 3, 1))


def test_auto_pad_valid_is_no_padding():
    layer = survey_beside_spare([conv(auto_pad="VALID")], {"w": array(2, 4, 3, 3)}, {"x": IMAGE})["n"]
    assert (layer.refusal, layer.signature.padding) == (None, (0, 0))


def test_sizes_are_inferred_through_a_reshape_with_a_symbolic_batch():
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=0, end=1),
        helper.make_node("Concat", ["size", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "w"], ["y"], name="n"),
    ]
    weights = {"rest": np.array([16, 16]), "w": array(16, 3)}
    assert survey_beside_spare(nodes, weights, {"x": IMAGE})["n"].signature.spatial == (16,)


def test_a_constant_node_is_a_weight_too():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array(4, 3)))
    layer = survey_beside_spare([constant, matmul()], {}, {"x": (BATCH, 4)})["n"]
    assert layer.may_be_factorised
    assert np.array_equal(layer.weight(), array(4, 3).T)


def test_a_weight_may_serve_two_nodes():
    twin = helper.make_node("MatMul", ["y", "w"], ["z"], name="twin")
    layers = survey_beside_spare([matmul(), twin], {"w": array(4, 4)}, {"x": (BATCH, 4)})
    assert list(layers) == ["n", "twin", "spare"]
    assert all(layer.may_be_factorised for layer in layers.values())


def test_a_product_of_two_activations_is_no_layer():
    product = helper.make_node("MatMul", ["x", "z"], ["y"], name="n")
    assert list(survey_beside_spare([product], {}, {"x": (BATCH, 2, 4), "z": (BATCH, 4, 2)})) == ["spare"]


def test_operators_of_other_domains_are_no_layers():
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", domain="elsewhere")
    assert list(survey_beside_spare([node], {"w": array(2, 4, 3, 3)}, {"x": IMAGE})) == ["spare"]


def test_bodies_of_if_are_not_looked_at():
    branches = {
        branch: helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [branch], name="inside")],
            branch,
            [],
            [helper.make_tensor_value_info(branch, TensorProto.FLOAT, None)],
        )
        for branch in ("then_branch", "else_branch")
    }
    choice = helper.make_node("If", ["flag"], ["y"], name="n", **branches)
    after = helper.make_node("MatMul", ["y", "w"], ["z"], name="after")
    layers = survey_beside_spare([choice, after], {"w": array(4, 4), "flag": np.array(True)}, {"x": (BATCH, 4)})
    assert {name: layer.refusal for name, layer in layers.items()} == {"after": None, "spare": None}


@pytest.mark.parametrize(
    ("attributes", "weight", "reason"),
    [
        ({"group": 2}, array(2, 2, 3, 3), "grouped convolution (2 groups)"),
        ({"pads": [0, 0, 1, 1]}, array(2, 4, 3, 3), "its padding is uneven (0, 0, 1, 1)"),
        (
            {"auto_pad": "SAME_UPPER"},
            array(2, 4, 3, 3),
            "its padding follows from its input's size (auto_pad SAME_UPPER)",
        ),
        (
            {"auto_pad": "SAME_LOWER"},
            array(2, 4, 3, 3),
            "its padding follows from its input's size (auto_pad SAME_LOWER)",
        ),
    ],
)
def test_convolutions_without_factors_are_refused(attributes, weight, reason):
    layer = survey_beside_spare([conv(**attributes)], {"w": weight}, {"x": IMAGE})["n"]
    assert layer.refusal == reason
    assert (layer.signature is not None) == ("group" in attributes)


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_over_other_than_two_axes_are_refused(axes):
    found = refusal_of(conv(), array(2, 4, *[3] * axes), (BATCH, 4, *[8] * axes))
    assert found == f"Conv{axes}d has no factorised form here"


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"alpha": 0.5}, "it scales its product (alpha 0.5)"),
        ({"beta": 2.0}, "it scales its bias (beta 2)"),
        ({"transA": 1}, "it transposes its input (transA 1)"),
    ],
)
def test_a_gemm_that_does_more_than_multiply_is_refused(attributes, reason):
    assert refusal_of(gemm(**attributes), array(4, 4), (4, 4)) == reason


@pytest.mark.parametrize(("shape", "dimensions"), [((2, 4, 4), 3), ((4,), 1)])
def test_a_matmul_by_anything_but_a_matrix_is_refused(shape, dimensions):
    layer = survey_beside_spare([matmul()], {"w": array(*shape)}, {"x": (2, 3, 4)})["n"]
    assert (layer.refusal, layer.signature) == (f"its weight has {dimensions} dimensions, not 2", None)


def test_weights_that_are_no_floats_are_refused():
    found = refusal_of(matmul(), array(4, 4, dtype=np.int32), (BATCH, 4))
    assert found == "its weight is int32, not float16, float32 or float64"


@pytest.mark.parametrize("node", [conv(), gemm()])
def test_weights_that_are_fed_are_refused(node):
    shape = (2, 4, 3, 3) if node.op_type == "Conv" else (4, 2)
    layer = survey_beside_spare([node], {}, {"x": IMAGE if len(shape) == 4 else (BATCH, 4), "w": shape})["n"]
    assert (layer.refusal, layer.signature) == ("its weight is not a constant", None)
    with pytest.raises(InputError, match=r"reading the weight of the node 'n': its weight is not a constant"):
        layer.weight()


def test_weights_that_nodes_compute_from_constants_are_refused():
    nodes = [helper.make_node("Neg", ["v"], ["w"]), matmul()]
    layer = survey_beside_spare(nodes, {"v": array(4, 3)}, {"x": (BATCH, 4)})["n"]
    assert layer.refusal == "its weight is not a constant"


def test_weights_are_read_through_identity_and_transpose():
    nodes = [
        helper.make_node("Identity", ["v"], ["i"]),
        helper.make_node("Transpose", ["i"], ["w"], perm=[1, 0]),
        matmul(),
    ]
    layer = survey_beside_spare(nodes, {"v": array(3, 4)}, {"x": (BATCH, 4)})["n"]
    assert layer.refusal is None
    assert (layer.signature.in_channels, layer.signature.out_channels) == (4, 3)
    np.testing.assert_array_equal(layer.weight(), array(3, 4))


def test_a_transpose_without_axes_turns_a_matrix_round():
    nodes = [helper.make_node("Transpose", ["v"], ["w"]), matmul()]
    layer = survey_beside_spare(nodes, {"v": array(3, 4)}, {"x": (BATCH, 4)})["n"]
    np.testing.assert_array_equal(layer.weight(), array(3, 4))


def test_weights_that_a_caller_may_override_are_refused():
    found = refusal_of(matmul(), array(4, 4), (BATCH, 4), overridable=("w",))
    assert found == "its weight is a graph input too, so that a caller may override it"


def test_weights_in_a_file_beside_the_model_are_read_from_there(tmp_path):
    model = graph_of([matmul(), SPARE], {"w": array(4, 4), "spare_w": array(4, 4)}, {"x": (2, 4), "spare_x": (2, 4)})
    for value in model.graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, (2, 4)))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    layer = survey_onnx(read_model(tmp_path / "m.onnx"))[0]
    assert layer.may_be_factorised
    np.testing.assert_array_equal(layer.weight(), array(4, 4).T)


def test_a_weight_on_the_left_is_refused():
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="n")
    assert refusal_of(node, array(4, 4), (BATCH, 4, 2)) == "its weight is its first input"


def test_a_constant_input_is_refused():
    node = helper.make_node("MatMul", ["v", "w"], ["y"], name="n")
    layers = survey_beside_spare([node], {"v": array(2, 4), "w": array(4, 4)}, {})
    assert layers["n"].refusal == "its input is a constant"


def test_an_input_with_a_default_is_no_constant():
    layers = survey_beside_spare([matmul()], {"x": array(2, 4), "w": array(4, 4)}, {}, overridable=("x",))
    assert layers["n"].may_be_factorised


@pytest.mark.parametrize(
    ("node", "weight", "shape", "reason"),
    [
        (conv(), array(2, 4, 3, 3), (BATCH, 4, "h", 8), "the size of its input is not fixed (h × 8)"),
        (conv(), array(2, 4, 3, 3), (BATCH, 4, 8, None), "the size of its input is not fixed (8 × x_3)"),
        (matmul(), array(4, 4), (BATCH, "tokens", 4), "the size of its input is not fixed (tokens)"),
        (matmul(), array(4, 4), None, "the shape of its input is not known"),
        (matmul(), array(4, 4), (4,), "its input is a single vector"),
    ],
)
def test_layers_of_unknown_size_are_refused(node, weight, shape, reason):
    layer = survey_beside_spare([node], {"w": weight}, {"x": shape})["n"]
    assert (layer.refusal, layer.signature) == (reason, None)


def test_nodes_that_cannot_be_told_apart_are_refused():
    other = helper.make_node("Relu", ["y"], ["z"], name="n")
    assert survey_beside_spare([matmul(), other], {"w": array(4, 4)}, {"x": (BATCH, 4)})["n"].refusal == (
        "2 nodes have this name"
    )
    unnamed = survey_beside_spare([matmul(name="")], {"w": array(4, 4)}, {"x": (BATCH, 4)})
    assert unnamed["MatMul -> y"].refusal == "it has no name"


def test_skip_patterns_are_globs_and_are_named_in_the_reason():
    assert refusal_of(matmul(), array(4, 4), (BATCH, 4), skip=("[mn]",)) == "the recipe skips '[mn]'"


def test_a_graph_with_nothing_to_factorise_is_refused_with_the_reasons():
    model = graph_of([conv(group=2)], {"w": array(2, 2, 3, 3)}, {"x": IMAGE})
    told = r"layers of the graph 'net' to factorise: 'n': grouped convolution.*compressed in float32 first"
    with pytest.raises(InputError, match=told):
        survey_onnx(model)
    relu = graph_of([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": IMAGE})
    with pytest.raises(InputError, match=r"no linear or 2-D convolution layer; at least one Conv of one group, Gemm"):
        survey_onnx(relu)


def test_a_graph_whose_shapes_cannot_be_inferred_is_told():
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", domain="unheard")
    with pytest.raises(InputError, match=r"inferring the shapes of the graph 'net': .*domain unheard"):
        refusal_of(node, array(2, 4, 3, 3), IMAGE)


def test_the_model_is_left_as_it_was():
    model = graph_of([matmul()], {"w": array(4, 4)}, {"x": (BATCH, 4)})
    before = model.SerializeToString()
    survey_onnx(model)[0].weight()
    assert model.SerializeToString() == before
