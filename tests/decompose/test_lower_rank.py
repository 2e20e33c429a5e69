import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors, relative_error, svd_factors, tucker2_factors
from lrd_deploy.decompose.lower_rank import lowered
from lrd_deploy.records import SVD, ChannelSVD, SpatialSVD, Tucker2
from tests.tolerances import sum_tolerance

RANDOM = np.random.default_rng(0)
PAIRS = {
    "matrices": ((5, 7), (6, 5), SVD(rank=3)),
    "kernel first": ((5, 4, 3, 2), (6, 5, 1, 1), ChannelSVD(rank=3)),
    "kernel last": ((5, 4, 1, 1), (6, 5, 3, 2), ChannelSVD(rank=3, kernel_on="up")),
    "spatial": ((5, 4, 3, 1), (6, 5, 1, 2), SpatialSVD(rank=3)),
}


def normal(*shape):
    return RANDOM.standard_normal(shape)


@pytest.mark.parametrize(("down", "up", "choice"), PAIRS.values(), ids=PAIRS)
def test_a_lowered_pair_is_as_near_as_the_svd_of_the_product(down, up, choice):
    factors = SVDFactors(normal(*down), normal(*up))
    weight = factors.product()
    best = relative_error(weight, svd_factors(weight, choice))
    got = lowered(factors, (choice.rank,))
    assert got.down.shape == (choice.rank, *down[1:])
    assert got.up.shape == (up[0], choice.rank, *up[2:])
    assert relative_error(weight, got) == pytest.approx(best, abs=sum_tolerance(np.float64, 5 * 42))


@given(width=st.integers(1, 9), out=st.integers(1, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_error_of_a_lowered_pair_is_the_energy_of_its_tail(width, out, data):
    rank = data.draw(st.integers(1, min(width, out)))
    lower = data.draw(st.integers(1, rank))
    factors = SVDFactors(normal(rank, width), normal(out, rank))
    values = np.linalg.svd(factors.product(), compute_uv=False)
    tail = np.linalg.norm(values[lower:]) / np.linalg.norm(values)
    atol = sum_tolerance(np.float64, width * out)
    assert relative_error(factors.product(), lowered(factors, (lower,))) == pytest.approx(tail, abs=atol)


def test_lowered_tucker_factors_are_as_near_as_those_of_the_product():
    factors = Tucker2Factors(normal(5, 7), normal(4, 5, 3, 3), normal(8, 4))
    weight, choice = factors.product(), Tucker2(rank_in=3, rank_out=2)
    best = relative_error(weight, tucker2_factors(weight, choice))
    assert relative_error(weight, lowered(factors, (3, 2))) == pytest.approx(best, abs=sum_tolerance(np.float64, 504))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_unequal_scales_of_the_factors_do_not_matter(scale):
    down, up = normal(5, 7), normal(6, 5)
    plain, scaled = (
        relative_error(factors.product(), lowered(factors, (2,)))
        for factors in (SVDFactors(down, up), SVDFactors(down * scale, up / scale))
    )
    assert scaled == pytest.approx(plain, abs=sum_tolerance(np.float64, 42))


def test_a_rank_that_the_other_one_makes_superfluous_loses_nothing():
    factors = Tucker2Factors(normal(6, 9), normal(2, 6, 1, 1), normal(7, 2))  # of rank 2 in all
    got = lowered(factors, (4, 2))
    assert (got.first.shape, got.core.shape, got.last.shape) == ((4, 9), (2, 4, 1, 1), (7, 2))
    assert relative_error(factors.product(), got) < sum_tolerance(np.float64, 63)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_dtype_stays(dtype):
    pair = lowered(SVDFactors(normal(4, 5).astype(dtype), normal(6, 4).astype(dtype)), (2,))
    three = lowered(Tucker2Factors(*(normal(*shape).astype(dtype) for shape in ((3, 4), (3, 3, 2, 2), (5, 3)))), (2, 2))
    assert {array.dtype for array in (pair.down, pair.up, three.first, three.core, three.last)} == {np.dtype(dtype)}


def test_factors_of_zeros_stay_zeros():
    got = lowered(SVDFactors(np.zeros((3, 4)), np.zeros((5, 3))), (2,))
    assert not got.product().any()
