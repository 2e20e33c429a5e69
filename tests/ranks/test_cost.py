import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lrd_deploy.decompose.layers import SVDConv2d, SVDLinear, Tucker2Conv2d
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.cost import macs, output_size, parameters
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, LayerSignature, SpatialSVD, Tucker2

small = st.integers(1, 6)


def signature_of(layer, example):
    return survey(nn.Sequential(layer), example)[0].signature


def count(layer, skip_bias=True):
    return sum(p.numel() for name, p in layer.named_parameters() if not (skip_bias and name.endswith("bias")))


def macs_by_running(layer, example):
    """Counts output positions × weights of every submodule in one real forward pass."""
    total = 0

    def add(module, _args, output):
        nonlocal total
        positions = output[0].numel() // (module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)
        total += positions * module.weight.numel()

    for module in layer.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    layer(example)
    return total


@given(c=st.integers(2, 8), s=st.integers(2, 8), k=st.integers(1, 3), stride=small, padding=st.integers(0, 2))
def test_counts_are_those_of_the_real_modules(c, s, k, stride, padding):
    dense, x = nn.Conv2d(c, s, k, stride=stride, padding=padding), torch.randn(1, c, 11, 9)
    signature = signature_of(dense, x)
    assert tuple(dense(x).shape[2:]) == output_size(signature)
    pairs = [ChannelSVD(rank=2), ChannelSVD(rank=2, kernel_on="up"), SpatialSVD(rank=2)]
    factorised = (
        [(SVDConv2d(dense, SVD(rank=1)), SVD(rank=1))]
        if k == 1
        else [(SVDConv2d(dense, choice), choice) for choice in pairs]
        + [(Tucker2Conv2d(dense, Tucker2(rank_in=1, rank_out=2)), Tucker2(rank_in=1, rank_out=2))]
    )
    for module, chosen in ((dense, KeepDense()), *factorised):
        assert parameters(signature, chosen) == count(module)
        assert macs(signature, chosen) == macs_by_running(module, x)


def test_counts_of_a_linear_layer_on_a_sequence():
    dense, x = nn.Linear(6, 4), torch.randn(2, 5, 6)
    signature = signature_of(dense, x)
    assert signature.spatial == (5,)
    layer = SVDLinear(dense, SVD(rank=2))
    assert macs(signature, SVD(rank=2)) == macs_by_running(layer, x)


def test_a_grouped_convolution_counts_its_groups():
    signature = LayerSignature(kind="conv2d", in_channels=8, out_channels=8, kernel=(3, 3), groups=8, spatial=(5, 5))
    assert parameters(signature, KeepDense()) == 72
