"""Training and inference on a data-centre GPU, and what that GPU can do at most: every row kept as soon as it is there.

    python benchmarks/gpu.py all --device cuda --minutes 9 --out FOLDER/results.jsonl   again until nothing is left
    python benchmarks/gpu.py ceiling|training|inference …       one part
    python benchmarks/gpu.py tables --out …                     the measured latencies, into calibration/
    python benchmarks/gpu.py table --out …                      the tables, as Markdown; measures nothing
    python benchmarks/gpu.py all --device cpu --smoke --out …   all of it in small sizes, to try it out

Each row runs in a process of its own, so that none inherits what another left on the device, and is a line of --out;
what it is of, and the machine, say whether it is there already. The latencies of single layers are kept beside it, in
latency-training.jsonl and latency-inference.jsonl, as they are measured: a plan that was cut short goes on from there.
Models and compiled code go to --work and can be lost. Weights are random, since a step costs the same: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NEEDED = ("torch", "transformers", "accelerate", "onnx", "onnxruntime", "onnxscript", "onnx_graphsurgeon", "polygraphy",
          "pydantic", "scipy", "safetensors", "yaml")  # fmt: skip
BATCHES = (32, 1, 8, 128)
# What a row is expected to take, in seconds, until one of its kind was measured.
EXPECTED = {
    "machine": 15,
    "ceiling": 30,
    "training-plan": 120,
    "training eager": 60,
    "training compile": 240,
    "inference-plan": 150,
    "inference graph": 75,
    "inference plain": 75,
    "engine tensorrt": 120,
    "engine tensorrt-rtx": 60,
}
_LIKE_LAYERS = ("vit-b16", "bert-base")  # whose plans time a handful of distinct layers
_LIKE_LAYERS_SHARE = 0.4
_STARTING_S, _INTERRUPTED_S = 10, 10


@dataclass(frozen=True)
class Row:
    """What a line of the results is of; what does not apply is empty."""

    part: str
    model: str = ""
    precision: str = ""
    mode: str = ""
    batch: int = 0
    smoke: bool = False

    def __str__(self) -> str:
        """Says it in words."""
        batch = f"batch {self.batch}" if self.batch else ""
        return " ".join(word for word in (self.part, self.model, self.precision, self.mode, batch) if word)

    @property
    def kind(self) -> tuple[str, str, str, bool]:
        """Rows of one kind take about as long, whatever the batch and the precision."""
        return self.part, self.model, self.mode, self.smoke

    @property
    def expected_s(self) -> float:
        """What it is expected to take until one of its kind was measured."""
        if self.smoke:
            return _STARTING_S
        light = self.part.endswith("-plan") and self.model in _LIKE_LAYERS
        return EXPECTED[f"{self.part} {self.mode}".strip()] * (_LIKE_LAYERS_SHARE if light else 1)

    @property
    def plan(self) -> Row | None:
        """The row that holds the ranks for this one."""
        if self.part == "training":
            return Row("training-plan", self.model, self.precision, smoke=self.smoke)
        if self.part in ("inference", "engine"):
            return Row("inference-plan", self.model, self.precision, batch=self.batch, smoke=self.smoke)
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, as far as the time goes, then prints the tables."""
    options = parsed(arguments)
    if options.verb == "row":
        options.result.write_text(json.dumps(computed(Row(**json.loads(options.key)), options)))
        return
    results = Results(options.out)
    if options.verb not in ("table", "tables"):
        refuse_incomplete()
        measure(wanted_rows(options), results, options)
    if options.verb in ("tables", "all"):
        import gpu_tables

        for path in gpu_tables.write_tables(latency_files(options), options.calibration):
            print(f"wrote {path}")
    import gpu_tables

    print(gpu_tables.report(results.lines, latency_files(options)))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("all", "ceiling", "training", "inference", "tables", "table", "row"))
    parser.add_argument("--device", default="cuda", help="cpu, or cuda[:N]")
    parser.add_argument("--smoke", action="store_true", help="small models and few samples, to try it out on a CPU")
    parser.add_argument("--minutes", type=float, help="start no row that is not expected to end within them")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="the results")
    parser.add_argument("--work", type=Path, help="where models and compiled code go [work, beside the results]")
    parser.add_argument("--calibration", type=Path, default=Path("calibration"), help="where tables go")
    parser.add_argument("--launches", type=int, default=4, help="of each inference row")
    parser.add_argument("--rounds", type=int, default=8, help="of each training row")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--again", action="store_true", help="try rows again that were refused")
    parser.add_argument(
        "--any-machine", action="store_true", help="rows count that another machine with this GPU measured"
    )
    parser.add_argument("--in-process", action="store_true", help="rows in this process: sooner, and less apart")
    parser.add_argument("--key", help=argparse.SUPPRESS)  # a row's own process: which,
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # and where its result goes
    options = parser.parse_args(arguments)
    if options.device != "cpu":
        options.device = f"cuda:{int(options.device.partition(':')[2] or 0)}"
    options.work = options.work or options.out.parent / "work"
    return options


