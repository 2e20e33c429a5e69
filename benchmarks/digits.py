"""The README's table: the digits recipe with three ways of choosing ranks, and what the command line promises.

    python benchmarks/digits.py [--out FOLDER]

Every row fine-tunes for the same epochs from the same dense weights and is measured in the same way. About 6 minutes
on 2 cores, with nothing else running.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lrd_deploy.pipeline import run
from lrd_deploy.recipe import Policy, UniformRank, load_recipe
from lrd_deploy.records import Ratio, RunRecord, TrainedModel
from lrd_deploy.report.wording import share

COMMAND = [sys.executable, "-m", "lrd_deploy.cli.main"]


def main() -> None:
    """Measures every row and prints two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="lrd-deploy-digits-"))
    cold = seconds([*COMMAND, "run", "digits", "--out", str(out / "latency")])
    again = seconds([*COMMAND, "run", "digits", "--out", str(out / "latency")])
    helps = min(seconds([*COMMAND, "--help"]) for _ in range(5))
    recorded = RunRecord.read(out / "latency" / "run.json")
    rows = {
        "formula, alpha 2": policy_row(out, "formula", UniformRank(alpha=2)),
        "formula, floored to 16": policy_row(out, "floored", UniformRank(alpha=2, round_to=16)),
        "**measured latency** (the recipe)": recorded,
    }
    print(policies_table(rows))
    print()
    print(promises_table(recorded, out / "latency", cold, again, helps))
    here = recorded.environment
    print()
    print(f"{here.cpu}, {here.cores} cores, {time.strftime('%Y-%m-%d')}.")
    print(f"Inference: ONNX Runtime {here.packages['onnxruntime-gpu']}, one thread, batch 8, float32.")
    print(f"Training: PyTorch {here.packages['torch']}, {here.cores} threads, batch 64, float32.")


def policy_row(out: Path, name: str, policy: Policy) -> RunRecord:
    """Runs the recipe with another policy, from the dense weights of the first run."""
    folder = out / name
    for kept in ("dense", "stages"):
        shutil.copytree(out / "latency" / kept, folder / kept, dirs_exist_ok=True)
    shutil.copy(out / "latency" / "dense.json", folder / "dense.json")
    # Ranks are exported as chosen: padding the formula's ranks would hide what they cost.
    recipe = load_recipe("digits")
    changed = {"ranks": policy, "rewrite": recipe.rewrite.model_copy(update={"quantum": 1})}
    return run(recipe.model_copy(update=changed), folder).record


def policies_table(rows: dict[str, RunRecord]) -> str:
    """One row per policy."""
    lines = [
        "| ranks by | inference speedup | training step speedup | MACs | parameters | accuracy (dense) |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in rows.items():
        accuracy = f"{record.accuracy.lowrank:.2%} ({record.accuracy.dense:.2%})"
        cells = (interval(record.speedup), interval(record.training_speedup), share(record.macs))
        lines.append(f"| {name} | {' | '.join(cells)} | {share(record.parameters)} | {accuracy} |")
    return "\n".join(lines)


def promises_table(record: RunRecord, folder: Path, cold: float, again: float, helps: float) -> str:
    """What the recipe and the command line promise, and what came out."""
    epochs = {
        arm: [epoch.seconds for epoch in TrainedModel.read(folder / f"{arm}.json").epochs]
        for arm in ("dense", "lowrank")
    }
    mean = {arm: sum(values) / len(values) for arm, values in epochs.items()}
    drop = 100 * (record.accuracy.dense - record.accuracy.lowrank)
    rows = [
        ("`lrd-deploy run digits`, cold", "≤ 180 s", f"{cold:.0f} s"),
        ("the same again, nothing changed", "≤ 5 s", f"{again:.1f} s"),
        ("`lrd-deploy --help`", "< 0.3 s", f"{helps:.2f} s"),
        ("inference speedup", "≥ 2.0, lower bound ≥ 1.8", interval(record.speedup)),
        ("an epoch of fine-tuning against a dense one", "≥ 2.5×", f"{mean['dense'] / mean['lowrank']:.2f}×"),
        ("accuracy under dense, points", "≤ 0.5", f"{drop:.2f}"),
        ("parameters", "≤ 50 %", share(record.parameters)),
        ("A/A control, dense against itself", "1", f"{record.control.estimate:.3f}"),
    ]
    lines = ["| | target | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def interval(ratio: Ratio) -> str:
    """A ratio with its interval, short."""
    return f"{ratio.estimate:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def seconds(command: list[str]) -> float:
    """Runs a command and returns how long it took."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
