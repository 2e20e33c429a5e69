"""Joining kernels to layers, and two models' layers to each other."""

from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.bench.layer_rows import ArmGraph, lost_fusions, outside_rows, rows_of
from lrd_deploy.bench.weighted_layers import WeightedLayer, weighted_layers
from lrd_deploy.engines.profiler import Kernel
from tests.rewrite.graph_text import DOWN, PAIR, UP, model


def kernel(name, *nodes, operator="Conv", reads=(), gives=()):
    return Kernel(name=name, operator=operator, nodes=nodes, inputs=tuple(reads), outputs=tuple(gives))


def layer(name, *nodes):
    return WeightedLayer(name, nodes or (name,), is_chain=len(nodes) > 1)


def reorder(name, reads, gives):
    return kernel(name, operator="ReorderOutput", reads=[reads], gives=[gives])


DENSE = ArmGraph(
    (layer("a"), layer("b")), (kernel("k0", "a", "relu"), kernel("k1", "b"), kernel("k2", "tail", operator="Softmax"))
)
FACTORS = ArmGraph(
    (layer("a", "a.down", "a.up"), layer("b")),
    (
        kernel("k0", "a.down", reads=["x"], gives=["t"]),
        reorder("r0", "t", "u"),
        kernel("k1", "a.up", reads=["u"], gives=["v"]),
        reorder("r1", "v", "w"),
        kernel("relu", "relu", operator="Relu", reads=["w"], gives=["z"]),
        kernel("k2", "b", reads=["z"], gives=["q"]),
        kernel("k3", "tail", operator="Softmax", reads=["q"], gives=["y"]),
    ),
)


def test_factors_join_their_dense_layer_with_the_reorder_between_them():
    first, second = rows_of({"base": DENSE, "candidate": FACTORS})
    assert (first.name, second.name) == ("a", "b")
    assert first.arms["base"].kernels == {0: "layer"}
    assert first.arms["candidate"].kernels == {0: "layer", 1: "reorder", 2: "layer"}
    assert second.arms["candidate"].kernels == {5: "layer"}
    assert outside_rows([first, second], "candidate", FACTORS.kernels) == {
        "reorders": (3,), "elementwise": (4,), "other": (6,),
    }  # fmt: skip


def test_a_node_that_was_fused_and_runs_alone_is_a_lost_fusion_and_no_layers():
    assert lost_fusions({"base": DENSE, "candidate": FACTORS}) == [("candidate", "relu", 4)]
    assert lost_fusions({"base": FACTORS, "candidate": DENSE}) == [("base", "relu", 4)]
    assert lost_fusions({"base": DENSE, "candidate": DENSE}) == lost_fusions({"base": FACTORS}) == []


def test_swapping_the_models_swaps_the_columns():
    here = {row.name: row.arms for row in rows_of({"base": DENSE, "candidate": FACTORS})}
    there = {row.name: row.arms for row in rows_of({"base": FACTORS, "candidate": DENSE})}
    for name, arms in here.items():
        assert there[name]["base"].kernels == arms["candidate"].kernels
        assert there[name]["candidate"].kernels == arms["base"].kernels


def test_layers_that_one_kernel_runs_together_are_one_row():
    fused = ArmGraph((layer("q"), layer("k"), layer("v")), (kernel("qkv", "q", "k", "v"),))
    apart = ArmGraph(fused.layers, tuple(kernel(f"k{name}", name) for name in "qkv"))
    (row,) = rows_of({"base": fused, "candidate": apart})
    assert row.name == "q + k + v"
    assert row.arms["base"].kernels == {0: "layer"}
    assert row.arms["candidate"].kernels == dict.fromkeys(range(3), "layer")


def test_factors_that_only_their_structure_shows_join_by_their_nodes():
    both = ArmGraph((layer("a + b", "a", "b"),), (kernel("k0", "a"), kernel("k1", "b")))
    apart = ArmGraph((layer("a"), layer("b")), both.kernels)
    (row,) = rows_of({"base": apart, "candidate": both})
    assert [one.name for one in row.arms["base"].layers] == ["a", "b"]


def test_a_layer_that_only_one_model_has_stands_alone():
    rows = rows_of({"base": DENSE, "candidate": ArmGraph((layer("c"),), (kernel("k", "c"),))})
    assert [(row.name, sorted(row.arms)) for row in rows] == [("a", ["base"]), ("b", ["base"]), ("c", ["candidate"])]


def test_a_reorder_that_another_layer_reads_too_belongs_to_none():
    shared = (*FACTORS.kernels[:2], kernel("k1", "a.up", reads=["u"]), kernel("k2", "b", reads=["u"]))
    first, _ = rows_of({"base": ArmGraph(FACTORS.layers, shared)})
    assert first.arms["base"].kernels == {0: "layer", 2: "layer"}


names = st.sampled_from("abcdef")
operators = st.sampled_from(["Conv", "Relu", "ReorderInput", "Reformat", "Softmax"])


@st.composite
def arm_graphs(draw):
    owned = draw(st.permutations("abcdef"))[: draw(st.integers(1, 6))]
    layers = tuple(layer(f"layer {node}" if draw(st.booleans()) else node, node) for node in owned)
    kernels = [
        kernel(f"k{number}", *draw(st.sets(names, max_size=3)), operator=draw(operators),
               reads=draw(st.sets(names, max_size=2)), gives=draw(st.sets(names, max_size=1)))
        for number in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    return ArmGraph(layers, tuple(kernels))


@given(arm_graphs(), arm_graphs())
def test_every_layer_is_in_one_row_and_no_kernel_is_both_in_a_row_and_outside(base, candidate):
    arms = {"base": base, "candidate": candidate}
    rows = rows_of(arms)
    for arm, graph in arms.items():
        placed = [one for row in rows if arm in row.arms for one in row.arms[arm].layers]
        assert sorted(placed, key=repr) == sorted(graph.layers, key=repr)
        inside = {number for row in rows if arm in row.arms for number in row.arms[arm].kernels}
        outside = [number for numbers in outside_rows(rows, arm, graph.kernels).values() for number in numbers]
        assert sorted([*inside, *outside]) == list(range(len(graph.kernels)))


def test_layers_of_a_file_are_its_weighted_nodes_with_factors_together():
    assert weighted_layers(model(DOWN, UP, weights=PAIR)) == (WeightedLayer("fc", ("fc.down", "fc.up"), True),)


def test_factors_that_something_stands_between_are_one_layer_by_name_and_no_chain():
    graph = model(DOWN, '["act"] i = Tanh (h)', '["fc.up"] y = Gemm <transB=1> (i, b)', weights=PAIR)
    assert weighted_layers(graph) == (WeightedLayer("fc", ("fc.down", "fc.up"), False),)


def test_a_layer_that_is_called_like_a_factor_but_has_no_other_keeps_its_name():
    graph = model('["block.up"] y = Gemm <transB=1> (x, a)', weights=(("a", (4, 4)),))
    assert weighted_layers(graph) == (WeightedLayer("block.up", ("block.up",), False),)
