from itertools import product

import numpy as np
import pytest

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.latency import Candidate, choose_by_latency, latency_candidates
from lrd_deploy.recipe import EnergyRank, LatencyRank, UniformRank
from lrd_deploy.records import SVD, KeepDense, LayerSignature, RankPlan, Tucker2


def conv(width, *, out=None, kernel=3, name="conv", refusal=None):
    out = out or width
    signature = LayerSignature(
        kind="conv2d",
        in_channels=width,
        out_channels=out,
        kernel=(kernel, kernel),
        padding=(kernel // 2, kernel // 2),
        spatial=(8, 8),
    )
    weight = np.random.default_rng(len(name)).standard_normal((out, width, kernel, kernel))
    return Layer(name, signature, lambda: weight, refusal)


class Scripted:
    """Latencies by formula: `dense_ms` for dense, else `ms_per_rank` × the first rank."""

    environment = None

    def __init__(self, dense_ms=1.0, ms_per_rank=0.01):
        self.dense_ms, self.ms_per_rank, self.asked = dense_ms, ms_per_rank, []

    def latencies_ms(self, requests):
        self.asked.append(requests)
        return {
            (signature, choice): self._latency(choice) for signature, choices in requests.items() for choice in choices
        }

    def _latency(self, choice):
        match choice:
            case KeepDense():
                return self.dense_ms
            case SVD(rank=rank) | Tucker2(rank_in=rank):
                return self.ms_per_rank * rank


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


def test_candidates_are_multiples_of_the_quantum_that_save_weights():
    found = latency_candidates(conv(128, out=256).signature, LatencyRank(target_speedup=2, quantum=16, steps=4))
    assert len(found) == 4
    assert all(choice.rank_in % 16 == 0 and choice.rank_out % 16 == 0 for choice in found)
    assert all(choice.rank_out == 2 * choice.rank_in for choice in found)


def test_a_layer_thinner_than_the_quantum_has_no_candidates():
    assert latency_candidates(conv(8).signature, LatencyRank(target_speedup=2, quantum=16)) == ()


def test_latency_rank_meets_its_target_with_the_least_error():
    layers = [conv(64, name="a"), conv(64, name="bb")]
    plan = plan_ranks(layers, LatencyRank(target_speedup=2), Scripted())
    assert plan.predicted_speedup >= 2
    # 2.0 ms dense, 1.0 allowed: both at the highest candidate within 0.5 ms each beats any unequal split here.
    assert set(choices(plan).values()) == {Tucker2(rank_in=48, rank_out=48)}


def test_each_signature_is_asked_for_once_and_always_with_dense():
    source = Scripted()
    plan_ranks([conv(64, name="a"), conv(64, name="bb")], LatencyRank(target_speedup=1.5), source)
    (requests,) = source.asked
    assert len(requests) == 1
    assert next(iter(requests.values()))[0] == KeepDense()


def test_a_refused_twin_does_not_hide_the_candidates_of_its_signature():
    layers = [conv(64, name="a"), conv(64, name="bb", refusal="shared")]
    plan = plan_ranks(layers, LatencyRank(target_speedup=1.5), Scripted())
    assert choices(plan)["a"] != KeepDense()
    assert choices(plan)["bb"] == KeepDense()


def test_a_layer_that_no_rank_makes_faster_stays_dense_and_says_so():
    layers = [conv(64, name="slow"), conv(64, kernel=1, name="pointwise")]

    class PointwiseLoses(Scripted):
        def _latency(self, choice):
            return 5.0 if isinstance(choice, SVD) else super()._latency(choice)

    plan = plan_ranks(layers, LatencyRank(target_speedup=1.2), PointwiseLoses())
    assert choices(plan)["pointwise"] == KeepDense()
    assert plan.layers[1].reason == "no candidate is faster than dense"


def test_the_parameter_budget_binds_beside_the_latency_budget():
    layers = [conv(256, name="a"), conv(256, name="bb")]
    plan = plan_ranks(layers, LatencyRank(target_speedup=1.01, max_parameters=0.2), Scripted(ms_per_rank=0.001))
    assert plan.lowrank_parameters <= 0.2 * plan.dense_parameters


def test_a_target_out_of_reach_says_how_far_the_candidates_go():
    with pytest.raises(UsageError, match=r"a speedup of 100; by themselves the candidates reach 6\.25×"):
        plan_ranks([conv(64)], LatencyRank(target_speedup=100), Scripted())


def test_a_plan_survives_json():
    plan = plan_ranks([conv(64)], LatencyRank(target_speedup=1.5), Scripted())
    assert RankPlan.model_validate_json(plan.to_json()) == plan


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_of_all_combinations(seed):
    random = np.random.default_rng(seed)
    policy = LatencyRank(target_speedup=1.6, max_parameters=0.8)
    options = [
        [
            Candidate(KeepDense(), 1.0, 0.0, 100),
            *(Candidate(SVD(rank=n), *random.uniform(0.2, 1.2, 2), int(random.integers(20, 120))) for n in (1, 2, 3)),
        ]
        for _ in range(4)
    ]
    allowed = [
        sum(candidate.squared_error for candidate in combination)
        for combination in product(*options)
        if sum(candidate.latency_ms for candidate in combination) <= 4 / 1.6
        and sum(candidate.parameters for candidate in combination) <= 0.8 * 400
    ]
    chosen = choose_by_latency(options, policy)
    assert sum(candidate.squared_error for candidate in chosen) == pytest.approx(min(allowed))


def test_a_layer_that_runs_often_counts_as_often():
    often = Layer("a", conv(64).signature, conv(64).weight, calls=3)
    once, thrice = (plan_ranks([layer], LatencyRank(target_speedup=1.5), Scripted()) for layer in (conv(64), often))
    assert thrice.dense_macs == 3 * once.dense_macs
    assert thrice.layers[0].dense_latency_ms == pytest.approx(3 * once.layers[0].dense_latency_ms)
    assert thrice.dense_parameters == once.dense_parameters


def test_latency_rank_without_latencies_is_refused():
    with pytest.raises(UsageError, match="no source of latencies"):
        plan_ranks([conv(64)], LatencyRank(target_speedup=1.5))
