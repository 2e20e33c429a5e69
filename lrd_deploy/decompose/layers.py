"""The factorised layers: `from_dense` builds one, `forward` is the paper's equation, `merge` goes back.

The plain constructor makes a layer of the right shape with new weights, to load stored ones into.

Submodules are named in data-flow order, and only the last factor carries the bias. Every factor is a stock PyTorch
layer, so exporters, optimizers and compilers treat it as they treat any other.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors, svd_factors, tucker2_factors
from lrd_deploy.records import SVD, Tucker2

FactorGroup = Literal["A", "B"]


class SVDLinear(nn.Module):
    """A linear layer as two: `y = up(down(x))`."""

    groups: ClassVar[dict[str, FactorGroup]] = {"down": "A", "up": "B"}

    def __init__(self, like: nn.Linear, choice: SVD) -> None:
        super().__init__()
        self.down = nn.Linear(like.in_features, choice.rank, bias=False, **_kept_where(like))
        self.up = nn.Linear(choice.rank, like.out_features, bias=like.bias is not None, **_kept_where(like))

    @classmethod
    def from_dense(cls, dense: nn.Linear, choice: SVD) -> SVDLinear:
        """Returns the closest layer of that rank, on the dense layer's device and in its dtype."""
        factors = svd_factors(dense.weight.detach().cpu().double().numpy(), choice.rank)
        return _filled(cls(dense, choice), dense, down=factors.down, up=factors.up)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.up(self.down(x))

    def merge(self) -> nn.Linear:
        """Returns one dense layer with the same output."""
        bias = self.up.bias is not None
        dense = nn.Linear(self.down.in_features, self.up.out_features, bias=bias, **_kept_where(self.up))
        factors = SVDFactors(_array(self.down), _array(self.up))
        return _merged(dense, self.up, factors.product())


class SVDConv2d(nn.Module):
    """A 1×1 convolution as two. Stride and padding stay on `down`, where they save the most work."""

    groups: ClassVar[dict[str, FactorGroup]] = {"down": "A", "up": "B"}

    def __init__(self, like: nn.Conv2d, choice: SVD) -> None:
        super().__init__()
        where = _kept_where(like)
        self.down = nn.Conv2d(like.in_channels, choice.rank, 1, bias=False, **_placement(like), **where)
        self.up = nn.Conv2d(choice.rank, like.out_channels, 1, bias=like.bias is not None, **where)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, choice: SVD) -> SVDConv2d:
        """Returns the closest layer of that rank, on the dense layer's device and in its dtype."""
        weight = dense.weight.detach().cpu().double().numpy()[:, :, 0, 0]  # (out, in)
        factors = svd_factors(weight, choice.rank)
        return _filled(cls(dense, choice), dense, down=factors.down, up=factors.up)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        return self.up(self.down(x))

    def merge(self) -> nn.Conv2d:
        """Returns one dense layer with the same output."""
        factors = SVDFactors(_array(self.down)[:, :, 0, 0], _array(self.up)[:, :, 0, 0])
        return _merged(_dense_like(self.down, self.down, self.up), self.up, factors.product()[:, :, None, None])


class Tucker2Conv2d(nn.Module):
    """A k×k convolution as three. Stride, padding and dilation stay on the core."""

    groups: ClassVar[dict[str, FactorGroup]] = {"first": "A", "core": "B", "last": "A"}

    def __init__(self, like: nn.Conv2d, choice: Tucker2) -> None:
        super().__init__()
        where, placed = _kept_where(like), _placement(like)
        self.first = nn.Conv2d(like.in_channels, choice.rank_in, 1, bias=False, **where)
        self.core = nn.Conv2d(choice.rank_in, choice.rank_out, like.kernel_size, bias=False, **placed, **where)
        self.last = nn.Conv2d(choice.rank_out, like.out_channels, 1, bias=like.bias is not None, **where)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, choice: Tucker2) -> Tucker2Conv2d:
        """Returns a HOOI approximation with those ranks, on the dense layer's device and in its dtype."""
        factors = tucker2_factors(dense.weight.detach().cpu().double().numpy(), choice.rank_in, choice.rank_out)
        return _filled(cls(dense, choice), dense, first=factors.first, core=factors.core, last=factors.last)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        return self.last(self.core(self.first(x)))

    def merge(self) -> nn.Conv2d:
        """Returns one dense layer with the same output."""
        first, core, last = _array(self.first)[:, :, 0, 0], _array(self.core), _array(self.last)[:, :, 0, 0]
        dense = _dense_like(self.core, self.first, self.last)
        return _merged(dense, self.last, Tucker2Factors(first, core, last).product())


FactorisedLayer = SVDLinear | SVDConv2d | Tucker2Conv2d


def _placement(like: nn.Conv2d) -> dict:
    """Where the kernel is put on the input: everything about a convolution but its channels and kernel."""
    return {
        "stride": like.stride,
        "padding": like.padding,
        "dilation": like.dilation,
        "padding_mode": like.padding_mode,
    }


def _kept_where(like: nn.Linear | nn.Conv2d) -> dict:
    """The device and dtype of a layer."""
    return {"device": like.weight.device, "dtype": like.weight.dtype}


def _dense_like(placed: nn.Conv2d, entry: nn.Conv2d, exit_: nn.Conv2d) -> nn.Conv2d:
    settings = {"bias": exit_.bias is not None, **_placement(placed), **_kept_where(placed)}
    return nn.Conv2d(entry.in_channels, exit_.out_channels, placed.kernel_size, **settings)


def _array(layer: nn.Linear | nn.Conv2d):  # noqa: ANN202
    return layer.weight.detach().cpu().double().numpy()


def _filled(layer: nn.Module, dense: nn.Linear | nn.Conv2d, **factors: object) -> nn.Module:
    """Copies the factors into the submodules of those names, and the dense bias into the last one."""
    with torch.no_grad():
        for name, factor in factors.items():
            weight = getattr(layer, name).weight
            weight.copy_(torch.as_tensor(factor).reshape(weight.shape))  # (out, in) → (out, in, 1, 1) for 1×1
        if dense.bias is not None:
            getattr(layer, name).bias.copy_(dense.bias)
    return layer.train(dense.training)


def _merged(dense: nn.Module, last: nn.Module, product: object) -> nn.Module:
    """Copies the product of the factors and the last factor's bias into `dense`."""
    with torch.no_grad():
        dense.weight.copy_(torch.as_tensor(product))
        if last.bias is not None:
            dense.bias.copy_(last.bias)
    return dense.train(last.training)
