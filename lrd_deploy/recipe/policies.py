"""How ranks are chosen: one small frozen type per policy. The algorithms are in `lrd_deploy.ranks`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lrd_deploy.recipe.settings import Settings


class UniformRank(Settings):
    """One compression ratio for every layer: the closed forms, floored to a multiple of `round_to`.

    Source: arXiv 2407.20266, equation 7; the same formula as MUSCO's.
    """

    policy: Literal["uniform"] = "uniform"
    alpha: float = Field(default=2.0, gt=1.0)
    round_to: int = Field(default=1, ge=1)


class EnergyRank(Settings):
    """The least ranks that keep `share` of the squared singular values, raised to a multiple of `round_to`."""

    policy: Literal["energy"] = "energy"
    share: float = Field(default=0.9, gt=0.0, le=1.0)
    round_to: int = Field(default=1, ge=1)


class LatencyRank(Settings):
    """The least total error whose summed layer latencies are `target_speedup` times below dense.

    Every distinct layer signature is timed on the deployment backend, dense included, at `steps` rank levels that are
    multiples of `quantum`. `max_parameters` bounds the share of the planned layers' parameters that may remain.

    Limits: the target is met as predicted by the sum over layers; the whole model is measured afterwards.
    """

    policy: Literal["latency"] = "latency"
    target_speedup: float = Field(gt=1.0)
    max_parameters: float | None = Field(default=None, gt=0.0, le=1.0)
    quantum: int = Field(default=16, ge=1)
    steps: int = Field(default=8, ge=2)


Policy = Annotated[UniformRank | EnergyRank | LatencyRank, Field(discriminator="policy")]
