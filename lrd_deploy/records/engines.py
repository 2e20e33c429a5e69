"""What an engine was built for, and where: shapes, processor or GPU, timings."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from lrd_deploy.records.record import Record


class DimensionRange(Record):
    """The sizes of one dynamic dimension: an engine takes min to max and is tuned for opt. Reads 8 and [1, 8, 64]."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "opt": value, "max": value}
        if isinstance(value, (list, tuple)) and len(value) == 3:
            return dict(zip(("min", "opt", "max"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max}: sizes must rise")
        return self


class InputProfile(Record):
    """The shapes of one input that an engine takes; a dimension with one size is built in."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class TargetGpu(Record):
    """The GPU that an engine was built on: its generation such as "8.6", and the release of its driver."""

    name: str
    compute_capability: str
    driver: str


class Processor(Record):
    """A processor, and those of its instruction sets that inference kernels are chosen by."""

    name: str
    instructions: tuple[str, ...]


class TimingCacheUse(Record):
    """The timing cache that a build read and wrote.

    `sha256_before` is None where it was empty. `not_saved` is why the build's timings are not in it, None where they
    are.
    """

    name: str
    sha256_before: str | None
    sha256: str | None
    not_saved: str | None = None
