import pytest
import torch
from torch import nn

from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.decompose.layers import SVDConv2d, SVDLinear, Tucker2Conv2d
from lrd_deploy.records import SVD, ChannelSVD, SpatialSVD, Tucker2
from tests.tolerances import sum_tolerance

torch.manual_seed(0)

CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": 2},
    "uneven stride": {"stride": (1, 2)},
    "padding": {"padding": 2},
    "same": {"padding": "same"},
    "dilation": {"dilation": 2, "padding": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "no bias": {"bias": False},
    "all": {"stride": 2, "padding": (0, 1), "dilation": (2, 1)},
}


def assert_same_output(one, other, x, length):
    """Both in float32, each compared with the first in float64."""
    exact = one.double()(x.double())
    scale = exact.abs().max().item()
    torch.testing.assert_close(other.float()(x).double(), exact, rtol=0, atol=sum_tolerance("float32", length, scale))


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_tucker2_at_full_rank_gives_the_dense_output_and_merges_back(settings):
    dense = nn.Conv2d(6, 8, 3, **settings)
    x = torch.randn(2, 6, 12, 12)
    layer = Tucker2Conv2d.from_dense(dense, Tucker2(rank_in=6, rank_out=8))
    assert_same_output(dense, layer, x, length=3 * 54)
    assert_same_output(layer, layer.merge(), x, length=3 * 54)


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize(
    "choice", [ChannelSVD(rank=8), ChannelSVD(rank=6, kernel_on="up"), SpatialSVD(rank=18)], ids=str
)
def test_every_pair_at_full_rank_gives_the_dense_output_and_merges_back(choice, settings):
    dense = nn.Conv2d(6, 8, (3, 3), **settings)
    x = torch.randn(2, 6, 12, 12)
    layer = SVDConv2d.from_dense(dense, choice)
    assert_same_output(dense, layer, x, length=3 * 54)
    assert_same_output(layer, layer.merge(), x, length=3 * 54)


@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"stride": 2, "padding": 1}, {"bias": False}])
def test_svd_conv_at_full_rank_gives_the_dense_output_and_merges_back(settings):
    dense = nn.Conv2d(6, 8, 1, **settings)
    x = torch.randn(2, 6, 9, 9)
    layer = SVDConv2d.from_dense(dense, SVD(rank=6))
    assert_same_output(dense, layer, x, length=12)
    assert_same_output(layer, layer.merge(), x, length=12)


@pytest.mark.parametrize("bias", [True, False])
def test_svd_linear_at_full_rank_gives_the_dense_output_and_merges_back(bias):
    dense = nn.Linear(6, 8, bias=bias)
    x = torch.randn(2, 5, 6)
    layer = SVDLinear.from_dense(dense, SVD(rank=6))
    assert_same_output(dense, layer, x, length=12)
    assert_same_output(layer, layer.merge(), x, length=12)


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize(
    "choice",
    [ChannelSVD(rank=3), ChannelSVD(rank=3, kernel_on="up"), SpatialSVD(rank=3), Tucker2(rank_in=2, rank_out=3)],
    ids=str,
)
def test_a_factorised_convolution_answers_for_the_settings_of_the_dense_one(choice, settings):
    dense = nn.Conv2d(6, 8, 3, **settings)
    layer = (Tucker2Conv2d if isinstance(choice, Tucker2) else SVDConv2d).from_dense(dense, choice)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(layer, name) == getattr(dense, name), name


def test_a_factorised_linear_layer_answers_for_its_widths():
    layer = SVDLinear.from_dense(nn.Linear(6, 8), SVD(rank=3))
    assert (layer.in_features, layer.out_features) == (6, 8)


def test_a_strided_pointwise_convolution_strides_before_it_computes():
    layer = SVDConv2d.from_dense(nn.Conv2d(6, 8, 1, stride=2), SVD(rank=2))
    assert layer.down.stride == (2, 2)
    assert layer.up.stride == (1, 1)


