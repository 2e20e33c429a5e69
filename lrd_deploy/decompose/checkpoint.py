"""A checkpoint on disk in, a low-rank one on disk out: one tensor at a time, never the model.

Work is cut into output shards whose content is fixed beforehand. A process takes whole shards, and a shard's result is
noted when the shard is on disk; so a run that was killed, or one with another number of processes, goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrd_deploy.decompose.factorize import SVDFactors, svd_factors
from lrd_deploy.decompose.planned_checkpoint import PlannedCheckpoint, StoredLayer, plan_checkpoint
from lrd_deploy.decompose.shards import Piece, Shard, copied, laid_out, write_shard
from lrd_deploy.decompose.unfinished import ShardResult, UnfinishedCheckpoint
from lrd_deploy.errors import InputError
from lrd_deploy.files import storage_errors, write_text, write_whole
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.stored_tensors import INDEX_NAME, stored_tensors
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.processes import Processes, shared_out
from lrd_deploy.ranks.planned import kept_dense, rank_plan
from lrd_deploy.recipe.policies import UniformRank
from lrd_deploy.records import SVD, CheckpointReport, FactorisedWeight, PlannedLayer, RankPlan

PLAN_NAME = "plan.json"

_WEIGHT_FILES = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx*")
_ROWS = 1024  # of a weight, compared with its factors at a time


def decompose_checkpoint(
    source: Path,
    target: Path,
    policy: UniformRank,
    *,
    include: tuple[str, ...] = ("*",),
    skip: tuple[str, ...] = (),
    observer: Observer | None = None,
) -> CheckpointReport:
    """Writes the low-rank form of a checkpoint, and `plan.json` for `load_lowrank_(model, plan, target)`.

    A matrix `NAME.weight` becomes `NAME.down.weight` and `NAME.up.weight` in its own dtype, its bias `NAME.up.bias`;
    all other tensors and files are copied. Under `accelerate launch` the processes share the work by its cost, on any
    number of machines that see `target` as one folder. Calling it again goes on from the shards that are finished.

    Args:
        source: a folder with model.safetensors, or with shards and their index.
        target: another folder; made where it is not there.
        policy: the ranks.
        include: glob patterns of layer names, such as 'model.layers.*'; a star crosses dots.
        skip: glob patterns of the layers that stay dense all the same.
        observer: hears of every tensor of this process.

    Returns:
        The same report in every process, but for its seconds.

    Raises:
        UsageError: `target` is `source`, or holds something else.
        InputError: shards are missing or cut short, a weight is not finite, or nothing can be factorised.
        StorageError: a file cannot be read or written.

    Limits: files tell names and shapes, not code. Matrices that are stored (in, out), such as GPT-2's, are known by
    their biases and stay dense; those of other layers that are not `nn.Linear` must be skipped. Bytes are the same from
    run to run with one number of threads on one kind of machine.
    """
    started = time.perf_counter()
    work = UnfinishedCheckpoint(source, target)
    work.check_folders()
    planned = plan_checkpoint(stored_tensors(source), policy, include=include, skip=skip)
    shards = laid_out(planned.pieces)
    processes = Processes.launched()
    if processes.is_main:
        work.remove_leftovers()
        work.claim(planned, policy)
    processes.wait()
    work.claim(planned, policy)
    resumed = len(work.finished(shards))
    processes.wait()
    mine = [shards[index] for index in shared_out([shard.cost for shard in shards], processes.count)[processes.index]]
    _write_shards(mine, work, observer or SilentObserver())
    processes.wait()
    results = work.finished(shards)
    if processes.is_main:
        _write_rest(source, target, planned, shards, _rank_plan(planned, results, policy))
    processes.wait()
    return _report(planned, shards, results, resumed, processes.count, time.perf_counter() - started)


def factorised(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Returns `(down, up, relative_error)`; the factors in the weight's dtype, the error with them so rounded.

    Args:
        weight: (out, in), any float dtype.
        rank: 1 … min(out, in).

    Raises:
        InputError: the weight is not finite.
    """
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32)).numpy()  # numpy has no bfloat16
    factors = svd_factors(exact, SVD(rank=rank))
    down, up = (torch.from_numpy(factor).to(weight.dtype) for factor in (factors.down, factors.up))
    stored = SVDFactors(*(factor.to(torch.promote_types(weight.dtype, torch.float32)).numpy() for factor in (down, up)))
    return down, up, _relative_error(exact, stored)


def _relative_error(weight: np.ndarray, factors: SVDFactors) -> float:
    """‖W − up·down‖F / ‖W‖F, some rows at a time, so that no second matrix of W's size is made."""
    missed = total = 0.0
    for start in range(0, len(weight), _ROWS):
        rows = weight[start : start + _ROWS]
        missed += float(np.square(rows - factors.up[start : start + _ROWS] @ factors.down).sum(dtype=np.float64))
        total += float(np.square(rows).sum(dtype=np.float64))
    return (missed / total) ** 0.5 if total else 0.0


