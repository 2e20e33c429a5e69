import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.factorize import relative_error, svd_factors, tucker2_factors
from lrd_deploy.ranks.metric import Metric, MomentSum
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, LayerSignature, SpatialSVD, Tucker2
from tests.tolerances import sum_tolerance


def weight(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(seed=st.integers(0, 999), rank=st.integers(1, 7))
@settings(max_examples=30)
def test_the_predicted_svd_error_is_the_error(seed, rank):
    w = weight(seed, 9, 7)
    predicted = Spectrum(w).relative_error(SVD(rank=rank))
    # The square root of a difference of shares near 1 keeps half of the digits.
    assert predicted == pytest.approx(
        relative_error(w, svd_factors(w, SVD(rank=rank))), abs=sum_tolerance(np.float64, 63) ** 0.5
    )


@given(seed=st.integers(0, 999), rank_in=st.integers(1, 7), rank_out=st.integers(1, 9))
@settings(max_examples=30)
def test_the_predicted_tucker2_error_is_that_of_hosvd(seed, rank_in, rank_out):
    w = weight(seed, 9, 7, 3, 3)
    predicted = Spectrum(w).relative_error(Tucker2(rank_in=rank_in, rank_out=rank_out))
    hosvd = relative_error(w, tucker2_factors(w, Tucker2(rank_in=rank_in, rank_out=rank_out), iterations=0))
    assert predicted == pytest.approx(hosvd, abs=sum_tolerance(np.float64, w.size) ** 0.5)


def test_more_rank_never_has_more_error_and_dense_has_none():
    spectrum = Spectrum(weight(0, 12, 10, 3, 3))
    errors = [spectrum.relative_error(Tucker2(rank_in=rank, rank_out=rank)) for rank in range(1, 11)]
    assert errors == sorted(errors, reverse=True)
    assert spectrum.relative_error(KeepDense()) == 0.0


def test_the_least_rank_for_a_share_keeps_it_and_one_less_does_not():
    w = weight(0, 20, 16)
    spectrum = Spectrum(w)
    rank, _ = spectrum.ranks_for(0.8)
    assert spectrum.relative_error(SVD(rank=rank)) ** 2 <= 0.2
    assert spectrum.relative_error(SVD(rank=rank - 1)) ** 2 > 0.2


def test_all_of_the_energy_needs_the_true_rank():
    assert Spectrum(weight(0, 8, 3) @ weight(1, 3, 8)).ranks_for(1.0) == (3, 3)
    assert Spectrum(weight(0, 8, 6)).ranks_for(1.0) == (6, 6)


def test_a_weight_of_zeros_has_a_spectrum():
    spectrum = Spectrum(np.zeros((4, 4, 3, 3)))
    assert spectrum.relative_error(Tucker2(rank_in=1, rank_out=1)) == 0.0
    assert spectrum.ranks_for(0.9) == spectrum.ranks_for(1.0) == (1, 1)


@pytest.mark.parametrize(
    "choice", [ChannelSVD(rank=4), ChannelSVD(rank=4, kernel_on="up"), SpatialSVD(rank=4), SpatialSVD(rank=20)], ids=str
)
@pytest.mark.parametrize("seen", [None, 40])
def test_the_predicted_error_of_every_pair_is_the_error(choice, seen):
    w = weight(0, 9, 7, 3, 3)
    metric = None if seen is None else metric_of(w, seen)
    predicted = Spectrum(w, metric).relative_error(choice)
    assert predicted == pytest.approx(
        relative_error(w, svd_factors(w, choice, metric), metric), abs=sum_tolerance(np.float64, w.size) ** 0.5
    )


def metric_of(w, seen):
    """The metric of that many random, correlated inputs."""
    channels, kernel = w.shape[1], w.shape[2:]
    signature = LayerSignature(
        kind="conv2d", in_channels=channels, out_channels=len(w), kernel=kernel, padding=(1, 1), spatial=(5, 5)
    )
    total = MomentSum("layer", signature)
    total.update(np.einsum("ij,bjhw->bihw", weight(1, channels, channels), weight(2, seen, channels, 5, 5)))
    return Metric.of(total.moment())
