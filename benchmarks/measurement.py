"""How far a measured speedup can be trusted: against itself, against a known change, and against a bare loop.

    python benchmarks/measurement.py aa         40 comparisons of a model of about 2 ms with itself
    python benchmarks/measurement.py known      8 comparisons each with candidates of 5 and 10 % more work
    python benchmarks/measurement.py overhead   timed calls beside a bare loop, on a model of about 1 ms
    python benchmarks/measurement.py table      what is recorded, as Markdown; measures nothing

Nothing else may run meanwhile. Every comparison is a line of a file in --out; a subcommand goes on where it stopped,
and ends with its table. A known change is known by its arithmetic: the candidate repeats one layer more often, with the
same weights, so that it takes no more room in any cache. A bare loop that calls both models in turn says it again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import fronts
import onnx
from gate import mlp
from onnx import TensorProto, helper

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import timed
from lrd_deploy.engines.backend import SessionSettings
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.recipe.settings import Bench

_LAYERS, _SMALL_LAYERS, _BATCH, _WIDTH = 40, 20, 32, 256
_COUNTS = {"aa": 40, "known": 8, "overhead": 20}
_CHANGES = (0.05, 0.1)
_BLOCK, _OVERHEAD_ROUNDS, _BARE_ROUNDS = 10, 100, 400
_TOLD_APART = 0.03
Row = dict[str, Any]


def main() -> None:
    """Records what is not recorded yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=(*_COUNTS, "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/measurement"))
    parser.add_argument("--count", type=int, help="how many of each, to try it out")
    parser.add_argument("--launches", type=int, default=8)
    options = parser.parse_args()
    if options.verb != "table":
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"aa": record_aa, "known": record_known, "overhead": record_overhead}[options.verb]
        with TemporaryDirectory() as folder:
            record(options, Path(folder), options.count or _COUNTS[options.verb])
    for verb, table in {"aa": aa_table, "known": known_table, "overhead": overhead_table}.items():
        rows = read(options.out, verb)
        if rows and options.verb in (verb, "table"):
            print(f"\n{table(rows)}")
    here = environment()
    versions = f"ONNX Runtime {here.packages.get('onnxruntime-gpu') or here.packages.get('onnxruntime')}"
    print(f"\n{here.cpu}, {here.cores} cores, {versions}, {time.strftime('%Y-%m-%d')}")


def record_aa(options: argparse.Namespace, folder: Path, count: int) -> None:
    """Compares a model with itself, so many times."""
    model = mlp(folder / "model.onnx", layers=_LAYERS)
    for _ in range(len(read(options.out, "aa")), count):
        keep(options.out, "aa", compared(model, model, options.launches))


def record_known(options: argparse.Namespace, folder: Path, count: int) -> None:
    """Compares a model with ones of more identical layers, so many times each, each time after a bare loop."""
    base = repeated(folder / "base.onnx", _LAYERS)
    for change in _CHANGES:
        candidate = repeated(folder / "candidate.onnx", round(_LAYERS * (1 + change)))
        done = sum(row["work"] == change for row in read(options.out, "known"))
        for _ in range(done, count):
            row = {"work": change, "bare": bare_change(base, candidate)}
            keep(options.out, "known", row | compared(base, candidate, options.launches))


def record_overhead(options: argparse.Namespace, folder: Path, count: int) -> None:
    """Times new sessions by the harness and by a bare loop in turn, in this process."""
    model = mlp(folder / "model.onnx", layers=_SMALL_LAYERS)
    for _ in range(len(read(options.out, "overhead")), count):
        keep(options.out, "overhead", overhead(model))


def repeated(path: Path, layers: int) -> Path:
    """Writes one layer, so many times over: Gemm and ReLU, of weights of unit gain.

    The weights are an input, which ONNX Runtime cannot pack anew for every node that multiplies by them. What scales
    them, once a call, is not repeated: some thousandths of the work.
    """
    nodes = [helper.make_node("Mul", ["standard", "gain"], ["w"])]
    for number in range(layers):
        last = number == layers - 1
        nodes += [
            helper.make_node("Gemm", [f"r{number - 1}" if number else "x", "w"], [f"g{number}"]),
            helper.make_node("Relu", [f"g{number}"], ["y" if last else f"r{number}"]),
        ]
    row = ["batch", _WIDTH]
    x, weights, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", row), ("standard", [_WIDTH, _WIDTH]), ("y", row))
    )
    gain = helper.make_tensor("gain", TensorProto.FLOAT, [], [sqrt(2 / _WIDTH)])
    graph = helper.make_graph(nodes, "repeated", [x, weights], [y], [gain])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def compared(base: Path, candidate: Path, launches: int) -> Row:
    """Returns what one comparison says."""
    started = time.perf_counter()
    settings = Bench(batch=_BATCH, launches=launches)
    found, _ = compare(base, candidate, random_batches(base, [_BATCH])[0], settings)
    seconds = time.perf_counter() - started
    return {"base_ms": found.base.p50_ms, **found.speedup.model_dump(), "seconds": round(seconds, 1)}


