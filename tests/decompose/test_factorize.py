import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.factorize import factors_of, relative_error, svd_factors, tucker2_factors
from lrd_deploy.errors import InputError
from lrd_deploy.ranks.forms import largest_ranks
from lrd_deploy.ranks.metric import Metric, MomentSum
from lrd_deploy.records import SVD, ChannelSVD, LayerSignature, SpatialSVD, Tucker2
from tests.tolerances import sum_tolerance

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**16)


def matrix(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(out=sizes, in_=sizes, seed=seeds)
def test_svd_at_full_rank_is_the_identity(out, in_, seed):
    weight = matrix(seed, out, in_)
    assert relative_error(weight, svd_factors(weight, SVD(rank=min(out, in_)))) <= sum_tolerance(np.float64, out + in_)


@given(out=sizes, in_=sizes, seed=seeds, data=st.data())
def test_svd_error_is_the_tail_energy(out, in_, seed, data):
    weight = matrix(seed, out, in_)
    rank = data.draw(st.integers(1, min(out, in_)))
    singular_values = np.linalg.svd(weight, compute_uv=False)
    tail = np.sqrt((singular_values[rank:] ** 2).sum() / (singular_values**2).sum())
    assert relative_error(weight, svd_factors(weight, SVD(rank=rank))) == pytest.approx(
        tail, abs=sum_tolerance(np.float64, 48)
    )


@given(out=sizes, in_=sizes, seed=seeds, data=st.data())
def test_svd_factors_share_one_scale(out, in_, seed, data):
    weight = matrix(seed, out, in_)
    rank = data.draw(st.integers(1, min(out, in_)))
    factors = svd_factors(weight, SVD(rank=rank))
    np.testing.assert_allclose(
        np.linalg.norm(factors.up, axis=0), np.linalg.norm(factors.down, axis=1), rtol=sum_tolerance(np.float64, 48)
    )


@given(out=sizes, in_=sizes, k=st.sampled_from([1, 2, 3]), seed=seeds)
def test_tucker2_at_full_rank_is_the_identity(out, in_, k, seed):
    weight = matrix(seed, out, in_, k, k)
    factors = tucker2_factors(weight, Tucker2(rank_in=min(in_, out * k * k), rank_out=min(out, in_ * k * k)))
    assert relative_error(weight, factors) <= sum_tolerance(np.float64, (out + in_) * k * k)


@given(seed=seeds, data=st.data())
@settings(max_examples=30)
def test_hooi_is_never_worse_than_hosvd_and_hosvd_keeps_its_bound(seed, data):
    weight = matrix(seed, 12, 10, 3, 3)
    rank_in, rank_out = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 12))
    hosvd = relative_error(weight, tucker2_factors(weight, Tucker2(rank_in=rank_in, rank_out=rank_out), iterations=0))
    hooi = relative_error(weight, tucker2_factors(weight, Tucker2(rank_in=rank_in, rank_out=rank_out), iterations=3))
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
    assert relative_error(weight, tucker2_factors(weight, Tucker2(rank_in=3, rank_out=4))) <= sum_tolerance(
        np.float64, weight.size
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_factors_keep_the_dtype_of_the_weight(dtype):
    assert svd_factors(matrix(0, 6, 5).astype(dtype), SVD(rank=2)).up.dtype == dtype
    assert tucker2_factors(matrix(0, 6, 5, 3, 3).astype(dtype), Tucker2(rank_in=2, rank_out=3)).core.dtype == dtype


def test_a_weight_of_zeros_has_no_error():
    assert relative_error(np.zeros((4, 4)), svd_factors(np.zeros((4, 4)), SVD(rank=2))) == 0.0
    assert (
        relative_error(np.zeros((4, 4, 3, 3)), tucker2_factors(np.zeros((4, 4, 3, 3)), Tucker2(rank_in=2, rank_out=2)))
        == 0.0
    )


@pytest.mark.parametrize("rank", [6, 600])
def test_a_rank_beyond_the_matrix_is_refused_with_the_largest_that_fits(rank):
    with pytest.raises(InputError, match=rf"rank {rank}; 1 to 5; choose a rank of at most 5"):
        svd_factors(matrix(0, 8, 5), SVD(rank=rank))


def test_tucker2_ranks_are_bounded_by_what_the_other_modes_span():
    with pytest.raises(InputError, match="rank_out 10; 1 to 9"):
        tucker2_factors(matrix(0, 64, 1, 3, 3), Tucker2(rank_in=1, rank_out=10))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = matrix(0, 4, 4)
    weight[1, 2] = bad
    with pytest.raises(InputError, match="1 values that are NaN or infinite"):
        svd_factors(weight, SVD(rank=2))


def test_hooi_improves_on_hosvd_where_there_is_room():
    weight = matrix(0, 12, 10, 3, 3)
    hosvd, hooi = (
        relative_error(weight, tucker2_factors(weight, Tucker2(rank_in=4, rank_out=4), iterations=n)) for n in (0, 3)
    )
    assert hooi < hosvd - 1e-4


def test_tucker2_factors_share_one_scale():
    factors = tucker2_factors(1000 * matrix(0, 12, 10, 3, 3), Tucker2(rank_in=4, rank_out=5))
    rows = {
        name: np.linalg.norm(factor) / np.sqrt(len(factor)) for name, factor in vars(factors).items() if name != "last"
    }
    assert max(rows.values()) / min(rows.values()) < 100  # all of the scale in the core would be a thousand


PAIRS = [ChannelSVD(rank=1), ChannelSVD(rank=1, kernel_on="up"), SpatialSVD(rank=1)]


@pytest.mark.parametrize("form", PAIRS, ids=str)
@given(out=st.integers(1, 9), in_=st.integers(1, 9), kh=st.integers(1, 3), kw=st.integers(1, 3), seed=seeds)
@settings(max_examples=30)
def test_every_pair_at_full_rank_is_the_identity(form, out, in_, kh, kw, seed):
    weight = matrix(seed, out, in_, kh, kw)
    signature = LayerSignature(kind="conv2d", in_channels=in_, out_channels=out, kernel=(kh, kw))
    (rank,) = largest_ranks(signature, form)
    factors = svd_factors(weight, form.model_copy(update={"rank": rank}))
    assert relative_error(weight, factors) <= sum_tolerance(np.float64, weight.size)


def metric_of(weight, seed, positions=60):
    """The metric of random inputs whose channels and pixels are correlated."""
    _, in_channels, *kernel = weight.shape
    mix = matrix(seed + 1, in_channels, in_channels) * np.geomspace(1, 0.01, in_channels)
    signature = LayerSignature(
        kind="conv2d" if kernel else "linear",
        in_channels=in_channels,
        out_channels=len(weight),
        kernel=tuple(kernel) or (1, 1),
        padding=tuple(k // 2 for k in kernel) or (0, 0),
    )
    total = MomentSum("layer", signature)
    if not kernel:
        total.update(matrix(seed + 2, positions, in_channels) @ mix)
    else:
        inputs = matrix(seed + 2, positions, in_channels, 6, 6).cumsum(3)
        total.update(np.einsum("bchw,cd->bdhw", inputs, mix))
    return Metric.of(total.moment())


@given(seed=seeds, data=st.data())
@settings(max_examples=25, deadline=None)
def test_weighted_factors_are_never_worse_than_plain_ones_in_the_weighted_error(seed, data):
    kernel = data.draw(st.sampled_from([(), (1, 1), (3, 3), (3, 1)]))
    weight = matrix(seed, data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9)), *kernel)
    forms = [SVD(rank=1)] if kernel in ((), (1, 1)) else [*PAIRS, Tucker2(rank_in=1, rank_out=1)]
    choice = data.draw(st.sampled_from(forms))
    signature = LayerSignature(
        kind="conv2d", in_channels=weight.shape[1], out_channels=len(weight), kernel=kernel or (1, 1)
    )
    drawn = [data.draw(st.integers(1, largest)) for largest in largest_ranks(signature, choice)]
    fields = ("rank_in", "rank_out") if isinstance(choice, Tucker2) else ("rank",)
    choice = choice.model_copy(update=dict(zip(fields, drawn, strict=True)))
    metric = metric_of(weight, seed)
    plain, weighted = factors_of(weight, choice), factors_of(weight, choice, metric)
    # Whitening and its inverse lose as many digits as the roots' condition number has.
    slack = sum_tolerance(np.float64, weight.size) * np.linalg.cond(metric.roots[1])
    assert relative_error(weight, weighted, metric) <= relative_error(weight, plain, metric) + slack


def test_weighting_helps_where_the_inputs_live_in_few_directions():
    weight = matrix(0, 24, 24)
    metric = metric_of(weight, 0)
    plain, weighted = (factors_of(weight, SVD(rank=6), used) for used in (None, metric))
    assert relative_error(weight, weighted, metric) < 0.5 * relative_error(weight, plain, metric)


def test_weighted_pairs_share_one_scale():
    weight = matrix(0, 24, 24)
    factors = svd_factors(weight, SVD(rank=6), metric_of(weight, 0))
    np.testing.assert_allclose(
        np.linalg.norm(factors.up, axis=0), np.linalg.norm(factors.down, axis=1), rtol=sum_tolerance(np.float64, 48)
    )
