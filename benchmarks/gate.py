"""How often the latency gate errs, and how long it takes: on an idle machine, and beside two busy neighbours.

    python benchmarks/gate.py record idle     about 20 minutes on 2 cores; nothing else may run
    python benchmarks/gate.py record busy     the same, with two neighbours that compute in bursts
    python benchmarks/gate.py time            whole gates, on models of about 2 and 50 ms
    python benchmarks/gate.py table           what the recorded launches say; needs no quiet machine

Every launch is one that a gate would take: a fresh process with a baseline, a candidate and a copy of the baseline. The
candidate computes as much, 5 % more or 10 % more: 40, 42 or 44 layers. Launches are kept in tests/gate/recorded, where
a test replays them; recording goes on where it stopped.

The table plays 200 gates on launches drawn anew for each, and as many as share no launch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper

from lrd_deploy.bench.compare import fresh_launches
from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.gate.measure import LENGTH, GateSettings, gate
from lrd_deploy.gate.notebook import launch_ratio
from lrd_deploy.gate.reference import open_reference
from lrd_deploy.gate.simulate import disjoint_rates, resampled_rates
from lrd_deploy.observer import SilentObserver
from lrd_deploy.records import GatePolicy, LaunchPool, LaunchRatio, SlowdownRates

RECORDED = Path(__file__).resolve().parents[1] / "tests" / "gate" / "recorded"
CONDITIONS = ("idle", "busy")
_LAYERS, _WIDTH, _BATCH = 40, 320, 32
_POOLS = {0.0: 150, 0.05: 270, 0.1: 104}  # launches: twenty gates that share none, and a hundred to draw from
_GATES, _SEED = 200, 1
_WHOLE_GATES = {"2 ms": (_WIDTH, _BATCH), "50 ms": (1024, 72)}


def main() -> None:
    """Records, times or prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("condition", choices=CONDITIONS)
    recording.add_argument("--share", type=float, default=1.0, help="of the launches, to try it out")
    verbs.add_parser("time")
    verbs.add_parser("table")
    options = parser.parse_args()
    if options.verb == "record":
        record(options.condition, options.share)
    elif options.verb == "time":
        time_gates()
    else:
        print_table()


def record(condition: str, share: float) -> None:
    """Records what is not recorded yet, in rounds over the slowdowns, so that none has a calmer hour."""
    with TemporaryDirectory() as folder, neighbours(2 if condition == "busy" else 0):
        models = {slowdown: mlp(Path(folder, f"{slowdown}.onnx"), layers=_layers(slowdown)) for slowdown in _POOLS}
        inputs = random_batches(models[0.0], [_BATCH])[0]
        pools = {slowdown: recorded(condition, slowdown) for slowdown in _POOLS}
        wanted = {slowdown: round(share * size) - len(pools[slowdown]) for slowdown, size in _POOLS.items()}
        while any(size > 0 for size in wanted.values()):
            for slowdown in (slowdown for slowdown, size in wanted.items() if size > 0):
                found = fresh_launches(models[0.0], models[slowdown], inputs, 1, LENGTH, SilentObserver())
                with closing(found):
                    taken = [launch_ratio(samples) for samples in islice(found, min(24, wanted[slowdown]))]
                pools[slowdown] += taken
                wanted[slowdown] -= len(taken)
                keep(condition, slowdown, pools[slowdown])
                print(f"{condition}, {slowdown:+.0%}: {len(pools[slowdown])} launches", flush=True)


