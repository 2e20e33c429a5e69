import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.factorize import relative_error, svd_factors, tucker2_factors
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.records import SVD, KeepDense, Tucker2
from tests.tolerances import sum_tolerance


def weight(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(seed=st.integers(0, 999), rank=st.integers(1, 7))
@settings(max_examples=30)
def test_the_predicted_svd_error_is_the_error(seed, rank):
    w = weight(seed, 9, 7)
    predicted = Spectrum.of(w).relative_error(SVD(rank=rank))
    # The square root of a difference of shares near 1 keeps half of the digits.
    assert predicted == pytest.approx(relative_error(w, svd_factors(w, rank)), abs=sum_tolerance(np.float64, 63) ** 0.5)


@given(seed=st.integers(0, 999), rank_in=st.integers(1, 7), rank_out=st.integers(1, 9))
@settings(max_examples=30)
def test_the_predicted_tucker2_error_is_that_of_hosvd(seed, rank_in, rank_out):
    w = weight(seed, 9, 7, 3, 3)
    predicted = Spectrum.of(w).relative_error(Tucker2(rank_in=rank_in, rank_out=rank_out))
    hosvd = relative_error(w, tucker2_factors(w, rank_in, rank_out, iterations=0))
    assert predicted == pytest.approx(hosvd, abs=sum_tolerance(np.float64, w.size) ** 0.5)


def test_more_rank_never_has_more_error_and_dense_has_none():
    spectrum = Spectrum.of(weight(0, 12, 10, 3, 3))
    errors = [spectrum.relative_error(Tucker2(rank_in=rank, rank_out=rank)) for rank in range(1, 11)]
    assert errors == sorted(errors, reverse=True)
    assert spectrum.relative_error(KeepDense()) == 0.0


def test_the_least_rank_for_a_share_keeps_it_and_one_less_does_not():
    w = weight(0, 20, 16)
    spectrum = Spectrum.of(w)
    rank, _ = spectrum.ranks_for(0.8)
    assert spectrum.energy_in[:rank].sum() >= 0.8
    assert spectrum.energy_in[: rank - 1].sum() < 0.8


def test_all_of_the_energy_needs_the_true_rank():
    assert Spectrum.of(weight(0, 8, 3) @ weight(1, 3, 8)).ranks_for(1.0) == (3, 3)
    assert Spectrum.of(weight(0, 8, 6)).ranks_for(1.0) == (6, 6)


def test_a_weight_of_zeros_has_a_spectrum():
    spectrum = Spectrum.of(np.zeros((4, 4, 3, 3)))
    assert spectrum.relative_error(Tucker2(rank_in=1, rank_out=1)) == 0.0
    assert spectrum.ranks_for(0.9) == spectrum.ranks_for(1.0) == (1, 1)
