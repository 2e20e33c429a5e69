import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.decompose.leading_svd import gram_svd, leading_svd, randomised_svd
from tests.tolerances import sum_tolerance

LARGE = 1040  # above the size from which leading_svd leaves the whole SVD
FLAT_EXCESS, DECAYING_EXCESS = 0.01, 0.001  # what the method promises over the least possible error


def matrix(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def spectra():
    """Large matrices by the shape of their spectrum, and their singular values."""
    left, right = (np.linalg.qr(matrix(seed, LARGE, LARGE))[0] for seed in (0, 1))
    order = np.arange(1, LARGE + 1)
    decaying = {"root": order**-0.5, "harmonic": 1 / order, "geometric": np.geomspace(1, 1e-4, LARGE)}
    flat = matrix(2, LARGE, LARGE)
    made = {name: ((left * values) @ right.T, values) for name, values in decaying.items()}
    return made | {"flat": (flat, np.linalg.svd(flat, compute_uv=False))}


def excess(exact, values, factors):
    """How far the error is above that of the best approximation of the same rank, as a share of it."""
    u, singular_values, vt = (factor.astype(np.float64) for factor in factors)
    best = np.sqrt((values[len(vt) :] ** 2).sum())
    return np.linalg.norm(exact - (u * singular_values) @ vt) / best - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [LARGE // 32, LARGE // 4, LARGE // 2, LARGE - 1])
@pytest.mark.parametrize("name", ["flat", "root", "harmonic", "geometric"])
def test_the_error_is_close_to_the_least_possible(spectra, name, rank, dtype):
    exact, values = spectra[name]
    promised = FLAT_EXCESS if name == "flat" else DECAYING_EXCESS
    assert excess(exact, values, leading_svd(exact.astype(dtype), rank)) < promised


@pytest.mark.parametrize("shape", [(1100, 1300), (1300, 1100)])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_large_factors_are_orthonormal_whatever_the_scale(shape, scale):
    u, singular_values, vt = leading_svd((scale * matrix(0, *shape)).astype(np.float32), 200)
    slack = sum_tolerance(np.float32, max(shape))
    np.testing.assert_allclose(u.T @ u, np.eye(200), atol=slack)
    np.testing.assert_allclose(vt @ vt.T, np.eye(200), atol=slack)
    assert (np.diff(singular_values) <= slack * singular_values[0]).all()
    assert np.isfinite(singular_values).all()


@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 2**16), data=st.data())
@settings(deadline=None)
def test_the_gram_matrix_gives_the_singular_values(rows, columns, seed, data):
    exact = matrix(seed, rows, columns)
    rank = data.draw(st.integers(1, min(rows, columns)))
    # The Gram matrix squares the condition: what is left is the root of the rounding.
    slack = np.sqrt(sum_tolerance(np.float64, rows * columns)) * np.linalg.norm(exact)
    np.testing.assert_allclose(
        gram_svd(exact, rank)[1], np.linalg.svd(exact, compute_uv=False)[:rank], atol=slack, rtol=0
    )


def test_a_large_matrix_of_zeros_has_factors_of_zeros():
    u, singular_values, vt = leading_svd(np.zeros((LARGE, LARGE), np.float32), 100)
    assert not singular_values.any()
    assert np.isfinite(u).all()
    assert np.isfinite(vt).all()


def test_a_sketch_of_a_decaying_spectrum_is_as_good_as_the_exact_svd():
    u, v = (np.linalg.qr(matrix(seed, 300, 200))[0] for seed in (0, 1))
    decaying = (u * np.geomspace(1, 1e-6, 200)) @ v.T
    exact, sketched = np.linalg.svd(decaying)[1][:20], randomised_svd(decaying, 20)[1]
    np.testing.assert_allclose(sketched, exact, rtol=1e-9)


def test_a_large_matrix_is_sketched_and_comes_out_the_same_every_time():
    large = matrix(0, 1100, 1040)
    one, other = (leading_svd(large, 8)[1] for _ in range(2))
    assert np.array_equal(one, other)
    assert one[0] <= np.linalg.norm(large, 2) * (1 + sum_tolerance(np.float64, large.shape[0]))
