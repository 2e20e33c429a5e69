"""The factorised layers: `from_dense` builds one, `forward` is the paper's equation, `merge` goes back.

The plain constructor makes a layer of the right shape with new weights, to load stored ones into.

Submodules are named in data-flow order, and only the last factor carries the bias. Every factor is a stock PyTorch
layer, so exporters, optimizers and compilers treat it as they treat any other. `weight`, `bias` and the settings of the
dense layer, such as `in_features` and `stride`, can be read as on that, since many a model asks one of its layers for
`weight.dtype`, uses its weight directly or pads as its stride says; `weight` is then composed anew, and exporters drop
it where nothing comes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrd_deploy.decompose.factor_conv import FactorConv2d
from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors, svd_factors, tucker2_factors
from lrd_deploy.ranks.forms import FactorShape, factor_shapes
from lrd_deploy.ranks.metric import Metric
from lrd_deploy.records import SVD, Choice, Tucker2, TwoFactors

FactorGroup = Literal["A", "B"]


class SVDLinear(nn.Module):
    """A linear layer as two: `y = up(down(x))`."""

    groups: ClassVar[dict[str, FactorGroup]] = {"down": "A", "up": "B"}

    def __init__(self, like: nn.Linear, choice: SVD) -> None:
        super().__init__()
        self.down = nn.Linear(like.in_features, choice.rank, bias=False, **_kept_where(like))
        self.up = nn.Linear(choice.rank, like.out_features, bias=like.bias is not None, **_kept_where(like))

    @classmethod
    def from_dense(cls, dense: nn.Linear, choice: SVD, metric: Metric | None = None) -> SVDLinear:
        """Returns the closest layer of that rank, on the dense layer's device and in its dtype."""
        factors = svd_factors(_array(dense), choice, metric)
        return _filled(cls(dense, choice), dense, down=factors.down, up=factors.up)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.up(self.down(x))

    @property
    def weight(self) -> Tensor:
        """(out, in): the product of the factors, with its gradient."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """(out,)."""
        return self.up.bias

    @property
    def in_features(self) -> int:
        """The width of the input."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """The width of the output."""
        return self.up.out_features

    def merge(self) -> nn.Linear:
        """Returns one dense layer with the same output."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, **_kept_where(self.up))
        return _merged(dense, self.up, SVDFactors(_array(self.down), _array(self.up)).product())


class _Convolution(nn.Module):
    """The settings of the dense convolution that the factors stand for, read from the factors."""

    @property
    def in_channels(self) -> int:
        """The width of the input."""
        return self._in_order[0].in_channels

    @property
    def out_channels(self) -> int:
        """The width of the output."""
        return self._in_order[-1].out_channels

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Pixels along (height, width)."""
        return _joint(self._in_order, "kernel_size")

    @property
    def stride(self) -> tuple[int, int]:
        """Along (height, width)."""
        return _joint(self._in_order, "stride")

    @property
    def dilation(self) -> tuple[int, int]:
        """Along (height, width)."""
        return _joint(self._in_order, "dilation")

    @property
    def padding(self) -> tuple[int, int] | str:
        """In pixels along (height, width), or the word for it."""
        words = [factor.padding for factor in self._in_order if isinstance(factor.padding, str)]
        return words[0] if words else _joint(self._in_order, "padding")

    @property
    def padding_mode(self) -> str:
        """PyTorch's word for what the padding holds."""
        modes = (factor.padding_mode for factor in self._in_order)
        return next((mode for mode in modes if mode != "zeros"), "zeros")

    @property
    def _in_order(self) -> tuple[nn.Conv2d, ...]:
        return tuple(self.get_submodule(name) for name in type(self).groups)


class SVDConv2d(_Convolution):
    """A convolution as two: SVD of a 1×1, channel SVD or spatial SVD of a k×k.

    Each axis' kernel, stride, padding and dilation stay on one of the two: see `ranks.forms`.
    """

    groups: ClassVar[dict[str, FactorGroup]] = {"down": "A", "up": "B"}

    def __init__(self, like: nn.Conv2d, choice: TwoFactors) -> None:
        super().__init__()
        self.down, self.up = _factors(like, choice)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, choice: TwoFactors, metric: Metric | None = None) -> SVDConv2d:
        """Returns the closest layer of that form and rank, on the dense layer's device and in its dtype."""
        factors = svd_factors(_array(dense), choice, metric)
        return _filled(cls(dense, choice), dense, down=factors.down, up=factors.up)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        return self.up(self.down(x))

    @property
    def weight(self) -> Tensor:
        """(out, in, kh, kw): the product of the factors, with its gradient."""
        return _composed(self.down.weight, self.up.weight)

    @property
    def bias(self) -> nn.Parameter | None:
        """(out,)."""
        return self.up.bias

    def merge(self) -> nn.Conv2d:
        """Returns one dense layer with the same output."""
        product = SVDFactors(_array(self.down), _array(self.up)).product()
        return _merged(_dense_like(self), self.up, product)


