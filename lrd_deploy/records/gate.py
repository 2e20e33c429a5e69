"""What a latency gate saw, by which policy it judged, and what it found.

A slowdown is a share: 0.05 is 5 % slower than the baseline. `low` is a one-sided bound at the policy's
`fail_confidence`, `high` one at its `pass_confidence`, each of a case on its own: of several cases each must be surer
to fail, since they share the error, and what a control is off by is taken from a slowdown besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.graphs import TensorInfo
from lrd_deploy.records.record import Record

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
DecidedBy = Literal["baseline", "accuracy", "parity", "latency"]
Against = Literal["baseline", "anchor"]


class GatePolicy(Record):
    """How evidence is judged. What was measured does not depend on it, so a stored result can be judged again.

    Attributes:
        max_slowdown: a slowdown of this size must be found.
        threshold_share: an estimate below this share of `max_slowdown` never fails.
        fail_confidence: that a failing candidate is slower at all; shared among the cases by Holm's rule.
        pass_confidence: that a passing candidate is not slower by `max_slowdown`.
        control_confidence: with which a control may be called off by half the threshold.
        launches: fresh processes before the first look; even, so that load orders balance.
        most_launches: fresh processes after which the gate gives up.
        confirm: a failure needs a second, independent set of launches that fails too.
        tolerance: largest relative L2 difference of outputs; None is what rounding explains, or anything where
            `max_accuracy_drop` says what counts.
        max_accuracy_drop: largest loss of top-1 accuracy, or of agreement where there are no labels.
    """

    max_slowdown: float = Field(default=0.05, gt=0, le=1)
    threshold_share: float = Field(default=0.6, gt=0, lt=1)
    fail_confidence: float = Field(default=0.99, gt=0.5, lt=1)
    pass_confidence: float = Field(default=0.95, gt=0.5, lt=1)
    control_confidence: float = Field(default=0.999, gt=0.5, lt=1)
    launches: int = Field(default=6, ge=4, multiple_of=2)
    most_launches: int = Field(default=12, ge=4, multiple_of=2)
    confirm: bool = True
    tolerance: float | None = Field(default=None, ge=0)
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.most_launches < self.launches:
            raise ValueError(f"most_launches, {self.most_launches}, is below launches, {self.launches}")
        return self

    @property
    def threshold(self) -> float:
        """The slowdown that an estimate must exceed to fail."""
        return self.threshold_share * self.max_slowdown

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of launches after which the gate looks."""
        return (self.launches, *range(self.launches + 2, self.most_launches + 1, 2))

    @property
    def log_threshold(self) -> float:
        """`threshold` on the scale of log ratios."""
        return log1p(self.threshold)


class LaunchRatio(Record):
    """One launch in two numbers, natural logarithms of ratios to the baseline: above 0 is slower.

    Attributes:
        candidate: of the candidate.
        control: of the second copy of the baseline.
        base_ms: the baseline's median latency in its blocks.
        candidate_ms: the candidate's.
        base_first: whether the baseline was loaded before the candidate.
        settled: whether latency settled during warm-up.
    """

    candidate: float
    control: float
    base_ms: float = Field(gt=0)
    candidate_ms: float = Field(gt=0)
    base_first: bool
    settled: bool = True


class LaunchPool(Record):
    """Launches kept for replay, in few bytes. `launches` has them as they were, to six digits.

    Attributes:
        what: which models, on what kind of machine.
        slowdown: by how much more the candidate computes, as a share; its latency is what was measured.
        rows: the fields of `LaunchRatio`, in their order.
        environment: where they were measured.
    """

    what: str
    slowdown: float
    rows: tuple[tuple[float, float, float, float, bool, bool], ...]
    environment: Environment

    @classmethod
    def of(cls, launches: Sequence[LaunchRatio], **about: Any) -> Self:
        """Packs launches."""
        return cls(rows=tuple(_row(launch) for launch in launches), **about)

    @property
    def launches(self) -> tuple[LaunchRatio, ...]:
        """The launches, in the order they were measured."""
        return tuple(LaunchRatio(**dict(zip(LaunchRatio.model_fields, row, strict=True))) for row in self.rows)


def _row(launch: LaunchRatio) -> tuple[Any, ...]:
    values = launch.model_dump().values()
    return tuple(round(value, 6) if isinstance(value, float) else value for value in values)


