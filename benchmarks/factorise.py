"""What factorising costs: one matrix against its size, and a Llama-7B-shaped checkpoint by the real command.

    python benchmarks/factorise.py [--decoder-layers 1 3] [--largest 8192] [--folder FOLDER]

Weights are random, so that no singular value stands out: the hardest spectrum. About 7 minutes on 2 cores and 4 GiB of
disk, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lrd_deploy.bench.environment import environment
from lrd_deploy.decompose.leading_svd import leading_svd, randomised_svd
from lrd_deploy.models.stored_tensors import INDEX_NAME
from lrd_deploy.ranks.formulas import svd_rank
from lrd_deploy.records import CheckpointReport

SIZES = (512, 1024, 2048, 4096, 8192)
EXACT_UP_TO, COMPARED_UP_TO = 2048, 4096  # a whole SVD, and a sketch or the spectrum alone, take minutes beyond
HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 4096, 11008, 32000, 32  # of Llama 7B


@dataclass(frozen=True)
class Factorisation:
    """Seconds and relative error of one method on one matrix."""

    seconds: float
    error: float


def main() -> None:
    """Measures both and prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder-layers", type=int, nargs="*", default=[1], help="a checkpoint for each number")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="of the square matrices; 0 leaves them out")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; they are removed")
    options = parser.parse_args()
    sizes = list(takewhile(lambda size: size <= options.largest, SIZES))
    if sizes:
        print_sizes(sizes)
    if options.decoder_layers:
        print_checkpoints(options.decoder_layers, options.folder)
    here = environment()
    print(f"\n{here.cpu}, {here.cores} cores, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}; ", end="")
    print(f"load average at the end {os.getloadavg()[0]:.1f}.")


def print_sizes(sizes: list[int]) -> None:
    """One row per size, then how the cost grows."""
    print(
        "| size | rank | seconds | error | least error | excess | whole SVD, seconds | sketch, seconds | its excess |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    seconds = []
    for size in sizes:
        weight = np.random.default_rng(size).standard_normal((size, size), dtype=np.float32)
        rank = svd_rank(size, size, alpha=2)
        ours = measured(weight, lambda weight=weight, rank=rank: leading_svd(weight, rank))
        seconds.append(ours.seconds)
        print(
            f"| {size} | {rank} | {ours.seconds:.2f} | {ours.error:.5f} | {compared(weight, rank, ours)} |", flush=True
        )
    large = [(size, second) for size, second in zip(sizes, seconds, strict=True) if size >= 1024]
    if len(large) > 1:
        exponent = np.polyfit(*np.log(large).T, 1)[0]
        print(f"\nFrom 1,024 on the seconds grow with the size to the power of {exponent:.2f}.\n")


def compared(weight: np.ndarray, rank: int, ours: Factorisation) -> str:
    """The cells of a row that say what the optimum is, and what other methods cost."""
    size = len(weight)
    if size > COMPARED_UP_TO:
        return "– | – | – | – | –"
    whole, spectrum = "–", None
    if size <= EXACT_UP_TO:
        started = time.perf_counter()
        spectrum = np.linalg.svd(weight.astype(np.float64), full_matrices=False)[1] ** 2
        whole = f"{time.perf_counter() - started:.2f}"
    else:
        exact = weight.astype(np.float64)
        spectrum = np.linalg.eigvalsh(exact @ exact.T)[::-1]
    least = math.sqrt(spectrum[rank:].sum() / spectrum.sum())
    sketch = measured(weight, lambda: randomised_svd(weight, rank))
    excess, of_sketch = (found.error / least - 1 for found in (ours, sketch))
    return f"{least:.5f} | {excess:+.4%} | {whole} | {sketch.seconds:.2f} | {of_sketch:+.4%}"


def measured(weight: np.ndarray, factorise: Callable[[], tuple[np.ndarray, ...]]) -> Factorisation:
    """One call; the error is of the product of the factors, outside the clock."""
    started = time.perf_counter()
    u, singular_values, vt = factorise()
    seconds = time.perf_counter() - started
    missed, total = (np.square(m).sum(dtype=np.float64) for m in (weight - (u * singular_values) @ vt, weight))
    return Factorisation(seconds, math.sqrt(missed / total))


def print_checkpoints(numbers: list[int], folder: Path | None) -> None:
    """One row per checkpoint, its shapes, and what 32 layers would take."""
    reports = {number: checkpoint(number, folder) for number in numbers}
    print("| decoder layers | source GiB | result GiB | seconds | of them factorising, a layer | peak memory MiB |")
    print("|---|---|---|---|---|---|")
    for number, report in reports.items():
        sizes = f"{report.dense_bytes / 2**30:.2f} | {report.lowrank_bytes / 2**30:.2f}"
        print(
            f"| {number} | {sizes} | {report.seconds:.1f} | {factorising(report) / number:.1f} "
            f"| {report.peak_memory_mib:,.0f} |"
        )
    number, report = list(reports.items())[-1]
    print("\n| in → out | rank | seconds each | relative error |\n|---|---|---|---|")
    for in_channels, out_channels in sorted({(w.in_channels, w.out_channels) for w in report.weights}):
        alike = [w for w in report.weights if (w.in_channels, w.out_channels) == (in_channels, out_channels)]
        seconds, error = (np.mean([getattr(w, field) for w in alike]) for field in ("seconds", "relative_error"))
        print(f"| {in_channels} → {out_channels} | {alike[0].rank} | {seconds:.1f} | {error:.4f} |")
    print(
        f"\nExtrapolated, not measured: {LAYERS} layers would take {LAYERS * factorising(report) / number / 60:.0f} "
        f"minutes of factorising, {LAYERS} times a layer of the checkpoint with {number}."
    )


def factorising(report: CheckpointReport) -> float:
    """Seconds of all weights together."""
    return sum(weight.seconds for weight in report.weights)


def checkpoint(number: int, folder: Path | None) -> CheckpointReport:
    """Writes a random checkpoint, decomposes it by the command in a process of its own, and removes both."""
    work = Path(tempfile.mkdtemp(prefix="lrd-deploy-factorise-", dir=folder))
    try:
        write_source(work / "dense", number)
        command = [sys.executable, "-m", "lrd_deploy.cli.main", "decompose", str(work / "dense")]
        options = ["-o", str(work / "lowrank"), "--alpha", "2", "--round-to", "64", "--include", "model.layers.*"]
        done = subprocess.run([*command, *options, "--json"], check=True, stdout=subprocess.PIPE, text=True)
        return CheckpointReport.model_validate_json(done.stdout)
    finally:
        shutil.rmtree(work)


def write_source(folder: Path, number: int) -> None:
    """Writes the shards one after the other: a decoder layer each, then the embedding and the head."""
    folder.mkdir()
    homes = {}
    for position, shapes in enumerate(shards(number)):
        file = f"model-{position:05d}.safetensors"
        save_file({name: random_weight(shape) for name, shape in shapes.items()}, folder / file)
        homes |= dict.fromkeys(shapes, file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def shards(number: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of each shard."""
    for layer in range(number):
        names = [f"self_attn.{kind}_proj" for kind in "qkvo"]
        shapes = dict.fromkeys(names, (HIDDEN, HIDDEN)) | {
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    yield {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    yield {"lm_head.weight": (VOCABULARY, HIDDEN)}


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    """A bfloat16 tensor at the scale of a new model's weights."""
    return torch.randn(shape).mul_(HIDDEN**-0.5).bfloat16()


if __name__ == "__main__":
    main()
