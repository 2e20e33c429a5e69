"""What a running gate has seen, kept on disk.

`gate.json` holds the result so far after every launch, judged as it stands: a gate that is interrupted leaves a valid
one, and a stored result can be judged again under another policy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from lrd_deploy.bench.launch import LaunchSamples
from lrd_deploy.bench.statistics import block_log_ratio, median
from lrd_deploy.files import storage_errors, write_text
from lrd_deploy.gate.judge import judge
from lrd_deploy.gate.sequence import Which, most_launches
from lrd_deploy.observer import Observer
from lrd_deploy.records import GateEvidence, GatePolicy, GateResult, LaunchRatio

RESULT, SAMPLES = "gate.json", "samples.jsonl"


class Notebook:
    """The evidence of one gate; grows launch by launch."""

    def __init__(self, evidence: GateEvidence, policy: GatePolicy, folder: Path, observer: Observer) -> None:
        """Starts with what is known before the first launch, in a folder that exists."""
        self.evidence = evidence
        self._policy, self._folder, self._observer = policy, folder, observer
        self._sets: dict[tuple[str, Which], list[LaunchRatio]] = {}
        self._seen = self._unsettled = self._waited = 0
        write_text(folder / SAMPLES, "")

    def ratios(self, case: str, launches: Generator[LaunchSamples]) -> Iterator[LaunchRatio]:
        """Passes a case's launches on as ratios, after keeping their raw samples."""
        for number, samples in enumerate(launches, 1):
            self._seen += 1
            self._unsettled += not samples.warmup_converged
            self._waited += samples.waited
            path = self._folder / SAMPLES
            with storage_errors("writing", path), path.open("a", encoding="utf-8") as stream:
                stream.write(f'{{"case": "{case}", "launch": {samples.model_dump_json()}}}\n')
            self._observer.progress(f"measuring {case}", number, most_launches(self._policy))
            yield launch_ratio(samples)

    def keep(self, case: str, which: Which, launch: LaunchRatio) -> None:
        """Adds a launch to a case's first or confirming set, and stores the result so far."""
        self._sets.setdefault((case, which), []).append(launch)
        self.store()

    def store(self) -> GateResult:
        """Judges what there is, writes the result and returns it."""
        cases = tuple(
            case.model_copy(
                update={which: tuple(self._sets.get((case.name, which), ())) for which in ("launches", "confirming")}
            )
            for case in self.evidence.cases
        )
        warnings = (*self.evidence.warnings, *self._about_the_machine())
        result = judge(self.evidence.model_copy(update={"cases": cases, "warnings": warnings}), self._policy)
        result.write(self._folder / RESULT)
        return result

    def _about_the_machine(self) -> Iterator[str]:
        of_all = f"of {self._seen} launches"
        if self._waited:
            yield f"another measurement ran on this machine: {self._waited} {of_all} waited for their turn"
        if self._unsettled:
            yield f"latency had not settled after 3 s of warm-up in {self._unsettled} {of_all}"


def launch_ratio(samples: LaunchSamples) -> LaunchRatio:
    """Returns what one launch says."""
    base, candidate, control = (samples.blocks[arm] for arm in ("base", "candidate", "control"))
    order = samples.load_order
    return LaunchRatio(
        candidate=block_log_ratio(candidate, base),
        control=block_log_ratio(control, base),
        base_ms=_median_ms(base),
        candidate_ms=_median_ms(candidate),
        base_first=order.index("base") < order.index("candidate"),
        settled=samples.warmup_converged,
    )


def _median_ms(blocks: Sequence[Sequence[int]]) -> float:
    return median([nanoseconds / 1e6 for block in blocks for nanoseconds in block])
