import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.decompose.factorize import factors_of
from lrd_deploy.ranks.forms import factor_shapes, largest_ranks
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from tests.tolerances import sum_tolerance

CONV = LayerSignature(
    kind="conv2d",
    in_channels=6,
    out_channels=8,
    kernel=(3, 2),
    stride=(2, 1),
    padding=(2, 1),
    dilation=(1, 2),
    spatial=(9, 7),
)
FLAT = LayerSignature(kind="linear", in_channels=6, out_channels=8)
CASES = {
    "linear": (FLAT, SVD(rank=3)),
    "sequence": (FLAT.model_copy(update={"spatial": (5,)}), SVD(rank=3)),
    "pointwise": (CONV.model_copy(update={"kernel": (1, 1), "dilation": (1, 1)}), SVD(rank=3)),
    "channel": (CONV, ChannelSVD(rank=3)),
    "channel, kernel last": (CONV, ChannelSVD(rank=3, kernel_on="up")),
    "spatial": (CONV, SpatialSVD(rank=3)),
    "tucker2": (CONV, Tucker2(rank_in=2, rank_out=5)),
}
every_form = pytest.mark.parametrize(("signature", "choice"), CASES.values(), ids=CASES)


def named(graph, name="layer"):
    """The layer's graph, with a name for its one weighted node."""
    graph.graph.node[0].name = name
    return graph


def run(graph, x):
    return ReferenceEvaluator(graph).run(None, {"x": x})[0]


def exact(signature, choice):
    """The choice at the ranks at which its form is exact."""
    return choice.model_copy(update=dict(zip(ranks(choice), largest_ranks(signature, choice), strict=True)))


def ranks(choice):
    return ["rank_in", "rank_out"] if isinstance(choice, Tucker2) else ["rank"]


def weights(graph):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def refusal(graph, choice, name="layer"):
    _, applied, skipped = apply_rules(graph, [DecomposeNode({name: choice})])
    assert applied == ()
    assert skipped[0].node == name
    return skipped[0].reason


@every_form
def test_at_full_rank_the_output_stays(signature, choice):
    dense = named(layer_graph(signature, KeepDense()))
    lowrank, applied, _ = apply_rules(dense, [DecomposeNode({"layer": exact(signature, choice)})])
    assert len(applied) == 1
    x = layer_input(signature, 2)
    one, other = run(dense, x), run(lowrank, x)
    np.testing.assert_allclose(other, one, rtol=0, atol=sum_tolerance(np.float32, 36 + 48, np.abs(one).max()))


@every_form
def test_the_nodes_are_those_of_the_form_with_the_weights_that_the_factorisation_gives(signature, choice):
    dense = named(layer_graph(signature, KeepDense()))
    lowrank, applied, _ = apply_rules(dense, [DecomposeNode({"layer": choice})])
    assert applied[0].change == f"factorised as {choice}"
    factors = [node for node in lowrank.graph.node if node.op_type != "Add"]
    like = [node for node in layer_graph(signature, choice).graph.node if node.op_type != "Add"]
    names = [f"layer.{shape.name}" for shape in factor_shapes(6, 8, choice)]
    assert [node.name for node in factors] == names
    assert [node.input[1] for node in factors] == [f"{name}.weight" for name in names]
    for node, other in zip(factors, like, strict=True):
        assert node.op_type == other.op_type
        assert {a.name: a for a in node.attribute} == {a.name: a for a in other.attribute}
        assert len(node.input) == len(other.input)
    kernel = weights(dense)["w0"]
    found = factors_of(kernel if kernel.ndim == 4 else kernel.T, choice)
    for node, shape in zip(factors, factor_shapes(6, 8, choice), strict=True):
        stored, factor = weights(lowrank)[node.input[1]], getattr(found, shape.name)
        np.testing.assert_array_equal(stored, factor.T if kernel.ndim == 2 else factor.reshape(stored.shape))


@every_form
def test_rewriting_twice_changes_nothing_more(signature, choice):
    rule = DecomposeNode({"layer": choice})
    once, _, _ = apply_rules(named(layer_graph(signature, KeepDense())), [rule])
    twice, applied, skipped = apply_rules(once, [rule])
    assert applied == ()
    assert twice is once
    assert skipped[0].reason == "the graph has no node of that name outside of If and Loop bodies"