class CaseEvidence(Record):
    """The launches of one batch size against one reference: the first set, and the set that confirms a failure."""

    name: str
    batch: int
    threads: int
    against: Against = "baseline"
    launches: tuple[LaunchRatio, ...] = ()
    confirming: tuple[LaunchRatio, ...] = ()


class OutputEvidence(Record):
    """The candidate's outputs beside the reference outputs. `refusal` is why they cannot be compared."""

    samples: int
    rounding_tolerance: float
    relative_l2: float | None = None
    top1_agreement: float | None = None
    baseline_accuracy: float | None = None
    candidate_accuracy: float | None = None
    refusal: str | None = None


class ParityEvidence(Record):
    """The candidate's form: ranks that are not on the quantum, and the share of weights in each precision."""

    quantum: int | None
    off_quantum: tuple[str, ...]
    baseline_precision: dict[str, float]
    candidate_precision: dict[str, float]


class GateArtefact(Record):
    """A model file that took part."""

    name: str
    sha256: str


class GateEvidence(Record):
    """All that a verdict rests on. `baseline` is None where there was none to compare with.

    The anchor is an older reference, such as the last release: it shows what single steps below the threshold add up
    to.
    """

    measured_at: str
    baseline: GateArtefact | None
    candidate: GateArtefact
    anchor: GateArtefact | None = None
    outputs: OutputEvidence | None = None
    anchor_outputs: OutputEvidence | None = None
    parity: ParityEvidence | None = None
    cases: tuple[CaseEvidence, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Environment


class ControlReading(Record):
    """The baseline against its own copy; `trusted` when the machine was calm enough for the threshold."""

    change: float
    low: float
    high: float
    trusted: bool


class CaseVerdict(Record):
    """One batch size. Numbers are None until there are launches enough to state them."""

    name: str
    verdict: Verdict
    reason: str
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    min_detectable: float | None = None
    launches: int = 0
    confirming_launches: int = 0
    base_ms: float | None = None
    candidate_ms: float | None = None
    control: ControlReading | None = None

    @property
    def all_launches(self) -> int:
        """Of both sets."""
        return self.launches + self.confirming_launches


class GateResult(Record):
    """A verdict with its numbers: those of the case with the largest change. None where nothing was timed."""

    schema_version: Literal[1] = 1
    version: str
    verdict: Verdict
    decided_by: DecidedBy
    reasons: tuple[str, ...]
    change: float | None
    low: float | None
    high: float | None
    min_detectable: float | None
    cases: tuple[CaseVerdict, ...]
    policy: GatePolicy
    evidence: GateEvidence


class SlowdownRates(Record):
    """How often gates gave each verdict with the candidate slower by `slowdown`; shares of `gates`."""

    slowdown: float
    gates: int
    fail: float
    passed: float
    inconclusive: float
    mean_launches: float


class SelfTest(Record):
    """What the gate does with the user's own model on this machine.

    `resampled` draws launches anew for every gate; `disjoint` uses every launch once, so its gates are few and
    independent. Slowdowns are simulated by scaling the candidate's times: nothing is slowed down in earnest.
    """

    launches: int
    per_launch_sd: float
    resampled: tuple[SlowdownRates, ...]
    disjoint: tuple[SlowdownRates, ...]
    policy: GatePolicy
    environment: Environment


class Promotion(Record):
    """One line of a baseline's history: what the gate that let it in measured against the baseline before.

    `change` and its bounds are geometric means over that gate's cases; milliseconds are of the first of them.
    """

    promoted_at: str
    model_sha256: str
    verdict: Verdict | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    base_ms: float | None = None
    candidate_ms: float | None = None
    fingerprint: str
    reason: str | None = None


class BaselineHistory(Record):
    """Every promotion of a baseline, oldest first."""

    promotions: tuple[Promotion, ...]


class BaselineManifest(Record):
    """What a baseline holds. `files` are digests by name within `folder`, which lies beside the manifest."""

    schema_version: Literal[1] = 1
    version: str
    folder: str = Field(pattern=r"^[0-9a-f]{16}$")
    files: dict[str, str]
    model: str
    opset: int
    inputs: tuple[TensorInfo, ...]
    samples: int
    labelled: bool
    promotion: Promotion
    environment: Environment