# One shard -----------------------------------------------------------------------------------------------------


def _write_shards(shards: Sequence[Shard], work: UnfinishedCheckpoint, observer: Observer) -> None:
    total, done = sum(len(shard.pieces) for shard in shards), 0
    for shard in shards:
        if work.result(shard) is None:
            weights: list[FactorisedWeight] = []
            write_shard(work.target / shard.file, shard.outputs, _tensors(shard, weights, observer, done, total))
            work.note(shard, weights)
        done += len(shard.pieces)
        observer.progress("tensors", done, total)


def _tensors(
    shard: Shard, weights: list[FactorisedWeight], observer: Observer, done: int, total: int
) -> Iterator[Tensor]:
    """The data of a shard, in order; what was factorised is added to `weights` on the way."""
    for number, piece in enumerate(shard.pieces):
        observer.progress("tensors", done + number, total)
        if piece.rank is None:
            yield from copied(piece.source)
            continue
        down, up, weight = _factorised_piece(piece, piece.rank)
        weights.append(weight)
        yield down
        yield up


def _factorised_piece(piece: Piece, rank: int) -> tuple[Tensor, Tensor, FactorisedWeight]:
    started = time.perf_counter()
    try:
        down, up, error = factorised(piece.source.read(), rank)
    except InputError as problem:
        raise InputError(
            f"factorising '{piece.source.name}' of '{piece.source.file}'",
            found=problem.found,
            accepted=problem.accepted,
            remedy=f"{problem.remedy}, or leave the layer out with --skip '{piece.name}'",
        ) from problem
    weight = FactorisedWeight(
        name=piece.name,
        in_channels=down.shape[1],
        out_channels=up.shape[0],
        rank=rank,
        seconds=time.perf_counter() - started,
        relative_error=error,
    )
    return down, up, weight


# The rest ------------------------------------------------------------------------------------------------------


def _write_rest(
    source: Path, target: Path, planned: PlannedCheckpoint, shards: Sequence[Shard], plan: RankPlan
) -> None:
    """Everything but the shards; the index last, because with it the checkpoint is one."""
    with storage_errors("reading", source):
        files = sorted(path for path in source.iterdir() if path.is_file())
    for path in files:
        if not any(path.match(pattern) for pattern in _WEIGHT_FILES):
            write_whole(target / path.name, lambda temporary, path=path: _copy(path, temporary))
    plan.write(target / PLAN_NAME)
    homes = {output.name: shard.file for shard in shards for output in shard.outputs}
    size = sum(output.size_bytes for piece in planned.pieces for output in piece.outputs)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(homes.items()))}
    write_text(target / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _copy(path: Path, to: Path) -> None:
    shutil.copyfile(path, to)


def _rank_plan(planned: PlannedCheckpoint, results: Sequence[ShardResult], policy: UniformRank) -> RankPlan:
    errors = {weight.name: weight.relative_error for result in results for weight in result.weights}
    return rank_plan([_planned_layer(layer, errors.get(layer.name), policy) for layer in planned.layers], policy)


def _planned_layer(layer: StoredLayer, error: float | None, policy: UniformRank) -> PlannedLayer:
    if layer.rank is None or error is None:
        dense = Layer(layer.name, layer.signature, weight=lambda: layer.tensor.read().double().numpy())
        return kept_dense(dense, layer.refusal or "")
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=SVD(rank=layer.rank),
        reason=f"alpha {policy.alpha:g}" + (f", rounded to {policy.round_to}" if policy.round_to > 1 else ""),
        predicted_error=error,
    )


def _report(
    planned: PlannedCheckpoint,
    shards: Sequence[Shard],
    results: Sequence[ShardResult],
    resumed: int,
    processes: int,
    seconds: float,
) -> CheckpointReport:
    weights = sorted((weight for result in results for weight in result.weights), key=lambda weight: weight.name)
    sources = [piece.source for piece in planned.pieces]
    outputs = [output for piece in planned.pieces for output in piece.outputs]
    return CheckpointReport(
        weights=tuple(weights),
        refusals={layer.name: layer.refusal for layer in planned.layers if layer.refusal},
        copied=len(planned.pieces) - len(planned.factorised),
        dense_parameters=sum(int(np.prod(tensor.shape)) for tensor in sources),
        lowrank_parameters=sum(int(np.prod(tensor.shape)) for tensor in outputs),
        dense_bytes=sum(tensor.size_bytes for tensor in sources),
        lowrank_bytes=sum(tensor.size_bytes for tensor in outputs),
        shards=tuple(Path(shard.file) for shard in shards),
        resumed_shards=resumed,
        processes=processes,
        seconds=seconds,
        peak_memory_mib=max(result.peak_memory_mib for result in results),
    )
