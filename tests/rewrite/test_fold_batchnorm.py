import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.fold_batchnorm import FoldBatchNorm
from tests.rewrite.graph_text import model
from tests.tolerances import sum_tolerance

STATISTICS = (("gamma", (4,)), ("beta", (4,)), ("mean", (4,)), ("variance", (4,)))
NORM = '["norm"] y = BatchNormalization (h, gamma, beta, mean, variance)'
IMAGES = {"inputs": "float[batch,4,5,5] x", "outputs": "float[batch,4,h,w] y"}


def applied(graph):
    return apply_rules(graph, [FoldBatchNorm()])


@settings(max_examples=20, deadline=None)
@given(groups=st.sampled_from([1, 2, 4]), kernel=st.integers(1, 3), seed=st.integers(0, 99))
def test_folding_keeps_the_outputs_and_leaves_no_normalisation(groups, kernel, seed):
    graph = model(
        f'["conv"] h = Conv <group={groups}, kernel_shape=[{kernel},{kernel}]> (x, w)',
        NORM,
        weights=(("w", (4, 4 // groups, kernel, kernel)), *STATISTICS),
        **IMAGES,
    )
    random = np.random.default_rng(seed)
    for tensor in graph.graph.initializer:
        array = random.uniform(0.1, 2.0, tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    folded, done, skipped = applied(graph)
    assert ([entry.node for entry in done], skipped) == (["norm"], ())
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    x = {"x": random.standard_normal((2, 4, 5, 5)).astype(np.float32)}
    one, other = (ReferenceEvaluator(found).run(None, x)[0] for found in (graph, folded))
    atol = sum_tolerance(np.float32, 4 * kernel**2, scale=float(np.abs(one).max()))
    np.testing.assert_allclose(other, one, rtol=0, atol=atol)


REFUSED = {
    "its statistics are computed": (
        ('["conv"] h = Conv (x, w)', '["norm"] y = BatchNormalization (h, gamma, beta, given, variance)'),
        {"inputs": "float[batch,4,5,5] x, float[4] given"},
        "its scale, shift and statistics are no constants with one value per channel",
    ),
    "training": (
        ('["conv"] h = Conv (x, w)', NORM.replace(" (h", " <training_mode=1> (h").replace("y =", "y, rm, rv =")),
        {},
        "it takes its statistics from the batch",
    ),
    "read elsewhere": (
        ('["conv"] h = Conv (x, w)', NORM, '["other"] z = Relu (h)'),
        {"outputs": "float[batch,4,h,w] y, float[batch,4,h,w] z"},
        "others read what 'conv' gives out too",
    ),
    "an output": (
        ('["conv"] h = Conv (x, w)', NORM),
        {"outputs": "float[batch,4,h,w] y, float[batch,4,h,w] h"},
        "others read what 'conv' gives out too",
    ),
    "not after a layer": (
        ('["relu"] h = Relu (x)', NORM),
        {},
        "what it normalises is no Conv or Gemm with a constant weight",
    ),
}


@pytest.mark.parametrize(("nodes", "ports", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_folded_stays_with_the_reason(nodes, ports, reason):
    graph = model(*nodes, weights=(("w", (4, 4, 1, 1)), *STATISTICS), **{**IMAGES, **ports})
    after, done, skipped = applied(graph)
    assert done == ()
    assert after is graph
    assert [entry.reason for entry in skipped] == [reason]


def test_a_weight_that_another_layer_reads_stays_for_it():
    graph = model(
        '["conv"] h = Conv (x, w)',
        NORM,
        '["twin"] z = Conv (x, w)',
        weights=(("w", (4, 4, 1, 1)), *STATISTICS),
        inputs=IMAGES["inputs"],
        outputs="float[batch,4,h,w] y, float[batch,4,h,w] z",
    )
    folded, done, _ = applied(graph)
    assert len(done) == 1
    x = {"x": np.ones((1, 4, 5, 5), np.float32)}
    np.testing.assert_array_equal(*(ReferenceEvaluator(found).run(["z"], x)[0] for found in (graph, folded)))
