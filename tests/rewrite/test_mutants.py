"""Damaged files through reading, rewriting and verifying: a clear refusal or a right result, and nothing else."""

from collections import Counter

import pytest

from tests.rewrite.mutants import mutant, outcomes

ALL = range(500)


def judged(seeds, folder):
    """How many mutants ended how; none may have broken anything."""
    ended = list(outcomes(seeds, folder))
    assert [outcome for outcome in ended if outcome.ended == "broken"] == []
    return Counter(outcome.ended for outcome in ended)


def test_a_mutant_is_the_same_each_time():
    assert [mutant(seed) for seed in range(12)] == [mutant(seed) for seed in range(12)]


def test_damaged_files_are_refused_or_rewritten_right(tmp_path):
    counted = judged(ALL[::5], tmp_path)
    assert min(counted["refused"], counted["rewritten"]) >= 10


@pytest.mark.slow
def test_five_hundred_damaged_files_are_refused_or_rewritten_right(tmp_path):
    counted = judged(ALL, tmp_path)
    assert min(counted["refused"], counted["rewritten"]) >= 50