def keep(condition: str, slowdown: float, launches: list[LaunchRatio]) -> None:
    """Writes a pool."""
    what = f"{_LAYERS} layers of {_WIDTH}, batch {_BATCH}, one thread, against {_layers(slowdown)} layers; {condition}"
    pool = LaunchPool.of(launches, what=what, slowdown=slowdown, environment=environment())
    path = RECORDED / f"{condition}-{round(100 * slowdown)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(pool.model_dump_json().replace("],[", "],\n["))


def recorded(condition: str, slowdown: float) -> list[LaunchRatio]:
    """Returns what is recorded so far."""
    path = RECORDED / f"{condition}-{round(100 * slowdown)}.json"
    return list(LaunchPool.read(path).launches) if path.is_file() else []


def print_table() -> None:
    """Prints rates by condition and slowdown, as Markdown."""
    print("| machine | more work | measured | SD per launch | launches drawn | gates | FAIL | PASS | INCONCLUSIVE |")
    print("|---|---|---|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        for slowdown in _POOLS:
            pool = recorded(condition, slowdown)
            if pool:
                print_rows(condition, slowdown, pool)


def print_rows(condition: str, slowdown: float, pool: list[LaunchRatio]) -> None:
    """Prints one row per way of drawing launches."""
    policy, changes = GatePolicy(), [launch.candidate for launch in pool]
    measured, spread = np.expm1(np.median(changes)), stdev(changes)
    # Nothing is scaled: the candidates really compute more.
    drawn = resampled_rates(pool, policy, slowdown=0.0, gates=_GATES, seed=_SEED)
    used = disjoint_rates(pool, policy, slowdown=0.0)
    for how, rates in (("anew for each gate", drawn), ("each used once", used)):
        print(f"| {condition} | {slowdown:+.0%} | {measured:+.1%} | {spread:.1%} | {how} | {verdicts(rates)} |")


def verdicts(rates: SlowdownRates) -> str:
    """Returns counts of each verdict as cells."""
    counts = (round(share * rates.gates) for share in (rates.fail, rates.passed, rates.inconclusive))
    return " | ".join(map(str, (rates.gates, *counts)))


def time_gates() -> None:
    """Prints how long whole gates take, and what they say."""
    print("| model | candidate | baseline ms | verdict | launches | seconds |")
    print("|---|---|---|---|---|---|")
    for name, (width, batch) in _WHOLE_GATES.items():
        for slowdown in (0.0, 0.1):
            with TemporaryDirectory() as folder:
                base = mlp(Path(folder, "base.onnx"), width=width)
                candidate = mlp(Path(folder, "candidate.onnx"), width=width, layers=_layers(slowdown))
                policy = GatePolicy(tolerance=100.0)  # more layers give other outputs; only time matters here
                started = time.perf_counter()
                references = {"baseline": open_reference(base, None)}
                result = gate(references, candidate, GateSettings(batches=(batch,)), policy, Path(folder, "gate"))
                seconds = time.perf_counter() - started
            (case,) = result.cases
            count = case.launches + case.confirming_launches
            print(
                f"| {name} | {slowdown:+.0%} | {case.base_ms:.2f} | {result.verdict} | {count} | {seconds:.1f} |",
                flush=True,
            )


def mlp(path: Path, *, layers: int = _LAYERS, width: int = _WIDTH) -> Path:
    """Writes a chain of Gemm and ReLU with random weights of unit gain."""
    weights = np.random.default_rng(0).standard_normal((layers, width, width)) * np.sqrt(2 / width)
    nodes, initializers, value = [], [], "x"
    for number, weight in enumerate(weights.astype(np.float32)):
        name = f"w{number}"
        initializers.append(helper.make_tensor(name, TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        nodes.append(helper.make_node("Gemm", [value, name], [f"g{number}"], name=f"gemm{number}"))
        value = "y" if number == layers - 1 else f"r{number}"
        nodes.append(helper.make_node("Relu", [f"g{number}"], [value], name=f"relu{number}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keeps so many processes computing beside the block: half of the time, in bursts of up to half a second."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=burst, args=(seed,), daemon=True) for seed in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def burst(seed: int) -> None:
    """Computes and rests in turn, until it is ended."""
    source, matrix = random.Random(seed), np.ones((400, 400), np.float32)
    while True:
        until = time.monotonic() + source.uniform(0.05, 0.5)
        while time.monotonic() < until:
            matrix = np.tanh(matrix @ matrix)
        time.sleep(source.uniform(0.05, 0.5))


def _layers(slowdown: float) -> int:
    return round(_LAYERS * (1 + slowdown))


if __name__ == "__main__":
    main()