class Tucker2Conv2d(_Convolution):
    """A k×k convolution as three. Stride, padding and dilation stay on the core."""

    groups: ClassVar[dict[str, FactorGroup]] = {"first": "A", "core": "B", "last": "A"}

    def __init__(self, like: nn.Conv2d, choice: Tucker2) -> None:
        super().__init__()
        self.first, self.core, self.last = _factors(like, choice)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, choice: Tucker2, metric: Metric | None = None) -> Tucker2Conv2d:
        """Returns a HOOI approximation with those ranks, on the dense layer's device and in its dtype."""
        factors = tucker2_factors(_array(dense), choice, metric)
        return _filled(cls(dense, choice), dense, first=factors.first, core=factors.core, last=factors.last)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w')."""
        return self.last(self.core(self.first(x)))

    @property
    def weight(self) -> Tensor:
        """(out, in, kh, kw): the product of the factors, with its gradient."""
        return _composed(self.first.weight, self.core.weight, self.last.weight)

    @property
    def bias(self) -> nn.Parameter | None:
        """(out,)."""
        return self.last.bias

    def merge(self) -> nn.Conv2d:
        """Returns one dense layer with the same output."""
        first, core, last = _array(self.first)[:, :, 0, 0], _array(self.core), _array(self.last)[:, :, 0, 0]
        return _merged(_dense_like(self), self.last, Tucker2Factors(first, core, last).product())


FactorisedLayer = SVDLinear | SVDConv2d | Tucker2Conv2d


def _factors(like: nn.Conv2d, choice: Choice) -> list[FactorConv2d]:
    """The factors as convolutions with new weights; the last has the bias."""
    shapes = factor_shapes(like.in_channels, like.out_channels, choice)
    return [_factor(like, shape, bias=shape is shapes[-1] and like.bias is not None) for shape in shapes]


def _factor(like: nn.Conv2d, shape: FactorShape, *, bias: bool) -> FactorConv2d:
    placement = {
        name: _placed(getattr(like, name), shape.places, neutral=1) for name in ("kernel_size", "stride", "dilation")
    }
    if any(shape.places):
        # 'same' and 'valid' mean the same along an axis where the kernel is 1.
        words = isinstance(like.padding, str)
        padding = like.padding if words else _placed(like.padding, shape.places, neutral=0)
        placement |= {"padding": padding, "padding_mode": like.padding_mode}
    return FactorConv2d(shape.in_channels, shape.out_channels, bias=bias, **placement, **_kept_where(like))


def _placed(sizes: tuple[int, int], places: tuple[bool, bool], *, neutral: int) -> tuple[int, ...]:
    return tuple(size if placed else neutral for size, placed in zip(sizes, places, strict=True))


def _joint(factors: Sequence[nn.Conv2d], name: str) -> tuple[int, int]:
    """A setting of the factors together: each axis as the one factor has it that places it."""
    height, width = (max(sizes) for sizes in zip(*(getattr(factor, name) for factor in factors), strict=True))
    return height, width


def _dense_like(layer: _Convolution) -> nn.Conv2d:
    """A dense convolution with the settings of a factorised one."""
    settings = ("kernel_size", "stride", "dilation", "padding", "padding_mode")
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        bias=layer.bias is not None,
        **{name: getattr(layer, name) for name in settings},
        **_kept_where(layer.get_submodule(next(iter(layer.groups)))),
    )


def _composed(*weights: Tensor) -> Tensor:
    """The weight of convolutions one after the other, of which at most one has a kernel along each axis."""

    def after(down: Tensor, up: Tensor) -> Tensor:
        product = torch.einsum("orab,ricd->oiacbd", up, down)  # of a and c, and of b and d, one is 1
        return product.flatten(4).flatten(2, 3)

    return reduce(after, weights)


def _kept_where(like: nn.Linear | nn.Conv2d) -> dict:
    """The device and dtype of a layer."""
    return {"device": like.weight.device, "dtype": like.weight.dtype}


def _array(layer: nn.Linear | nn.Conv2d):  # noqa: ANN202
    weight = layer.weight.detach().cpu()
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).numpy()  # numpy has no bfloat16


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
