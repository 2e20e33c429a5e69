"""A convolution that, while its weight is frozen, keeps nothing for backward but that weight.

Stock PyTorch keeps a convolution's input whether or not the weight learns (pytorch issue 133566); only the gradient of
the weight needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FactorConv2d(nn.Conv2d):
    """`nn.Conv2d` in every respect, with the same parameters; leaner in training when its weight is frozen."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        lean = torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad
        if not lean or x.ndim != 4 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        placement = (self.stride, self.padding, self.dilation, self.groups)
        return _FrozenConvolution.apply(x, weight, bias, placement)


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose backward gives gradients of the input and the bias, never of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, placement: tuple) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        stride, padding, dilation, groups = placement
        ctx.save_for_backward(weight)
        ctx.placement, ctx.shape, ctx.bias_sizes = placement, x.shape, None if bias is None else list(bias.shape)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(batch, out, h', w') → (batch, in, h, w), and (out,) where the bias learns."""
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.placement
        of_input, _, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            gradient.new_empty(1).expand(ctx.shape),  # only its shape is looked at
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            transposed=False,
            output_padding=(0, 0),
            groups=groups,
            output_mask=(ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]),
        )
        return of_input, None, of_bias, None
