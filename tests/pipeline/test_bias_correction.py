import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.pipeline.bias_correction import corrected
from lrd_deploy.records import SVD, ChannelSVD
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from tests.rewrite.graph_text import model
from tests.tolerances import sum_tolerance

RANDOM = np.random.default_rng(0)
CHOICES = {"c": ChannelSVD(rank=2), "one": SVD(rank=2), "two": SVD(rank=1)}
BATCHES = [{"x": RANDOM.standard_normal((size, 3, 6, 6)).astype(np.float32) + 1} for size in (4, 4, 3)]


def network(between='["r"] h = Relu (f)'):
    graph = model(
        '["c"] c0 = Conv <pads=[1,1,1,1]> (x, wc)', '["a"] c1 = Relu (c0)', '["p"] c2 = GlobalAveragePool (c1)',
        '["flat"] g = Flatten (c2)', '["one"] f = Gemm <transB=1> (g, w1, b1)', between,
        '["two"] p = MatMul (h, w2)', '["add"] y = Add (p, b2)',
        inputs="float[batch,3,6,6] x", outputs="float[batch,5] y",
        weights=(("wc", (8, 3, 3, 3)), ("w1", (6, 8)), ("b1", (6,)), ("w2", (6, 5)), ("b2", (5,))),
    )  # fmt: skip
    for tensor in graph.graph.initializer:
        array = np.random.default_rng(len(tensor.name)).standard_normal(tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return graph


def values(graph, *names):
    """What some values hold, over all batches, (samples, …)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    arrays = [dict(zip([o.name for o in copy.graph.output], ReferenceEvaluator(copy).run(None, batch), strict=True))
              for batch in BATCHES]  # fmt: skip
    return [np.concatenate([found[name] for found in arrays]).astype(np.float64) for name in names]


@pytest.fixture(scope="module")
def pair():
    dense = network()
    return dense, apply_rules(dense, [DecomposeNode(CHOICES)])[0]


def test_no_channel_is_off_on_average_however_the_layers_follow_each_other(pair):
    dense, lowrank = pair
    model, corrections = corrected(dense, lowrank, CHOICES, BATCHES)
    for one, other in zip(values(dense, "c0", "f", "y"), values(model, "c0", "f", "y"), strict=True):
        axes = (0, *range(2, one.ndim))
        atol = sum_tolerance(np.float32, 64, scale=float(np.abs(one).max()))
        np.testing.assert_allclose(other.mean(axes), one.mean(axes), rtol=0, atol=atol)
    assert [entry.node for entry in corrections] == ["c", "one", "two"]
    for entry in corrections:
        assert entry.reason is None
        assert entry.mean_error_before > 0.01
        assert entry.mean_error_after < sum_tolerance(np.float32, 64)


def test_the_error_that_is_told_is_that_of_the_means_against_the_size_of_the_values(pair):
    dense, lowrank = pair
    _, (first, *_) = corrected(dense, lowrank, CHOICES, BATCHES)
    (one,), (other,) = values(dense, "c0"), values(lowrank, "c0")
    off = one.mean((0, 2, 3)) - other.mean((0, 2, 3))
    expected = np.sqrt((off**2).mean()) / np.sqrt((one**2).mean())
    assert first.mean_error_before == pytest.approx(expected, rel=sum_tolerance(np.float32, 64))


def test_the_model_that_comes_in_is_left_as_it_was(pair):
    dense, lowrank = pair
    before = lowrank.SerializeToString()
    corrected(dense, lowrank, CHOICES, BATCHES)
    assert lowrank.SerializeToString() == before


def test_a_layer_without_a_bias_to_shift_is_told():
    dense = network()
    dense.graph.node[-1].op_type = "Mul"
    lowrank, _, _ = apply_rules(dense, [DecomposeNode(CHOICES)])
    _, corrections = corrected(dense, lowrank, CHOICES, BATCHES)
    assert [entry.reason for entry in corrections] == [
        None, None, "it is a MatMul, and what reads it is no Add of a constant"
    ]  # fmt: skip


def test_exact_factors_need_no_correction():
    dense = network()
    choices = {"one": SVD(rank=6)}
    lowrank, _, _ = apply_rules(dense, [DecomposeNode(choices)])
    _, (entry,) = corrected(dense, lowrank, choices, BATCHES)
    assert entry.mean_error_before < sum_tolerance(np.float32, 64)
