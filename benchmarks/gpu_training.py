"""Training on a device: ranks chosen by its training steps, and every row of the table interleaved in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_profile import profile_summary
from gpu_subjects import subject_of
from train_step import ROWS, SETTINGS, Step, summary

from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.layer_training import TrainingCalls
from lrd_deploy.bench.step_timer import StepTime, interleave_steps, step_timer
from lrd_deploy.bench.torch_device import arithmetic, on_gpu, peak_bytes
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.survey import survey
from lrd_deploy.observer import Observer
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.source import LatencySource
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import SequentialFreezing
from lrd_deploy.records import Execution, FrozenGroup, RankPlan

REALISED = 0.7  # a smaller share of what the arithmetic allows is explained
Plans = dict[str, RankPlan]
Arm = tuple[str, FrozenGroup]  # "dense", "formula" or "chosen", and what stands still


def layers_of(model: str) -> tuple[Layer, ...]:
    """Returns a model's layers, with the same new weights every time."""
    torch.manual_seed(0)
    subject = subject_of(model)
    return survey(subject.build(), subject.example(1))


def planned(layers: tuple[Layer, ...], source: LatencySource) -> dict[str, Any]:
    """Returns the formula's plan, and the fastest one by `source` whose predicted error is no larger."""
    formula = plan_ranks(layers, UniformRank(alpha=2))
    error = sum(layer.predicted_error**2 for layer in formula.factorised) ** 0.5
    planner = LatencyPlanner(layers, LatencyRank(max_error=error), source)
    chosen = planner.plan()
    return {
        "plans": {name: plan.model_dump(mode="json") for name, plan in (("formula", formula), ("chosen", chosen))},
        "error": error,
        "quantum": planner.quantum,
        "timings": planner.staircases.timings,
        "dense_layers": sum(layer.choice.form == "dense" for layer in chosen.layers),
        "layers": len(chosen.layers),
    }


def plan_training(model: str, precision: str, device: str, store: Path, observer: Observer) -> dict[str, Any]:
    """Chooses ranks by training steps of single layers on the device."""
    torch.backends.cudnn.benchmark = True
    tf32 = on_gpu(device) and precision == "tf32"
    calls = TrainingCalls(
        SequentialFreezing(),
        channels_last=SETTINGS.channels_last,
        execution=Execution(device=device, tf32=tf32),
        precision="bf16" if precision == "bf16" else "fp32",
    )
    threads = 1 if on_gpu(device) else torch.get_num_threads()
    layers = layers_of(model)

    def at(batch: int) -> dict[str, Any]:
        source = MeasuredLatency(
            batch=batch, threads=threads, store=store, observer=observer, layers=calls, work="training"
        )
        return planned(layers, source) | {"batch": batch}

    return backed_off(subject_of(model).batch, at)


def measure_training(
    model: str, precision: str, mode: str, plans: Plans, device: str, *, rounds: int, profiled: bool
) -> dict[str, Any]:
    """Returns every row of one model's table: step times, ratio to dense with its interval, ideal, memory, reasons."""
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # five models share the code of their layers
    settings = SETTINGS.model_copy(
        update={"mixed_precision": "bf16" if precision == "bf16" else "none", "compile": mode == "compile"}
    )

    def at(batch: int) -> dict[str, Any]:
        with arithmetic(tf32=precision != "fp32"):
            bout = _Bout(model, plans, batch, device, settings)
            return bout.measured(rounds, profiled=profiled) | {"batch": batch}

    return backed_off(subject_of(model).batch, at)


def backed_off(batch: int, at: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Returns what `at` does with the batch, or with the next half that fits into the device's memory."""
    while True:
        try:
            return at(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
        gc.collect()
        torch.cuda.empty_cache()


class _Bout:
    """One model in all its arms, each with parameters and an optimizer of its own."""

    def __init__(self, model: str, plans: Plans, batch: int, device: str, settings: Any) -> None:
        self.device, self.batch = device, batch
        subject = subject_of(model)
        torch.manual_seed(0)
        self.data = (subject.example(batch).to(device), torch.randint(2, (batch,)).to(device))
        self.steps: dict[str, Step] = {}
        self.facts: dict[str, dict[str, int | None]] = {"flops": {}, "saved": {}, "optimizer": {}, "peak": {}}
        for arm in dict.fromkeys((name, phase) for name, phases in ROWS.values() for phase in phases):
            self._add(arm, Step(subject.build(), plans.get(arm[0]), arm[1], settings, device))

    def _add(self, arm: Arm, step: Step) -> None:
        name = " ".join(arm)
        self.steps[name] = step
        for fact, value in step.facts(self.data).items():
            self.facts[fact][name] = value
        step(self.data)  # compiles, where steps are compiled
        step(self.data)
        own = sum(tensor.nbytes for tensor in (*step.model.parameters(), *step.model.buffers()))
        more = peak_bytes(partial(step, self.data), self.device)
        self.facts["peak"][name] = None if more is None else own + self.facts["optimizer"][name] + more

    def measured(self, rounds: int, *, profiled: bool) -> dict[str, Any]:
        """Interleaves the arms; the interval is over the rounds of this one process."""
        calls = {name: partial(step, self.data) for name, step in self.steps.items()}
        times = interleave_steps(calls, step_timer(self.device, time.perf_counter_ns), rounds)
        walls = self._rounds(times, lambda sample: sample.wall_ms)
        rows = {row: summary(row, walls) for row in ROWS}
        if on_gpu(self.device):
            events = self._rounds(times, lambda sample: sample.device_ms)
            for row, found in rows.items():
                found |= {f"device_{name}": summary(row, events)[name] for name in ("step_ms", "ratio")}
        for row, found in rows.items():
            arms = self._arms(row)
            peaks = [self.facts["peak"][arm] for arm in arms]
            found["peak_bytes"] = None if None in peaks else max(peaks)
            found["flops"] = sum(self.facts["flops"][arm] for arm in arms) / len(arms)
            found["realised"] = found["ratio"] / found["ceiling"]
        return {"rounds": rounds, "rows": rows, "profiles": self._reasons(rows, calls) if profiled else {}}

    def _rounds(
        self, times: dict[str, tuple[StepTime, ...]], of: Callable[[StepTime], float | None]
    ) -> list[dict[str, Any]]:
        """Every round as `train_step.summary` takes a launch."""
        counted = {name: self.facts[name] for name in ("flops", "saved", "optimizer")}
        count = len(next(iter(times.values())))
        return [
            {"ms": {arm: [of(samples[number])] for arm, samples in times.items()}, **counted} for number in range(count)
        ]

    def _arms(self, row: str) -> list[str]:
        model, phases = ROWS[row]
        return [" ".join((model, phase)) for phase in phases]

    def _reasons(self, rows: dict[str, Any], calls: dict[str, Callable[[], None]]) -> dict[str, Any]:
        """Where the time goes, of the arms that realise too little, and of dense beside them."""
        short = [arm for row, found in rows.items() if found["realised"] < REALISED for arm in self._arms(row)]
        wanted = dict.fromkeys((*self._arms("dense"), *short)) if short else ()
        return {arm: profile_summary(calls[arm], self.device) for arm in wanted}
