import onnx

from lrd_deploy.export.sized_graph import with_sizes
from tests.rewrite.graph_text import model


def dims(values):
    return {
        value.name: tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


def tokens():
    return model(
        "y = Add (x, z)",
        inputs="float[batch,sequence,4] x, float[batch,sequence,?] z",
        outputs="float[batch,sequence,4] y",
    )


def test_a_named_dimension_gets_its_size_wherever_it_is_named_and_the_batch_stays_open():
    sized = with_sizes(tokens(), {"x": (3, 7, 4), "z": (3, 7, 1)})
    assert dims(sized.graph.input) == {"x": ("batch", 7, 4), "z": ("batch", 7, 1)}
    assert dims(sized.graph.output) == {"y": ("batch", 7, 4)}


def test_inputs_without_a_shape_keep_their_own_and_take_the_sizes_of_their_names():
    assert dims(with_sizes(tokens(), {"x": (3, 7, 4), "other": (1, 2)}).graph.input)["z"] == ("batch", 7, "")


def test_a_name_that_is_the_batch_elsewhere_stays_open():
    graph = model("y = MatMul (x, z)", inputs="float[n,4] x, float[4,n] z", outputs="float[n,n] y")
    sized = with_sizes(graph, {"x": (3, 4), "z": (4, 3)})
    assert dims(sized.graph.input) == {"x": ("n", 4), "z": (4, "n")}
    assert dims(sized.graph.output) == {"y": ("n", "n")}


def test_the_model_itself_is_left_as_it_was():
    graph = tokens()
    before = graph.SerializeToString(deterministic=True)
    onnx.checker.check_model(with_sizes(graph, {"x": (3, 7, 4)}))
    assert graph.SerializeToString(deterministic=True) == before
