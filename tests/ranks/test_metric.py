import numpy as np
import pytest

from lrd_deploy.ranks.metric import MomentSum
from lrd_deploy.records import LayerSignature

LINEAR = LayerSignature(kind="linear", in_channels=6, out_channels=4)
CONVOLUTION = LayerSignature(
    kind="conv2d", in_channels=6, out_channels=4, kernel=(3, 3), padding=(1, 1), spatial=(40, 40)
)


@pytest.mark.parametrize(("signature", "shape"), [(LINEAR, (3, 5000, 6)), (CONVOLUTION, (5, 6, 40, 40))])
def test_moments_of_float32_inputs_are_within_their_bound_of_float64s(signature, shape):
    inputs = (np.random.default_rng(0).standard_normal(shape) + 3).astype(np.float32)
    exact, rounded = MomentSum("exact", signature), MomentSum("rounded", signature)
    exact.update(inputs.astype(np.float64))
    rounded.update(inputs)
    wanted, found = exact.moment(), rounded.moment()
    assert found.channels.dtype == np.float64
    sizes = np.sqrt(np.diag(wanted.channels))
    assert (np.abs(found.channels - wanted.channels) <= 4096 * 2.0**-24 * np.outer(sizes, sizes)).all()
    assert np.abs(found.channels - wanted.channels).max() > 0
    assert found.positions == wanted.positions


def test_a_moment_is_the_mean_of_outer_products_however_its_batches_are_cut():
    vectors = np.random.default_rng(1).standard_normal((10_000, 6))
    whole, parts = MomentSum("whole", LINEAR), MomentSum("parts", LINEAR)
    whole.update(vectors)
    for part in np.array_split(vectors, 7):
        parts.update(part)
    for total in (whole, parts):
        np.testing.assert_allclose(total.moment().channels, vectors.T @ vectors / len(vectors), rtol=1e-12, atol=1e-12)


def test_the_callers_product_is_used():
    sizes = []

    def product(one, other):
        sizes.append((one.shape, other.shape))
        return one @ other

    MomentSum("layer", LINEAR, product).update(np.ones((5000, 6)))
    assert sizes == [((6, 4096), (4096, 6)), ((6, 904), (904, 6))]
