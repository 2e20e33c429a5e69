"""How ranks are chosen: one small frozen type per policy. The algorithms are in `lrd_deploy.ranks`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lrd_deploy.recipe.settings import Settings


class UniformRank(Settings):
    """One compression ratio for every layer: the closed forms, moved to a multiple of `round_to`.

    Source: arXiv 2407.20266, equation 7; the same formula as MUSCO's. AIMET rounds up, to 8.
    """

    policy: Literal["uniform"] = "uniform"
    alpha: float = Field(default=2.0, gt=1.0)
    round_to: int = Field(default=1, ge=1)
    rounding: Literal["down", "up"] = "down"


class EnergyRank(Settings):
    """The least ranks that keep `share` of the squared singular values, raised to a multiple of `round_to`."""

    policy: Literal["energy"] = "energy"
    share: float = Field(default=0.9, gt=0.0, le=1.0)
    round_to: int = Field(default=1, ge=1)


class PaperRank(Settings):
    """The papers' own search, to the letter: the published baseline.

    From the closed form's rank R at `alpha` down to `lowest` × R every rank is timed, and the one just below the
    largest drop is taken where it is faster than dense.

    Source: arXiv 2407.20266, algorithm 1; its least rank is not given there.
    """

    policy: Literal["paper"] = "paper"
    alpha: float = Field(default=2.0, gt=1.0)
    lowest: float = Field(default=0.5, gt=0.0, lt=1.0)


class LatencyRank(Settings):
    """The least predicted loss at `target_speedup`, or the least latency at `max_error`; set one of the two.

    Every distinct layer is timed on the deployment backend, in every form and dense. `max_error` is the relative
    error of the model's outputs on the calibration data before fine-tuning, as predicted. `max_parameters` bounds the
    share of the planned layers' parameters that may remain. `quantum` is the step of the ranks; `auto` finds it,
    and makes it finer in narrow layers.
    `training_weight` is how much a training step counts beside an inference: 0 plans for inference, 1 for training.
    `precision` is that of the timed layers: for models that are converted before they are served. Only in fp32, which
    a run's files are in, is the whole model timed as well.
    """

    policy: Literal["latency"] = "latency"
    target_speedup: float | None = Field(default=None, gt=1.0)
    max_error: float | None = Field(default=None, gt=0.0)
    max_parameters: float | None = Field(default=None, gt=0.0, le=1.0)
    quantum: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    training_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    precision: Literal["fp32", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.target_speedup is None) == (self.max_error is None):
            raise ValueError("a latency policy needs exactly one of 'target_speedup' and 'max_error'")
        return self


Policy = Annotated[UniformRank | EnergyRank | PaperRank | LatencyRank, Field(discriminator="policy")]
