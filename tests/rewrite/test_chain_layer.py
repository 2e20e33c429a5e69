import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.records import SVD, LayerSignature, Tucker2
from lrd_deploy.rewrite.apply import graph_of
from lrd_deploy.rewrite.chain_layer import layer_of
from lrd_deploy.rewrite.factor_chain import find_chains
from tests.rewrite.graph_text import DOWN, LOWERED, PAIR, UP, model

EXTRA = {
    "two 1×1 and one core of a pixel": (
        LayerSignature(kind="conv2d", in_channels=9, out_channels=8, spatial=(4, 4)),
        Tucker2(rank_in=4, rank_out=3),
    ),
}
CASES = {**{name: case[:2] for name, case in LOWERED.items()}, **EXTRA}


def found(graph, input_shape):
    (chain,) = find_chains(graph_of(graph))
    return layer_of(chain, input_shape)


@pytest.mark.parametrize(("signature", "choice"), CASES.values(), ids=CASES)
def test_the_graph_of_a_layer_leads_back_to_the_layer(signature, choice):
    graph = layer_graph(signature, choice)
    shape = [dim.dim_value or dim.dim_param for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert found(graph, shape) == (signature, choice)


def conv_pair(down="", up="", kernels=((1, 1), (3, 3))):
    return model(
        f'["c.down"] h = Conv {down} (x, a)',
        f'["c.up"] y = Conv {up} (h, b)',
        inputs="float[batch,4,9,9] x",
        outputs="float[batch,4,h,w] y",
        weights=(("a", (2, 4, *kernels[0])), ("b", (4, 2, *kernels[1]))),
    )


@pytest.mark.parametrize(
    "graph",
    [
        conv_pair(up="<pads=[0,1,1,1]>"),
        conv_pair(up='<auto_pad="SAME_UPPER">'),
        conv_pair(down="<strides=[2,2]>"),
        conv_pair(up="<strides=[2,2]>", kernels=((1, 1), (1, 1))),
        conv_pair(kernels=((1, 3), (3, 1))),
    ],
    ids=["uneven padding", "padding by a word", "stride elsewhere", "stride after a matrix", "width first"],
)
def test_windows_that_no_form_has_are_told(graph):
    assert found(graph, ("batch", 4, 9, 9)) == (
        "its strides, padding or dilation are not where a form of factors has them"
    )


def test_sizes_that_are_not_known_are_told():
    assert found(conv_pair(), None) == "the shape of its input is not known"
    assert found(conv_pair(), ("batch", 4, "h", 9)) == "the size of its input is not fixed (h × 9)"


def test_a_gemm_needs_no_size():
    signature, choice = found(model(DOWN, UP, weights=PAIR), None)
    assert (signature.spatial, choice) == ((), SVD(rank=3))


def test_weights_that_are_not_float32_are_told():
    graph = model(DOWN, UP, weights=PAIR)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert found(graph, ("batch", 4)) == "its weights are float16, and latencies are of float32"
