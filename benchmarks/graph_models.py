"""Every architecture: decomposed, exported, rewritten, converted and compiled; what fails, and why."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fronts
from graph_path import OPSET, POLICIES, QUANTUM, available

Row = dict[str, Any]
_PRECISIONS = ("fp32", *POLICIES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's own."""
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*available()], help="of the architectures")
    parser.add_argument("--again", action="store_true", help="also those that are recorded; the last row counts")
    parser.add_argument("--limit", type=float, default=240.0, metavar="SECONDS", help="for one architecture")


def record(options: argparse.Namespace) -> None:
    """Walks with every architecture that has no row yet."""
    done = set() if options.again else _rows(options.out).keys()
    for name in options.only or available():
        if name not in done:
            row = walked(name, options.limit)
            with _store(options.out).open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            failed = [
                step for step, found in row["steps"].items() if "failure" in found or not found.get("passed", True)
            ]
            told = f"look at {', '.join(failed)}" if failed else "all well"
            print(f"{name}: {row['seconds']:.0f} s, {told}", flush=True)


def walked(name: str, limit_s: float) -> Row:
    """Returns what the steps of one architecture found, by step, from a process of its own."""
    script = Path(__file__).with_name("graph_path.py")
    started = time.perf_counter()
    with TemporaryDirectory(prefix="graphs-") as folder, Path(folder, "log").open("w+") as log:
        try:
            done = subprocess.run(
                [sys.executable, script, name, folder],
                stdout=subprocess.PIPE, stderr=log, timeout=limit_s, text=True, check=False,
            )  # fmt: skip
            lines, ending = done.stdout, f"the process ended with status {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired as late:
            lines, ending = (late.stdout or b"").decode(), f"not done after {limit_s:g} s"
        log.seek(0)
        last_words = " ".join(log.read().split())[-300:]
    steps = {line.pop("step"): line for line in map(json.loads, lines.splitlines())}
    if ending:
        step = next((step for step, found in steps.items() if "begun" in found), "start")
        steps[step] = {"failure": f"{ending}: {last_words}"}
    return {"model": name, "steps": steps, "seconds": round(time.perf_counter() - started, 1)}


def tables(out: Path) -> str:
    """One row per architecture, and below it the reasons for what is missing."""
    columns = ["model", "layers", "factorised", "nodes", "pairs found", "padded", "left alone", "to PyTorch"]
    columns += ["after padding", "ONNX Runtime", *(f"RTX {name}" for name in _PRECISIONS)]
    columns += [f"ONNX Runtime {name}" for name in POLICIES]
    notes: list[str] = []
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = _rows(out).values()
    lines += [f"| {' | '.join(_cells(row['model'], row['steps'], notes))} |" for row in rows]
    told = [
        f"Opset {OPSET}, alpha 2, ranks padded to {QUANTUM}, batches 1 and 2, two lengths where the model has tokens. "
        "'to PyTorch' is the relative L2 difference of the outputs, 'after padding' the largest difference of a value "
        "against its output's largest one, and 'ONNX Runtime' of a precision its relative L2 difference to float32.",
        *notes,
        f"Together {sum(row['seconds'] for row in rows) / 60:.1f} minutes.",
    ]
    return "\n".join([*lines, "", *(f"{line}\n" for line in told)]).strip()


def _cells(name: str, steps: dict[str, Row], notes: list[str]) -> list[str]:
    """A row's cells; a failure becomes the number of a note."""

    def cell(step: str, key: str | None, form: str = "{}") -> str:
        found = steps.get(step)
        if found is None:
            return "–"
        if "failure" in found:
            told = f"{name}, {step}: {' '.join(found['failure'].split())}"
            if told not in notes:
                notes.append(told)
            return f"fails [{notes.index(told) + 1}]"
        value = "yes" if key is None else found[key]
        told = "not run" if value is None else "0" if value == 0 else form.format(value)
        return told if found.get("passed", True) else f"**{told}**"

    skipped = Counter(_kind(reason) for reason in steps.get("rewrite", {}).get("skipped", ()))
    left = "; ".join(f"{count} {reason}" for reason, count in skipped.items()) or "–"
    found = steps.get("rewrite", {})
    pairs = str(found["padded"] + len(found["skipped"])) if "padded" in found else "–"
    return [
        name, cell("decompose", "layers"), cell("decompose", "factorised"), cell("export", "nodes"), pairs,
        cell("rewrite", "padded"), left, cell("export", "difference", "{:.0e}"),
        cell("rewrite", "difference", "{:.0e}"), "yes" if "padded" in found else cell("rewrite", None),
        *(cell(f"RTX {precision}", None) for precision in _PRECISIONS),
        *(cell(precision, "difference", "{:.1e}") for precision in POLICIES),
    ]  # fmt: skip


def _kind(reason: str) -> str:
    """A reason without its numbers, so that equal ones are counted together."""
    if "already on the quantum" in reason:
        return "on the quantum already"
    return "would be wider than exact factors" if "at which factors of its shape are exact" in reason else reason


def _store(out: Path) -> Path:
    return out / "models.jsonl"


def _rows(out: Path) -> dict[str, Row]:
    return {row["model"]: row for row in fronts.read(_store(out))}
