from itertools import repeat

import numpy as np
import onnx
import pytest

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.model_latency import ModelLatency, random_factors
from lrd_deploy.engines.fake import FakeBackend
from lrd_deploy.errors import InputError
from lrd_deploy.records import (
    SVD,
    ChannelSVD,
    KeepDense,
    LayerSignature,
    PlannedLayer,
    RankPlan,
    SpatialSVD,
    Tucker2,
)

SIGNATURE = LayerSignature(
    kind="conv2d", in_channels=16, out_channels=24, kernel=(3, 3), padding=(1, 1), spatial=(6, 6)
)


def plan(choice):
    layer = PlannedLayer(name="layer", signature=SIGNATURE, choice=choice, reason="because")
    return RankPlan(policy={}, layers=(layer,), dense_macs=1, lowrank_macs=1, dense_parameters=1, lowrank_parameters=1)


def timer(tmp_path, node, **latencies):
    model = layer_graph(SIGNATURE, KeepDense())
    model.graph.node[0].name = "conv"
    path = tmp_path / "dense.onnx"
    onnx.save(model, path)
    backend = FakeBackend({name + ".onnx": repeat(latency) for name, latency in latencies.items()})
    inputs = {"x": layer_input(SIGNATURE, 2)}
    return ModelLatency(path, {"layer": [node]}, inputs, 1, backend=backend, clock=backend.clock)


def test_both_models_are_timed_together(tmp_path):
    latencies = timer(tmp_path, "conv", dense=4.0, lowrank=1.0).latencies_ms(plan(ChannelSVD(rank=8)))
    assert latencies == (pytest.approx(4.0), pytest.approx(1.0))


def test_a_planned_node_that_is_not_there_is_not_timed_as_if_it_were(tmp_path):
    with pytest.raises(InputError, match="'nowhere' stayed dense"):
        timer(tmp_path, "nowhere", dense=4.0, lowrank=1.0).latencies_ms(plan(ChannelSVD(rank=8)))


@pytest.mark.parametrize(
    ("shape", "choice"),
    [
        ((24, 16), SVD(rank=5)),
        ((24, 16, 1, 1), SVD(rank=5)),
        ((24, 16, 3, 3), ChannelSVD(rank=5)),
        ((24, 16, 3, 3), ChannelSVD(rank=5, kernel_on="up")),
        ((24, 16, 3, 2), SpatialSVD(rank=5)),
        ((24, 16, 3, 3), Tucker2(rank_in=5, rank_out=7)),
    ],
    ids=str,
)
def test_random_factors_have_the_shapes_of_real_ones(shape, choice):
    factors = random_factors(np.ones(shape, np.float32), choice)
    assert factors.product().shape == shape
    assert all(factor.dtype == np.float32 for factor in vars(factors).values())
