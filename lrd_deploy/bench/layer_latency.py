"""Timing single layers, dense and factorised, on the deployment backend: what rank choice consults."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.latency_table import Conditions, LatencyRow, LatencyTable, MeasuredEnvironment
from lrd_deploy.bench.launch import Clock, timed, warm_up
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.statistics import median, relative_spread
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Runtime
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.records import Choice, Environment, Execution, KeepDense, LayerSignature

_ROUNDS, _CALLS, _SECONDS_PER_CHOICE = 15, 3, 0.15
_FEWEST_ROUNDS, _LONGER = 5, 3
_SETTLED = 0.1
_DENSE = KeepDense()
_NAMED = 3  # timings that would not settle; more are counted
Calls = dict[Choice, Callable[[], object]]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class LayerCalls(Protocol):
    """Whatever can make single layers callable: on an engine, or as training steps."""

    name: str
    per_call: int  # passes in one call; latencies are of one
    execution: Execution
    precision: Precision

    def calls(self, signature: LayerSignature, choices: Sequence[Choice], batch: int, threads: int) -> object:
        """Returns a context manager that yields a call per choice."""


@dataclass(frozen=True)
class EngineCalls:
    """Layers as ONNX models of their own, on a backend; in FP16 their inputs and outputs are FP16 too."""

    backend: Runtime
    per_call: int = 1
    execution: Execution = field(default_factory=Execution)
    precision: Literal["fp32", "fp16"] = "fp32"

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @contextmanager
    def calls(self, signature: LayerSignature, choices: Sequence[Choice], batch: int, threads: int) -> Iterator[Calls]:
        """Yields one bound session per choice."""
        inputs = {"x": layer_input(signature, batch, self.precision)}
        settings = SessionSettings(threads=threads, execution=self.execution)
        calls = {}
        with TemporaryDirectory(prefix="lrd-deploy-") as folder:
            for choice in choices:
                path = Path(folder, f"{str(choice).replace(' ', '_').replace(',', '')}.onnx")
                path.write_bytes(layer_graph(signature, choice, self.precision).SerializeToString())
                calls[choice] = self.backend.load(path, settings).bind(inputs)
            yield calls


def onnxruntime_layers(execution: Execution, precision: Literal["fp32", "fp16"] = "fp32") -> EngineCalls:
    """Returns layers as ONNX Runtime runs them there."""
    return EngineCalls(runtime("onnxruntime"), execution=execution, precision=precision)


@dataclass
class MeasuredLatency:
    """Times what it is asked for, and remembers every row in a table so that a killed run goes on from there.

    The choices of one request are timed in interleaved rounds within one process, dense among them. A later request
    for the same layer times dense again, and its latencies are scaled to the first dense: a machine that has become
    slower meanwhile does not make later ranks look worse.

    Attributes:
        batch: of the layers' inputs.
        threads: of the backend.
        store: the table's file.
        layers: makes layers callable; ONNX Runtime sessions unless told otherwise.
        known: rows of other tables, used where they were measured under the same conditions.
        work: what a call is: a forward pass, or a training step.
        retry: whether choices are timed again that would not settle when a table was written.
        table: the rows of the store.
    """

    batch: int
    threads: int
    store: Path
    observer: Observer = field(default_factory=SilentObserver)
    layers: LayerCalls = field(default_factory=lambda: onnxruntime_layers(Execution()))
    clock: Clock = time.perf_counter_ns
    environment: Environment = field(default_factory=environment)
    known: LatencyTable = field(default_factory=LatencyTable)
    work: str = "inference"
    retry: bool = False

    def __post_init__(self) -> None:
        self.table = LatencyTable.read(self.store) if self.store.exists() else LatencyTable()
        self._restless: dict[tuple[LayerSignature, Choice], float] = {}  # their spread

    @property
    def conditions(self) -> Conditions:
        """What this measures under."""
        return Conditions(
            backend=self.layers.name,
            work=self.work,
            precision=self.layers.precision,
            batch=self.batch,
            threads=self.threads,
            fingerprint=self.environment.fingerprint,
            execution=self.layers.execution,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan should know about its latencies."""
        told: dict[str, list[str]] = {
            "timings that would not settle were left out": [],
            "timings of dense layers that would not settle are used all the same": [],
        }
        left_out, uncertain = told.values()
        for (signature, choice), spread in self._restless.items():
            rows = uncertain if choice == _DENSE else left_out
            rows.append(f"{signature} as {choice}, spread {spread:.0%}")
        return tuple(f"{what}: {_listed(rows)}" for what, rows in told.items() if rows)

    def latencies_ms(
        self, requests: Mapping[LayerSignature, Sequence[Choice]]
    ) -> Mapping[tuple[LayerSignature, Choice], float]:
        """Returns every latency known under the conditions, those asked for measured first where they are not known.

        A choice whose timings did not settle in three times the time is missing from the answer, dense apart, and is
        not timed again: here, nor with `retry` off where a table tells of it.
        """
        known = self._known()
        if not self.retry:
            self._restless |= self._told_of(requests, known)
        done = self._restless.keys() | known.keys()
        unknown = {
            signature: [choice for choice in choices if (signature, choice) not in done]
            for signature, choices in requests.items()
        }
        missing = {signature: choices for signature, choices in unknown.items() if choices}
        timings = 0
        for number, (signature, choices) in enumerate(missing.items()):
            self._measure(signature, choices, known.get((signature, _DENSE)))
            timings += len(choices)
            self.observer.progress("timing layers", number + 1, len(missing), f"{timings} timing{'s' * (timings != 1)}")
        return self._known()

    def _known(self) -> dict[tuple[LayerSignature, Choice], float]:
        conditions = self.conditions
        return self.known.usable(conditions) | self.table.usable(conditions)

    def _told_of(
        self, requests: Mapping[LayerSignature, Sequence[Choice]], known: Mapping[tuple[LayerSignature, Choice], float]
    ) -> dict[tuple[LayerSignature, Choice], float]:
        """The spread of what is asked for and, by the tables, would not settle."""
        told = self.known.unsettled(self.conditions) | self.table.unsettled(self.conditions)
        return {
            (signature, choice): told[signature, choice]
            for signature, choices in requests.items()
            for choice in choices
            if (signature, choice) in told and (signature, choice) not in known
        }

    def _measure(self, signature: LayerSignature, missing: Sequence[Choice], dense_ms: float | None) -> None:
        choices = [_DENSE, *(choice for choice in missing if choice != _DENSE)]
        dense, *others = self._settled(signature, choices)
        scale = dense_ms / dense.latency_ms if dense_ms else 1.0
        self.table.add(MeasuredEnvironment(environment=self.environment))
        if dense_ms is None:
            # Every speedup needs dense, so it counts even where it is noisy, and the plan says so.
            self._note(dense)
            self.table.add(dense.model_copy(update={"settled": True}))
        for row in others:
            self._note(row)
            self.table.add(row.model_copy(update={"latency_ms": row.latency_ms * scale}))
        self.table.write(self.store)

    def _settled(self, signature: LayerSignature, choices: Sequence[Choice]) -> list[LatencyRow]:
        """Rows of dense and the other choices; those that spread are timed again for longer, beside dense."""
        dense, *others = self._timed(signature, choices, _SECONDS_PER_CHOICE)
        if not dense.settled:
            return self._timed(signature, choices, _LONGER * _SECONDS_PER_CHOICE)
        restless = [row.choice for row in others if not row.settled]
        if not restless:
            return [dense, *others]
        reference, *again = self._timed(signature, [_DENSE, *restless], _LONGER * _SECONDS_PER_CHOICE)
        scale = dense.latency_ms / reference.latency_ms
        calm = {row.choice: row.model_copy(update={"latency_ms": row.latency_ms * scale}) for row in again}
        return [dense, *(calm.get(row.choice, row) for row in others)]

    def _note(self, row: LatencyRow) -> None:
        if not row.settled:
            self._restless[row.signature, row.choice] = row.spread

    def _timed(self, signature: LayerSignature, choices: Sequence[Choice], seconds: float) -> list[LatencyRow]:
        with self.layers.calls(signature, choices, self.batch, self.threads) as calls:
            for call in calls.values():
                warm_up(call, self.clock, window=3, least_seconds=0.02, most_seconds=0.2)
            samples: dict[Choice, list[float]] = {choice: [] for choice in choices}
            started = self.clock()
            for number in range(_ROUNDS):
                for choice in choices if number % 2 == 0 else reversed(choices):
                    calls[choice]()
                    samples[choice].append(min(timed(calls[choice], self.clock, _CALLS)) / 1e6 / self.layers.per_call)
                if number + 1 >= _FEWEST_ROUNDS and self.clock() - started > seconds * len(choices) * 1e9:
                    break
        return [self._row(signature, choice, latencies) for choice, latencies in samples.items()]

    def _row(self, signature: LayerSignature, choice: Choice, latencies: Sequence[float]) -> LatencyRow:
        spread = relative_spread(latencies)
        return LatencyRow(
            conditions=self.conditions,
            signature=signature,
            choice=choice,
            latency_ms=median(latencies),
            spread=spread,
            settled=spread <= _SETTLED,
            samples=len(latencies),
        )


def _listed(rows: Collection[str]) -> str:
    """How many, and the first of them."""
    more = "; …" if len(rows) > _NAMED else ""
    return f"{len(rows)}, {'; '.join(sorted(rows)[:_NAMED])}{more}"
