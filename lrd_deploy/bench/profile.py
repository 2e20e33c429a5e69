"""Profiling one model or two in fresh processes, one launch after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lrd_deploy.bench.compare import check_threads
from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import balanced_order
from lrd_deploy.bench.process import run_worker
from lrd_deploy.bench.profile_launch import ProfilePlan, ProfileSamples
from lrd_deploy.bench.profile_summary import Deployment, ProfiledFile, conclude_profile
from lrd_deploy.bench.turns import Turns
from lrd_deploy.bench.weighted_layers import weighted_layers
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.engines.verify import check_same_inputs
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.files import sha256_of
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.records import ModelProfile
from lrd_deploy.rewrite.apply import with_unique_names

_BACKEND = "onnxruntime"


@dataclass(frozen=True)
class ProfileSettings:
    """How to profile: fresh processes, interleaved rounds in each within so many seconds per arm, and threads."""

    threads: int = 1
    launches: int = 6
    rounds: int = 16
    arm_seconds: float = 1.0


def profile(
    base: Path,
    candidate: Path | None,
    inputs: Mapping[str, NDArray[np.generic]],
    settings: ProfileSettings,
    observer: Observer | None = None,
) -> tuple[ModelProfile, tuple[ProfileSamples, ...]]:
    """Measures where the time of a model goes, layer by layer; with a candidate both, and each layer's speedup.

    Every launch is a fresh process that loads every model with ONNX Runtime's profiler and without, and calls all in
    interleaved blocks. Load order and direction are counterbalanced over launches.

    Args:
        base: an ONNX file.
        candidate: an ONNX file with the same inputs, or None.
        inputs: one batch, by input name.
        settings: launches, rounds and threads.
        observer: hears of every finished launch.

    Returns:
        The profile, and every launch's raw samples.

    Raises:
        UsageError: there are more threads than cores.
        InputError: a file is invalid, the two take different inputs, or the first input has no batch.
        BackendError: a worker failed, or refused one of the models.
    """
    check_threads(settings.threads)
    _check_batch(inputs, base)
    observer = observer or SilentObserver()
    arms = {"base": base} | ({"candidate": candidate} if candidate else {})
    models = {arm: read_model(path) for arm, path in arms.items()}
    if candidate:
        check_same_inputs(models["base"], models["candidate"])
    files = {
        arm: ProfiledFile(Path(path.name), sha256_of(path), weighted_layers(models[arm])) for arm, path in arms.items()
    }
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        named = {arm: _with_names(path, models[arm], Path(folder, f"{arm}.onnx")) for arm, path in arms.items()}
        models.clear()
        stored = save_arrays(Path(folder, "inputs.npz"), inputs)
        launches = _launches(named, stored, settings, observer)
    batch = len(next(iter(inputs.values())))
    deployment = Deployment(_BACKEND, batch, settings.threads, environment())
    return conclude_profile(launches, files, deployment), launches


def _check_batch(inputs: Mapping[str, NDArray[np.generic]], model: Path) -> None:
    first = next(iter(inputs), None)
    if first is None or inputs[first].ndim == 0:
        raise InputError(
            f"profiling '{model}'",
            found="no input" if first is None else f"an input '{first}' without dimensions",
            accepted="a first input whose first dimension is the batch",
            remedy="pass real inputs with --inputs, or export the model with a batch",
        )


def _with_names(path: Path, model: ModelProto, copy: Path) -> Path:
    """The file itself where every node has a name of its own, else a copy in which it has: names are what joins."""
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return path.resolve()
    return write_model(with_unique_names(model), copy)


def _launches(
    arms: Mapping[str, Path], inputs: Path, settings: ProfileSettings, observer: Observer
) -> tuple[ProfileSamples, ...]:
    launches: list[ProfileSamples] = []
    turns = Turns(observer)
    for number in range(settings.launches):
        order, reverse = balanced_order(tuple(arms), number)
        plan = ProfilePlan(
            arms=dict(arms),
            load_order=order,
            reverse_first=reverse,
            inputs=inputs,
            backend=_BACKEND,
            threads=settings.threads,
            rounds=settings.rounds,
            arm_seconds=settings.arm_seconds,
        )
        launches.append(turns.take(partial(_launch, plan)))
        observer.progress("profiling", len(launches), settings.launches)
    return tuple(launches)


def _launch(plan: ProfilePlan) -> ProfileSamples:
    return run_worker("lrd_deploy.bench.profile_worker", plan, ProfileSamples, threads=plan.threads)
