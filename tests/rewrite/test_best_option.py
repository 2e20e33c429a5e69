from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.records import SVD, KeepDense
from lrd_deploy.rewrite.best_option import TimedOption, best_options
from lrd_deploy.rewrite.rank_options import RankOption


def option(action, latency_ms, rank=1, loss=0.0):
    choice = KeepDense() if action == "merge" else SVD(rank=rank)
    return TimedOption(RankOption(action, choice), latency_ms, loss)


def actions(chains, budget=0.0):
    return [chosen.option.action for chosen in best_options(chains, budget)]


def test_the_fastest_exact_option_is_taken():
    assert actions([[option("keep", 3.0), option("pad", 2.0), option("merge", 2.5)]]) == ["pad"]
    assert actions([[option("keep", 3.0), option("pad", 2.0), option("merge", 1.5)]]) == ["merge"]


def test_less_than_five_percent_is_not_worth_a_change():
    assert actions([[option("keep", 100.0), option("pad", 95.0)]]) == ["keep"]
    assert actions([[option("keep", 100.0), option("pad", 94.9)]]) == ["pad"]


def test_a_truncation_needs_a_budget_and_must_beat_what_loses_nothing():
    chain = [option("keep", 3.0), option("pad", 2.0), option("truncate", 1.0, loss=0.04)]
    assert actions([chain]) == ["pad"]
    assert actions([chain], budget=0.03) == ["pad"]
    assert actions([chain], budget=0.04) == ["truncate"]
    slow = [option("keep", 3.0), option("pad", 2.0), option("truncate", 1.95, loss=0.001)]
    assert actions([slow], budget=1.0) == ["pad"]


def test_the_budget_goes_where_it_saves_most_time_for_what_is_lost():
    cheap = [option("keep", 3.0), option("truncate", 1.0, loss=0.01)]
    dear = [option("keep", 3.0), option("truncate", 2.0, loss=0.01)]
    assert actions([dear, cheap], budget=0.015) == ["keep", "truncate"]
    assert actions([dear, cheap], budget=0.02) == ["truncate", "truncate"]


def test_of_one_chains_truncations_one_is_taken():
    chain = [option("keep", 4.0), option("truncate", 3.0, 3, loss=0.01), option("truncate", 1.0, 2, loss=0.02)]
    (chosen,) = best_options([chain], budget=1.0)
    assert chosen.option.choice == SVD(rank=2)
    (chosen,) = best_options([chain], budget=0.015)
    assert chosen.option.choice == SVD(rank=3)


@given(
    latencies=st.lists(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), max_size=6),
    losses=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    budget=st.floats(0, 2),
)
def test_losses_stay_within_the_budget_and_nothing_becomes_slower(latencies, losses, budget):
    chains = [
        [option("keep", keep), option("pad", pad), option("truncate", cut, loss=loss)]
        for (keep, pad, cut), loss in zip(latencies, losses, strict=False)
    ]
    chosen = best_options(chains, budget)
    assert sum(one.loss for one in chosen) <= budget
    assert all(one.latency_ms <= chain[0].latency_ms for one, chain in zip(chosen, chains, strict=True))