def refuse_incomplete() -> None:
    """Ends the program where packages are missing, with all of them, before any time of the device is spent."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"missing packages: {', '.join(missing)}; docs/gpu.md says how to bring them")


# Which rows, in which order ---------------------------------------------------------------------------------------


def wanted_rows(options: argparse.Namespace) -> list[Row]:
    """Returns the rows of a verb, the most telling ones first."""
    parts = {"ceiling": ("ceiling",), "training": ("training",), "inference": ("inference", "engine")}
    kept = parts.get(options.verb)
    rows = list(smoke_rows() if options.smoke else all_rows())
    if kept:
        rows = [row for row in rows if row.part in kept]
    if options.models:
        rows = [row for row in rows if not row.model or row.model in options.models]
    needed = [Row("machine", smoke=options.smoke), Row("ceiling", smoke=options.smoke)]
    for row in rows:
        needed += [row.plan, row] if row.plan else [row]
    return list(dict.fromkeys(needed))


def all_rows() -> Iterator[Row]:
    """Yields every row, plans apart: bf16 and FP16 before TF32, eager before compiled, batch 32 and 1 before others.

    A transformer and a convolutional network come first.
    """
    halves = ("vit-b16", "resnet50"), ("bert-base", "resnet101")
    models = sum(halves, ())
    for half in halves:
        yield from (Row("training", model, "bf16", "eager") for model in half)
        yield from _inference_rows(half, "fp16", BATCHES[0])
    yield from _inference_rows(models, "fp16", BATCHES[1])
    yield from (Row("engine", model, "fp16", "tensorrt", 32) for model in ("vit-b16", "resnet50"))
    yield Row("engine", "vit-b16", "fp16", "tensorrt-rtx", 32)
    yield from (Row("training", model, "bf16", "compile") for model in models)
    yield from (Row("training", model, "tf32", "eager") for model in models)
    yield from _inference_rows(models, "tf32", 32)
    for batch in BATCHES[2:]:
        yield from _inference_rows(models, "fp16", batch)
    for batch in (1, *BATCHES[2:]):
        yield from _inference_rows(models, "tf32", batch)
    yield from (Row("training", model, "tf32", "compile") for model in models)


def _inference_rows(models: Sequence[str], precision: str, batch: int) -> Iterator[Row]:
    for model in models:
        yield from (Row("inference", model, precision, mode, batch) for mode in ("graph", "plain"))


def smoke_rows() -> Iterator[Row]:
    """Yields a row of each part, on what a CPU has."""
    yield Row("training", "small-resnet", "bf16", "eager", smoke=True)
    yield Row("training", "small-vit", "fp32", "eager", smoke=True)
    yield Row("inference", "small-resnet", "fp16", "plain", 2, smoke=True)
    yield Row("inference", "small-vit", "fp32", "plain", 1, smoke=True)
    yield Row("engine", "small-vit", "fp32", "tensorrt-rtx", 1, smoke=True)


# Measuring --------------------------------------------------------------------------------------------------------


class Results:
    """The file of results: a line per row, whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a last line that was cut short is dropped, and its row measured again."""
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def of(self, row: Row, machine: str, *, any_machine: bool = False) -> dict[str, Any] | None:
        """Returns the newest line of a row, of this machine or, where told so, of any; ceilings are this one's own."""
        elsewhere = any_machine and row.part not in ("machine", "ceiling")
        found = [
            line for line in self.lines if line["row"] == asdict(row) and (elsewhere or line["machine"] == machine)
        ]
        return found[-1] if found else None

    def seconds(self, row: Row) -> float:
        """Returns what a row takes: what the longest of its kind did so far, or what is expected."""
        taken = [line["seconds"] for line in self.lines if "result" in line and Row(**line["row"]).kind == row.kind]
        return max(taken, default=row.expected_s)

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line, and returns when it is on the disk."""
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def measure(rows: Sequence[Row], results: Results, options: argparse.Namespace) -> None:
    """Measures the rows that are missing, in order, each that is expected to end in time."""
    from lrd_deploy.bench.environment import environment

    started, machine, left = time.monotonic(), environment().fingerprint, []
    for row in rows:
        line = results.of(row, machine, any_machine=options.any_machine)
        if line and not (options.again and "refusal" in line):
            continue
        expected = results.seconds(row)
        remaining = None if options.minutes is None else 60 * options.minutes - (time.monotonic() - started)
        if remaining is not None and expected > remaining:
            left.append((row, expected))
            continue
        plan = row.plan and results.of(row.plan, machine, any_machine=options.any_machine)
        if row.plan and "result" not in (plan or {}):
            left.append((row, expected))  # its plan did not fit into the time, or was refused
            continue
        print(f"{row} … about {expected:.0f} s", file=sys.stderr, flush=True)
        begun = time.monotonic()
        outcome = attempt(row, options, remaining)
        if outcome is None:
            left.append((row, expected))
            continue
        seconds = round(time.monotonic() - begun, 1)
        date = time.strftime("%Y-%m-%d")
        results.add({"row": asdict(row), "machine": machine, "seconds": seconds, "date": date, **outcome})
        told = outcome.get("refusal", "done")
        print(f"{row}: {told} after {seconds:.0f} s", file=sys.stderr, flush=True)
    if left:
        minutes = sum(expected for _, expected in left) / 60
        print(f"{len(left)} rows are left, about {minutes:.0f} minutes: run this again", file=sys.stderr)


def attempt(row: Row, options: argparse.Namespace, seconds: float | None) -> dict[str, Any] | None:
    """Returns a row's result, or why there is none; None where the time ended first."""
    if options.in_process:
        return {"result": computed(row, options)}
    with TemporaryDirectory(prefix="gpu-row-") as folder:
        target, words = Path(folder, "result.json"), Path(folder, "stderr")
        command = [sys.executable, __file__, "row", "--key", json.dumps(asdict(row)), "--result", target]
        for name in ("device", "out", "work", "launches", "rounds"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--any-machine"] * options.any_machine
        with words.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, env=_surroundings(options))
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end(process)
        if status:
            last = [line for line in words.read_text(errors="replace").splitlines() if line.strip()][-3:]
            return {"refusal": " | ".join(last)[-600:] or f"it ended with status {status}"}
        return {"result": json.loads(target.read_text())}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a row that is still running, so that it ends its own workers; kills it where that does not help."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_INTERRUPTED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _surroundings(options: argparse.Namespace) -> dict[str, str]:
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str((options.work / "inductor").resolve())}
    paths = os.pathsep.join((str(Path(__file__).parents[1]), *(entry for entry in sys.path if entry)))
    return {**os.environ, **compiled, "PYTHONPATH": paths, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def computed(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one row, here."""
    options.work.mkdir(parents=True, exist_ok=True)
    return _MEASURES[row.part](row, options)


def _machine(_row: Row, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from gpu_inference import engine_of

    from lrd_deploy.bench.environment import environment
    from lrd_deploy.bench.torch_device import check_torch_device, on_gpu

    check_torch_device(options.device)
    engine, why = engine_of(options.device)
    gpu = torch.cuda.get_device_name(options.device) if on_gpu(options.device) else None
    return {
        "environment": environment().model_dump(mode="json"),
        "device": gpu or environment().cpu,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "engine": engine,
        "why_not_onnxruntime": why,
    }


def _ceiling(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_ceiling import measure_ceilings

    return measure_ceilings(options.device, small=row.smoke)


def _training_plan(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_training import plan_training

    return plan_training(row.model, row.precision, options.device, latency_files(options)[0], _observer())


def _training(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_training import measure_training

    rounds = 3 if row.smoke else options.rounds
    plans, _ = _before(row, options)
    return measure_training(row.model, row.precision, row.mode, plans, options.device, rounds=rounds, profiled=True)


def _inference_plan(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_inference import plan_inference

    return plan_inference(_condition(row, options), latency_files(options)[1], _observer())


def _inference(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_inference import measure_inference

    plans, ceilings = _before(row, options)
    return measure_inference(_condition(row, options), plans, ceilings, launches=2 if row.smoke else options.launches)


def _engine(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    from gpu_inference import try_engine

    return try_engine(row.mode, _condition(row, options), _before(row, options)[0])


_MEASURES: dict[str, Callable[[Row, argparse.Namespace], dict[str, Any]]] = {
    "machine": _machine,
    "ceiling": _ceiling,
    "training-plan": _training_plan,
    "training": _training,
    "inference-plan": _inference_plan,
    "inference": _inference,
    "engine": _engine,
}


def _condition(row: Row, options: argparse.Namespace) -> Any:
    """Layers are timed as they run in a model: replayed, where there is a GPU to replay on."""
    from gpu_inference import Condition

    graph = options.device != "cpu" and row.mode in ("", "graph")
    return Condition(row.model, row.precision, row.batch, graph, options.device, options.work)


def _before(row: Row, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The plans that this machine made for a row, and its ceilings."""
    from lrd_deploy.bench.environment import environment
    from lrd_deploy.records import RankPlan

    results, machine = Results(options.out), environment().fingerprint
    plans = results.of(row.plan, machine, any_machine=options.any_machine)["result"]["plans"]
    ceiling = results.of(Row("ceiling", smoke=row.smoke), machine)
    found = {name: RankPlan.model_validate_json(json.dumps(plan)) for name, plan in plans.items()}
    return found, (ceiling or {}).get("result")


def _observer() -> Any:
    from lrd_deploy.observer import SilentObserver

    return SilentObserver()


def latency_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """Returns where the latencies of single layers are: of training steps, of inference."""
    return options.out.parent / "latency-training.jsonl", options.out.parent / "latency-inference.jsonl"


if __name__ == "__main__":
    main()