def bare_change(base: Path, candidate: Path) -> float:
    """Returns how much longer a candidate takes than its base, from a bare loop that calls each in turn.

    Where a session is created moves its latency: both are loaded in either order, and the logarithms averaged.
    """
    logs = _one_loading(base, candidate) - _one_loading(candidate, base)
    return exp(logs / 2) - 1


def _one_loading(first: Path, second: Path) -> float:
    """The log ratio of the medians, second over first."""
    calls = [bare_call(path) for path in (first, second)]
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(_BARE_ROUNDS):
        for arm in (0, 1) if number % 2 == 0 else (1, 0):
            calls[arm]()
            samples[arm].append(loop_ns(calls[arm], 3))
    settled = [median(arm[_BARE_ROUNDS // 10 :]) for arm in samples]
    return log(settled[1] / settled[0])


def overhead(model: Path) -> Row:
    """Returns the latency that the harness reports over that of a bare loop, on one session, in turn."""
    feeds = random_batches(model, [_BATCH])[0]
    session = OnnxRuntime().load(model, SessionSettings())
    harness, run = session.bind(feeds), session.session.run
    arms = {
        "harness": lambda: sum(timed(harness, time.perf_counter_ns, _BLOCK)) / _BLOCK,
        "bare": lambda: loop_ns(lambda: run(None, feeds), _BLOCK),
    }
    ratios, bare = [], []
    for number in range(_OVERHEAD_ROUNDS):
        harness()
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        taken = {name: arms[name]() for name in order}
        ratios.append(taken["harness"] / taken["bare"])
        bare.append(taken["bare"])
    return {"bare_ms": median(bare) / 1e6, "ratio": median(ratios)}


def bare_call(model: Path) -> Callable[[], object]:
    """Returns `session.run` on C-contiguous inputs and nothing else."""
    feeds = random_batches(model, [_BATCH])[0]
    run = OnnxRuntime().load(model, SessionSettings()).session.run
    return lambda: run(None, feeds)


def loop_ns(call: Callable[[], object], times: int) -> float:
    """Returns nanoseconds per call of a loop with one clock around it."""
    started = time.perf_counter_ns()
    for _ in range(times):
        call()
    return (time.perf_counter_ns() - started) / times


def aa_table(rows: list[Row]) -> str:
    """How often the interval of a model against itself holds 1, and how wide it is."""
    holds = sum(row["low"] <= 1 <= row["high"] for row in rows)
    beyond = sum(row["demonstrated"] and abs(row["estimate"] - 1) > _TOLD_APART for row in rows)
    widths = sorted((row["high"] - row["low"]) / 2 for row in rows)
    furthest = max(abs(row["estimate"] - 1) for row in rows)
    return "\n".join(
        [
            f"| {len(rows)} comparisons of a model of {median(row['base_ms'] for row in rows):.1f} ms with itself | |",
            "|---|---|",
            f"| 95 % interval holds 1 | {holds} |",
            f"| demonstrated, and beyond {_TOLD_APART:.0%} | {beyond} |",
            f"| half width of the interval, median (largest) | {median(widths):.2%} ({widths[-1]:.2%}) |",
            f"| mean estimate | {fmean(row['estimate'] for row in rows) - 1:+.2%} |",
            f"| furthest estimate | {furthest:.2%} |",
            f"| seconds each, median | {median(row['seconds'] for row in rows):.0f} |",
        ]
    )


def known_table(rows: list[Row]) -> str:
    """What was measured of a change that is known, in percentage points."""
    lines = [
        "| more work | comparisons | bare loop | measured, median (lowest to highest) | furthest off, points |",
        "|---|---|---|---|---|",
    ]
    for change in sorted({row["work"] for row in rows}):
        own = [row for row in rows if row["work"] == change]
        bare = median(row["bare"] for row in own)
        found = sorted(1 / row["estimate"] - 1 for row in own)
        furthest = max(abs(each - change) for each in found)
        lines.append(
            f"| {change:+.0%} | {len(own)} | {bare:+.1%} | "
            f"{median(found):+.1%} ({found[0]:+.1%} to {found[-1]:+.1%}) | {100 * furthest:.1f} |"
        )
    return "\n".join(lines)


def overhead_table(rows: list[Row]) -> str:
    """The harness's latency over the bare loop's."""
    ratios = sorted(row["ratio"] - 1 for row in rows)
    latency = median(row["bare_ms"] for row in rows)
    return "\n".join(
        [
            f"| {len(rows)} sessions of {latency:.2f} ms | harness over a bare loop |",
            "|---|---|",
            f"| median (lowest to highest) | {median(ratios):+.2%} ({ratios[0]:+.2%} to {ratios[-1]:+.2%}) |",
        ]
    )


def read(folder: Path, verb: str) -> list[Row]:
    """Returns the recorded lines."""
    return fronts.read(folder / f"{verb}.jsonl")


def keep(folder: Path, verb: str, row: Row) -> None:
    """Appends a line, and shows it."""
    line = json.dumps(row)
    with (folder / f"{verb}.jsonl").open("a") as stream:
        stream.write(line + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
