"""Two files compared by what they compute, and the policy by which that is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lrd_deploy.records.graphs import OutputDifference
from lrd_deploy.records.record import Record


class VerifyPolicy(Record):
    """What must hold for two files to count as equal. What is None is not asked for.

    Attributes:
        tolerance: largest relative L2 difference; None is what rounding in the files' precisions explains.
        max_abs: largest difference of any value.
        min_cosine: smallest cosine between all outputs.
        min_sqnr_db: smallest ratio of signal to difference, in decibels.
        min_top1_agreement: smallest share of samples with the same largest output.
    """

    tolerance: float | None = Field(default=None, ge=0)
    max_abs: float | None = Field(default=None, ge=0)
    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    min_sqnr_db: float | None = None
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)


class Verification(OutputDifference):
    """A difference with the verdict on it; it can be judged again by another policy, without running anything.

    Attributes:
        inputs: what both were run on, "given" or "random".
        sqnr_db: signal to difference, −20·log₁₀ of `relative_l2`; None of equal outputs.
        rounding: the relative L2 difference that rounding in the files' precisions explains.
        reference_sha256: of the file.
        candidate_sha256: of the file.
        precisions: of the weights, reference and candidate.
        policy: what it was judged by.
        reasons: why it did not pass.
    """

    inputs: Literal["given", "random"] = "given"
    sqnr_db: float | None
    rounding: float
    reference_sha256: str
    candidate_sha256: str
    precisions: tuple[str, str]
    policy: VerifyPolicy
    reasons: tuple[str, ...]
