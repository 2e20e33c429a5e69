import numpy as np
import pytest

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.cost import macs, parameters
from lrd_deploy.recipe import EnergyRank, LatencyRank, UniformRank
from lrd_deploy.records import SVD, KeepDense, Tucker2
from tests.ranks.scripted import conv


def choices(plan):
    return {layer.name: layer.choice for layer in plan.layers}


def test_uniform_rank_follows_the_formula_and_floors():
    layers = [conv(512), conv(512, kernel=1, name="pointwise")]
    assert choices(plan_ranks(layers, UniformRank(alpha=2))) == {
        "conv": Tucker2(rank_in=309, rank_out=309),
        "pointwise": SVD(rank=128),
    }
    floored = choices(plan_ranks(layers, UniformRank(alpha=2, round_to=16)))
    assert floored["conv"] == Tucker2(rank_in=304, rank_out=304)


def test_a_saturated_layer_stays_dense_with_the_reason():
    plan = plan_ranks([conv(16, kernel=1)], UniformRank(alpha=2, round_to=16))
    assert plan.layers[0].choice == KeepDense()
    assert plan.layers[0].reason == "rank 16 is not below min(in, out) = 16"


def test_factors_that_would_have_more_weights_are_refused_with_both_counts():
    plan = plan_ranks([conv(64)], EnergyRank(share=1.0))
    assert plan.layers[0].choice == KeepDense()
    assert plan.layers[0].reason == "tucker2 64, 64 has 45,056 weights, the layer 36,864"


def test_a_refused_layer_keeps_its_own_reason():
    plan = plan_ranks([conv(64, refusal="grouped convolution (4 groups)")], UniformRank())
    assert plan.layers[0].reason == "grouped convolution (4 groups)"


def test_weights_that_are_not_finite_are_named():
    bad = conv(16, name="stem.conv")
    bad.weight()[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"layer 'stem\.conv': 1 weights that are NaN"):
        plan_ranks([bad], UniformRank())


def test_latency_rank_without_latencies_is_refused():
    with pytest.raises(UsageError, match="no source of latencies"):
        plan_ranks([conv(64)], LatencyRank(target_speedup=1.5))


def test_rounding_up_is_aimets_rule():
    plan = plan_ranks([conv(512)], UniformRank(alpha=2, round_to=8, rounding="up"))
    assert choices(plan) == {"conv": Tucker2(rank_in=312, rank_out=312)}


def test_a_plan_counts_what_its_layers_are():
    layers = [conv(64), conv(64, kernel=1, name="pointwise")]
    plan = plan_ranks(layers, UniformRank(alpha=2, round_to=8))
    counted = [(layer.signature, layer.choice) for layer in plan.layers]
    assert plan.lowrank_macs == sum(macs(*one) for one in counted)
    assert plan.lowrank_parameters == sum(parameters(*one) for one in counted)


def test_a_layer_that_runs_often_counts_as_often():
    often = Layer("a", conv(64).signature, conv(64).weight, calls=3)
    once, thrice = (plan_ranks([layer], UniformRank(alpha=2)) for layer in (conv(64), often))
    assert thrice.dense_macs == 3 * once.dense_macs
    assert thrice.dense_parameters == once.dense_parameters
