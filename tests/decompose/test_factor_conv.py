"""A frozen factor convolution gives the gradients of a stock one, bit for bit, and keeps less."""

import pytest
import torch
from torch import nn

from lrd_deploy.decompose.factor_conv import FactorConv2d

PLACEMENTS = {
    "pointwise": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "no bias": {"kernel_size": 3, "bias": False},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def pair(**placement):
    """A stock convolution and ours, with the same weights, both frozen."""
    torch.manual_seed(0)
    stock, ours = (kind(6, 8, **placement) for kind in (nn.Conv2d, FactorConv2d))
    ours.load_state_dict(stock.state_dict())
    for layer in (stock, ours):
        layer.weight.requires_grad_(False)
    return stock, ours


def gradients(layer, x, precision=None):
    """Of the input, the bias, and the output itself."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        y = layer(x)
    y.square().sum().backward()
    bias = None if layer.bias is None else layer.bias.grad
    return y, x.grad, bias


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_gradients_are_those_of_a_stock_convolution(placement, precision, layout):
    stock, ours = (layer.to(memory_format=layout) for layer in pair(**placement))
    x = torch.randn(2, 6, 10, 10).contiguous(memory_format=layout)
    for expected, got in zip(gradients(stock, x, precision), gradients(ours, x, precision), strict=True):
        assert got is None if expected is None else torch.equal(expected, got)
    assert ours.weight.grad is None


def kept(layer, x):
    """Bytes that autograd keeps for backward besides the layer's own weights."""
    own, saved = {parameter.data_ptr() for parameter in layer.parameters()}, []

    def pack(tensor):
        saved.append(0 if tensor.data_ptr() in own else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(saved)


def test_a_frozen_one_keeps_nothing_and_a_learning_one_its_input():
    stock, ours = pair(kernel_size=3)
    x = torch.randn(2, 6, 10, 10, requires_grad=True)
    assert kept(stock, x) == x.nbytes
    assert kept(ours, x) == 0
    ours.weight.requires_grad_()
    assert kept(ours, x) == x.nbytes


def test_a_frozen_bias_and_an_input_without_gradient_work_too():
    stock, ours = pair(kernel_size=3)
    ours.bias.requires_grad_(False)
    x = torch.randn(2, 6, 10, 10)
    assert torch.equal(ours(x), stock(x))
    ours(x.requires_grad_()).sum().backward()
    assert x.grad is not None
