import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.ranks.cost import saves_parameters
from lrd_deploy.ranks.exploration import explore
from lrd_deploy.ranks.forms import largest_ranks, ranks_of
from lrd_deploy.ranks.staircase import (
    Staircase,
    forms,
    grid,
    in_proportion,
    quantum_from,
    quantum_probes,
    ranks_to_time,
    step_of,
    with_ranks,
)
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, Tucker2
from tests.ranks.scripted import Scripted, conv


@pytest.mark.parametrize("quantum", [1, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_quantum_of_the_hardware_is_found(quantum, kernel):
    signature, source = conv(512, kernel=kernel).signature, Scripted(quantum)
    probes = quantum_probes(signature)
    assert quantum_from(probes, lambda choice: source.latency_ms(signature, choice)) == quantum


@pytest.mark.parametrize(
    ("ms", "quantum"),
    [
        ({64: 149, 128: 268, 96: 201, 80: 165, 72: 165, 68: 165, 65: 158}, 16),  # 72 is on the line, at the price of 80
        ({64: 37, 128: 63, 96: 54, 80: 50, 72: 50, 68: 50, 65: 61}, 64),  # 80 costs less than 96, and is off the line
    ],
)
def test_a_rank_on_the_grid_costs_no_more_than_the_line_and_less_than_the_next(ms, quantum):
    probes = quantum_probes(conv(128, kernel=1).signature)
    assert quantum_from(probes, lambda choice: ms[choice.rank]) == quantum


def test_one_noisy_layer_does_not_decide_the_quantum():
    class OneIsFine(Scripted):
        def latency_ms(self, signature, choice):
            self.quantum = 8 if signature.in_channels == 512 else 32
            return super().latency_ms(signature, choice)

    layers = [conv(width, kernel=1, name="c" * (width // 128)) for width in (256, 384, 512)]
    assert explore(layers, OneIsFine(), "auto").quantum == 32


def test_a_layer_too_thin_to_tell_has_no_probes():
    assert quantum_probes(conv(64).signature) == ()


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_grid_holds_multiples_of_the_quantum_that_save_weights(kernel):
    signature = conv(128, out=256, kernel=kernel).signature
    for form in forms(signature):
        choices = grid(signature, form, 16)
        assert choices
        for choice in choices:
            assert all(rank % 16 == 0 for rank in ranks_of(choice))
            assert saves_parameters(signature, choice)


def test_a_layer_thinner_than_the_quantum_has_an_empty_grid():
    assert all(grid(conv(8).signature, form, 16) == () for form in forms(conv(8).signature))


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (conv(512), 64),  # seven ranks in the form with the fewest
        (conv(256), 64),
        (conv(128), 32),
        (conv(64), 16),
        (conv(32), 8),
        (conv(8), 8),  # none at all, but no finer than that
        (conv(512, out=64, kernel=1), 16),
    ],
)
def test_a_narrow_layer_steps_by_less_than_the_quantum(layer, step):
    assert step_of(layer.signature, 64, finest=8) == step
    assert step_of(layer.signature, 64, finest=64) == 64
    assert step_of(layer.signature, 8, finest=8) == 8


def test_exploring_refines_only_a_quantum_that_it_found_itself():
    layers = [conv(512, kernel=1, name="wide"), conv(64, name="narrow")]
    found = explore(layers, Scripted(64), "auto")
    assert [found.step(layer.signature) for layer in layers] == [32, 16]  # 64 would leave no low ranks
    narrow = [ranks_of(choice) for choice in found.known[layers[1].signature]]
    assert any(rank % 32 for ranks in narrow for rank in ranks)
    assert explore(layers, Scripted(64), 64).step(layers[1].signature) == 64


def test_a_wide_layer_steps_by_several_quanta():
    signature = conv(4096, kernel=1).signature
    assert len(grid(signature, SVD(rank=1), 8)) <= 128
    assert len(grid(conv(2048).signature, Tucker2(rank_in=1, rank_out=1), 16)) <= 24 * 24


def test_proportional_ranks_keep_the_shape_of_the_layer():
    line = in_proportion(conv(128, out=256).signature, Tucker2(rank_in=1, rank_out=1), 16)
    assert all(choice.rank_out == 2 * choice.rank_in for choice in line)
    assert [choice.rank_in for choice in line] == sorted(choice.rank_in for choice in line)


@given(data=st.data())
@settings(max_examples=20)
def test_latencies_that_follow_the_arithmetic_are_predicted_exactly(data):
    signature, source = conv(256, kernel=data.draw(st.sampled_from([1, 3]))).signature, Scripted(16)
    form = data.draw(st.sampled_from(forms(signature)))
    choices = grid(signature, form, 16)
    known = {}
    while wanted := ranks_to_time(signature, form, 16, known):
        known.update((choice, source.latency_ms(signature, choice)) for choice in wanted)
    asked = data.draw(st.sampled_from(choices))
    assert Staircase(known).latency_ms(asked) == pytest.approx(source.latency_ms(signature, asked), rel=1e-6)


def test_a_straight_line_takes_three_timings_and_a_bent_one_more():
    signature, form = conv(512, kernel=1).signature, SVD(rank=1)
    line = in_proportion(signature, form, 16)
    straight = {choice: float(choice.rank) for choice in line}
    bent = {choice: 1.0 + 10 * (choice.rank > 100) for choice in line}

    def timings(latencies):
        known = {}
        while wanted := ranks_to_time(signature, form, 16, known):
            known.update((choice, latencies[choice]) for choice in wanted)
        return len(known)

    assert timings(straight) == 3
    assert 3 < timings(bent) <= 9


def test_a_measured_rank_keeps_its_latency_though_it_is_off_the_line():
    known = {SVD(rank=rank): float(rank) for rank in (16, 64, 128)} | {SVD(rank=32): 99.0}
    assert Staircase(known).latency_ms(SVD(rank=32)) == 99.0


def test_exploring_asks_for_each_distinct_layer_once_and_far_fewer_ranks_than_there_are():
    source = Scripted(16)
    layers = [conv(256, name="a"), conv(256, name="bb"), conv(512, kernel=1, name="ccc")]
    found = explore(layers, source, "auto")
    assert found.quantum == 16
    every_rank = sum(
        max(largest_ranks(layer.signature, form)) for layer in layers[1:] for form in forms(layer.signature)
    )
    assert found.timings <= every_rank / 10
    assert all(KeepDense() in table for table in found.known.values())


def test_a_refused_layer_is_timed_dense_only():
    layers = [conv(256, name="a", refusal="grouped")]
    found = explore(layers, Scripted(16), 16)
    assert found.known == {
        layers[0].signature: {KeepDense(): pytest.approx(found.known[layers[0].signature][KeepDense()])}
    }


def test_a_refused_twin_does_not_hide_the_ranks_of_its_layer():
    found = explore([conv(256, name="a", refusal="shared"), conv(256, name="bb")], Scripted(16), 16)
    assert any(isinstance(choice, ChannelSVD) for choice in found.known[conv(256).signature])


def test_a_source_that_leaves_choices_out_is_not_asked_again():
    class Reticent(Scripted):
        def latencies_ms(self, requests):
            return {key: value for key, value in super().latencies_ms(requests).items() if key[1] == KeepDense()}

    source = Reticent(16)
    found = explore([conv(256)], source, 16)
    assert found.latency_ms(conv(256).signature, with_ranks(ChannelSVD(rank=1), (16,))) == float("inf")
    assert len(source.asked) == 2
