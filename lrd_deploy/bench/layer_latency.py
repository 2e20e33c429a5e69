"""Timing single layers, dense and factorised, on the deployment backend: what rank choice consults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import Clock, timed, warm_up
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.statistics import median
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Runtime
from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, write_text
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.records import Choice, Environment, LayerSignature, Record

_ROUNDS, _CALLS, _SECONDS_PER_SIGNATURE = 24, 3, 2.0


class LatencyRow(Record):
    """One measured latency: of this layer in this form, under these conditions, on the machine of this fingerprint."""

    signature: LayerSignature
    choice: Choice
    backend: str
    batch: int
    threads: int
    fingerprint: str
    latency_ms: float


@dataclass
class MeasuredLatency:
    """Times what it is asked for, and remembers every row in a JSON-lines file so that a killed run goes on from there.

    All choices of one signature are timed in interleaved rounds within one process: the differences that decide a
    rank are of tens of percent, far above the few percent that one process may be off by.
    """

    batch: int
    threads: int
    store: Path
    observer: Observer = field(default_factory=SilentObserver)
    backend: Runtime = field(default_factory=lambda: runtime("onnxruntime"))
    clock: Clock = time.perf_counter_ns
    environment: Environment = field(default_factory=environment)

    def latencies_ms(
        self, requests: Mapping[LayerSignature, Sequence[Choice]]
    ) -> Mapping[tuple[LayerSignature, Choice], float]:
        """Returns a latency for every choice asked for, measured now where no stored row has it."""
        known = {(row.signature, row.choice): row.latency_ms for row in self._stored()}
        for number, (signature, choices) in enumerate(requests.items()):
            missing = [choice for choice in choices if (signature, choice) not in known]
            if missing:
                measured = self._measured(signature, choices)  # all of them: only one session's times compare
                self._append(signature, measured)
                known.update({(signature, choice): latency for choice, latency in measured.items()})
            self.observer.progress("timing layers", number + 1, len(requests))
        return known

    def _measured(self, signature: LayerSignature, choices: Sequence[Choice]) -> dict[Choice, float]:
        with self._calls(signature, choices) as calls:
            for call in calls.values():
                warm_up(call, self.clock, most_seconds=0.3)
            samples: dict[Choice, list[float]] = {choice: [] for choice in choices}
            started = self.clock()
            for number in range(_ROUNDS):
                for choice in choices if number % 2 == 0 else reversed(choices):
                    calls[choice]()
                    samples[choice].append(min(timed(calls[choice], self.clock, _CALLS)) / 1e6)
                if number >= 4 and self.clock() - started > _SECONDS_PER_SIGNATURE * 1e9:
                    break
        return {choice: median(latencies) for choice, latencies in samples.items()}

    @contextmanager
    def _calls(
        self, signature: LayerSignature, choices: Sequence[Choice]
    ) -> Iterator[dict[Choice, Callable[[], object]]]:
        inputs = {"x": layer_input(signature, self.batch)}
        settings = SessionSettings(threads=self.threads)
        calls = {}
        with TemporaryDirectory(prefix="lrd-deploy-") as folder:
            for choice in choices:
                path = Path(folder, f"{str(choice).replace(' ', '_').replace(',', '')}.onnx")
                path.write_bytes(layer_graph(signature, choice).SerializeToString())
                calls[choice] = self.backend.load(path, settings).bind(inputs)
            yield calls

    def _stored(self) -> list[LatencyRow]:
        """The rows of earlier runs under the same conditions."""
        try:
            rows = [LatencyRow.model_validate_json(line) for line in self._whole_lines()]
        except ValueError as exc:
            raise InputError(
                f"reading the latency table '{self.store}'",
                found="a line that is no latency row",
                accepted="JSON lines written by this version",
                remedy="delete the file to measure again",
            ) from exc
        wanted = self._conditions()
        return [row for row in rows if row.model_dump(include=wanted.keys()) == wanted]

    def _whole_lines(self) -> list[str]:
        """The lines of the table, without one that was cut short."""
        if not self.store.exists():
            return []
        lines = read_bytes(self.store).decode(errors="replace").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]

    def _conditions(self) -> dict[str, object]:
        """What a row must agree in to be of use here."""
        return {
            "backend": self.backend.name,
            "batch": self.batch,
            "threads": self.threads,
            "fingerprint": self.environment.fingerprint,
        }

    def _append(self, signature: LayerSignature, measured: Mapping[Choice, float]) -> None:
        rows = [
            LatencyRow(signature=signature, choice=choice, latency_ms=latency, **self._conditions())
            for choice, latency in measured.items()
        ]
        write_text(self.store, "".join(self._whole_lines()) + "".join(row.model_dump_json() + "\n" for row in rows))