def test_layers_keep_dtype_and_mode():
    dense = nn.Conv2d(6, 8, 3).to(torch.bfloat16).eval()
    layer = Tucker2Conv2d.from_dense(dense, Tucker2(rank_in=2, rank_out=2))
    assert layer.core.weight.dtype == torch.bfloat16
    assert not layer.training


def test_batchnorm_statistics_become_those_of_the_data_and_nothing_else_changes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)).eval()
    weights = [parameter.clone() for parameter in model.parameters()]
    batches = [torch.randn(16, 3, 5, 5) + 2 for _ in range(4)]
    assert reestimate_batchnorm_(model, batches) == 4
    with torch.no_grad():
        means = torch.stack([model[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means, rtol=0, atol=sum_tolerance("float32", 400, 2))
    assert model[1].momentum == 0.3
    assert not model.training
    assert not model[1].training
    for before, after in zip(weights, model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_model_without_batchnorm_is_not_run():
    assert reestimate_batchnorm_(nn.Linear(2, 2), iter(())) == 0


def test_no_batch_leaves_the_statistics_alone():
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(5.0)
    assert reestimate_batchnorm_(nn.Sequential(norm), []) == 0
    assert torch.equal(norm.running_mean, torch.full((3,), 5.0))


def test_a_layer_deliberately_in_eval_mode_stays_there():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    model[0].eval()
    reestimate_batchnorm_(model, [torch.randn(8, 3)])
    assert [norm.training for norm in model] == [False, True]


def test_float64_layers_are_factorised_and_merged_in_float64():
    dense = nn.Linear(6, 8).double()
    layer = SVDLinear.from_dense(dense, SVD(rank=6))
    difference = (layer.merge().weight - dense.weight).abs().max().item()
    assert layer.down.weight.dtype == torch.float64
    assert difference < sum_tolerance("float64", 12, 1.0)


@pytest.mark.parametrize(
    ("form", "dense", "choice"),
    [
        (SVDLinear, nn.Linear(6, 8), SVD(rank=3)),
        (SVDConv2d, nn.Conv2d(6, 8, 1, stride=2), SVD(rank=3)),
        (SVDConv2d, nn.Conv2d(6, 8, (3, 5), bias=False), ChannelSVD(rank=5)),
        (SVDConv2d, nn.Conv2d(6, 8, (3, 5)), ChannelSVD(rank=5, kernel_on="up")),
        (SVDConv2d, nn.Conv2d(6, 8, (3, 5)), SpatialSVD(rank=7)),
        (Tucker2Conv2d, nn.Conv2d(6, 8, (3, 5)), Tucker2(rank_in=4, rank_out=5)),
    ],
    ids=str,
)
def test_weight_and_bias_are_those_of_the_merged_layer_and_carry_gradients(form, dense, choice):
    layer = form.from_dense(dense.double(), choice)
    merged = layer.merge()
    scale = merged.weight.abs().max().item()
    torch.testing.assert_close(
        layer.weight, merged.weight.detach(), rtol=0, atol=sum_tolerance("float64", 3 * 54, scale)
    )
    assert (layer.bias is None) == (merged.bias is None)
    assert layer.bias is None or torch.equal(layer.bias, merged.bias)
    layer.weight.sum().backward()
    assert all(factor.weight.grad is not None for factor in layer.children())


def test_a_model_that_reads_its_layers_weight_runs_and_trains_decomposed():
    """As many a transformer does: for its dtype, or to multiply with it."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.cast, self.tied = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return nn.functional.linear(self.cast(x.to(self.cast.weight.dtype)), self.tied.weight, self.tied.bias)

    model, x = Reads(), torch.randn(2, 6)
    expected = model(x)
    model.cast, model.tied = (SVDLinear.from_dense(layer, SVD(rank=6)) for layer in (model.cast, model.tied))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
