"""Layers, and the forms that they can take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lrd_deploy.records.record import Record


class LayerSignature(Record):
    """All that a layer's latency depends on; equal signatures are measured once.

    `spatial` is the input's size without batch and channels: (height, width) of a convolution, (tokens,) or () of a
    linear layer.
    """

    kind: Literal["linear", "conv2d"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    spatial: tuple[int, ...] = ()

    @property
    def pointwise(self) -> bool:
        """True where the layer is one matrix: a linear layer or a 1×1 convolution."""
        return self.kernel == (1, 1)

    def __str__(self) -> str:
        size = "×".join(map(str, self.spatial)) or "1"
        kernel = "" if self.kind == "linear" else f" {self.kernel[0]}×{self.kernel[1]}"
        stride = f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        return f"{self.kind}{kernel}{stride} {self.in_channels}→{self.out_channels} at {size}"


class KeepDense(Record):
    """The layer stays as it is."""

    form: Literal["dense"] = "dense"

    def __str__(self) -> str:
        return "dense"


class SVD(Record):
    """Two factors of one rank for a linear layer or a 1×1 convolution: `W ≈ up @ down`."""

    form: Literal["svd"] = "svd"
    rank: int = Field(ge=1)

    def __str__(self) -> str:
        return f"svd {self.rank}"


class ChannelSVD(Record):
    """Two factors for a k×k convolution, one of them 1×1; `kernel_on` names the factor that keeps the kernel.

    `down` has the kernel: k×k (in → rank), then 1×1 (rank → out). `up` has it: 1×1 first, then k×k.
    """

    form: Literal["channel_svd"] = "channel_svd"
    rank: int = Field(ge=1)
    kernel_on: Literal["down", "up"] = "down"

    def __str__(self) -> str:
        return f"channel svd {self.rank}" + ("" if self.kernel_on == "down" else ", kernel last")


class SpatialSVD(Record):
    """Two factors for a k×k convolution: k×1 (in → rank), then 1×k (rank → out)."""

    form: Literal["spatial_svd"] = "spatial_svd"
    rank: int = Field(ge=1)

    def __str__(self) -> str:
        return f"spatial svd {self.rank}"


class Tucker2(Record):
    """Three factors: `first` (in → rank_in), `core` (k×k), `last` (rank_out → out)."""

    form: Literal["tucker2"] = "tucker2"
    rank_in: int = Field(ge=1)
    rank_out: int = Field(ge=1)

    def __str__(self) -> str:
        return f"tucker2 {self.rank_in}, {self.rank_out}"


TwoFactors = SVD | ChannelSVD | SpatialSVD
Choice = Annotated[KeepDense | SVD | ChannelSVD | SpatialSVD | Tucker2, Field(discriminator="form")]
