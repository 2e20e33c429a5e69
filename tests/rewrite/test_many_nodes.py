"""What a rule costs grows with the graph, however many nodes read one value; counted, not timed."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrd_deploy.records import SVD
from lrd_deploy.rewrite.apply import apply_rules, graph_of
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank

WIDTH, RANK, PAIRS = 6, 2, 60


def fan():
    """x ─ PAIRS × (down ─ up) ─ Sum: all read one value, and one pair of weights."""
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (
        ("down", (WIDTH, RANK)), ("up", (RANK, WIDTH)),
    )]  # fmt: skip
    nodes = []
    for number in range(PAIRS):
        nodes.append(helper.make_node("MatMul", ["x", "down"], [f"inner_{number}"], name=f"layer_{number}.down"))
        nodes.append(
            helper.make_node("MatMul", [f"inner_{number}", "up"], [f"outer_{number}"], name=f"layer_{number}.up")
        )
    nodes.append(helper.make_node("Sum", [f"outer_{number}" for number in range(PAIRS)], ["y"], name="sum"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "fan", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def reversed_choices(model):
    names = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    return dict.fromkeys([*reversed(names), "elsewhere"], SVD(rank=1))


@pytest.fixture
def comparisons(monkeypatch):
    """How often graphsurgeon compares two nodes: its search for one among a value's readers."""
    counted = []
    compare = gs.Node.__eq__

    def counting(one, other):
        counted.append(None)
        return compare(one, other)

    monkeypatch.setattr(gs.Node, "__eq__", counting)
    return counted


@pytest.mark.parametrize(
    "rule_for",
    [lambda _: PadRank(4), lambda _: MergeFactors(), lambda model: DecomposeNode(reversed_choices(model))],
    ids=["pad_rank", "merge_factors", "decompose_node"],
)
def test_no_rule_searches_all_readers_for_each_of_them(comparisons, rule_for):
    model = fan()
    _, applied, _ = apply_rules(model, [rule_for(model)])
    assert len(applied) >= PAIRS
    assert len(comparisons) <= 4 * len(
        model.graph.node
    )  # each node leaves few values; all readers would be PAIRS times it


def test_chosen_nodes_come_in_the_graphs_order_and_unknown_names_last():
    model = fan()
    matches = DecomposeNode(reversed_choices(model)).match(graph_of(model))
    names = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    assert [match.name for match in matches] == [*names, "elsewhere"]
