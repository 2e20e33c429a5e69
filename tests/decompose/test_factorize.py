import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.factorize import relative_error, svd_factors, tucker2_factors
from lrd_deploy.errors import InputError
from tests.tolerances import sum_tolerance

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**16)


def matrix(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(out=sizes, in_=sizes, seed=seeds)
def test_svd_at_full_rank_is_the_identity(out, in_, seed):
    weight = matrix(seed, out, in_)
    assert relative_error(weight, svd_factors(weight, min(out, in_))) <= sum_tolerance(np.float64, out + in_)


@given(out=sizes, in_=sizes, seed=seeds, data=st.data())
def test_svd_error_is_the_tail_energy(out, in_, seed, data):
    weight = matrix(seed, out, in_)
    rank = data.draw(st.integers(1, min(out, in_)))
    singular_values = np.linalg.svd(weight, compute_uv=False)
    tail = np.sqrt((singular_values[rank:] ** 2).sum() / (singular_values**2).sum())
    assert relative_error(weight, svd_factors(weight, rank)) == pytest.approx(tail, abs=sum_tolerance(np.float64, 48))


@given(out=sizes, in_=sizes, seed=seeds, data=st.data())
def test_svd_factors_share_one_scale(out, in_, seed, data):
    weight = matrix(seed, out, in_)
    rank = data.draw(st.integers(1, min(out, in_)))
    factors = svd_factors(weight, rank)
    np.testing.assert_allclose(
        np.linalg.norm(factors.up, axis=0), np.linalg.norm(factors.down, axis=1), rtol=sum_tolerance(np.float64, 48)
    )


@given(out=sizes, in_=sizes, k=st.sampled_from([1, 2, 3]), seed=seeds)
def test_tucker2_at_full_rank_is_the_identity(out, in_, k, seed):
    weight = matrix(seed, out, in_, k, k)
    factors = tucker2_factors(weight, min(in_, out * k * k), min(out, in_ * k * k))
    assert relative_error(weight, factors) <= sum_tolerance(np.float64, (out + in_) * k * k)


@given(seed=seeds, data=st.data())
@settings(max_examples=30)
def test_hooi_is_never_worse_than_hosvd_and_hosvd_keeps_its_bound(seed, data):
    weight = matrix(seed, 12, 10, 3, 3)
    rank_in, rank_out = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 12))
    hosvd = relative_error(weight, tucker2_factors(weight, rank_in, rank_out, iterations=0))
    hooi = relative_error(weight, tucker2_factors(weight, rank_in, rank_out, iterations=3))
    slack = sum_tolerance(np.float64, weight.size)
    assert hooi <= hosvd + slack
    assert hosvd**2 <= _tail(weight, 0, rank_out) + _tail(weight, 1, rank_in) + slack


def _tail(weight, mode, rank):
    """Share of a mode's energy beyond `rank`."""
    unfolded = np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)
    energy = np.linalg.svd(unfolded, compute_uv=False) ** 2
    return energy[rank:].sum() / energy.sum()


def test_tucker2_recovers_a_weight_that_is_of_low_rank():
    core, first, last = matrix(0, 4, 3, 3, 3), matrix(1, 3, 16), matrix(2, 20, 4)
    weight = np.einsum("or,rihw,ic->ochw", last, core, first)
    assert relative_error(weight, tucker2_factors(weight, 3, 4)) <= sum_tolerance(np.float64, weight.size)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_factors_keep_the_dtype_of_the_weight(dtype):
    assert svd_factors(matrix(0, 6, 5).astype(dtype), 2).up.dtype == dtype
    assert tucker2_factors(matrix(0, 6, 5, 3, 3).astype(dtype), 2, 3).core.dtype == dtype


def test_a_weight_of_zeros_has_no_error():
    assert relative_error(np.zeros((4, 4)), svd_factors(np.zeros((4, 4)), 2)) == 0.0
    assert relative_error(np.zeros((4, 4, 3, 3)), tucker2_factors(np.zeros((4, 4, 3, 3)), 2, 2)) == 0.0


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_beyond_the_matrix_is_refused_with_the_largest_that_fits(rank):
    with pytest.raises(InputError, match=rf"rank {rank}; 1 to 5; choose a rank of at most 5"):
        svd_factors(matrix(0, 8, 5), rank)


def test_tucker2_ranks_are_bounded_by_what_the_other_modes_span():
    with pytest.raises(InputError, match="rank_out 10; 1 to 9"):
        tucker2_factors(matrix(0, 64, 1, 3, 3), 1, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = matrix(0, 4, 4)
    weight[1, 2] = bad
    with pytest.raises(InputError, match="1 values that are NaN or infinite"):
        svd_factors(weight, 2)


def test_hooi_improves_on_hosvd_where_there_is_room():
    weight = matrix(0, 12, 10, 3, 3)
    hosvd, hooi = (relative_error(weight, tucker2_factors(weight, 4, 4, iterations=n)) for n in (0, 3))
    assert hooi < hosvd - 1e-4


def test_tucker2_factors_share_one_scale():
    factors = tucker2_factors(1000 * matrix(0, 12, 10, 3, 3), 4, 5)
    rows = {
        name: np.linalg.norm(factor) / np.sqrt(len(factor)) for name, factor in vars(factors).items() if name != "last"
    }
    assert max(rows.values()) / min(rows.values()) < 100  # all of the scale in the core would be a thousand
