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
import graph_rows
from graph_path import OPSET, POLICIES, QUANTUM, available

Row = dict[str, Any]
_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx", "onnx-graphsurgeon")
_PACKAGES += ("transformers", "timm", "torchvision")
_PRECISIONS = ("fp32", *POLICIES)
_AROUND = ("start", "exit")  # where a process may end outside every step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's own."""
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*available()], help="of the architectures")
    parser.add_argument("--again", action="store_true", help="also those that are recorded; the last row counts")
    parser.add_argument("--limit", type=float, default=240.0, metavar="SECONDS", help="for one architecture")


def record(options: argparse.Namespace) -> None:
    """Walks with every architecture that has no row of this machine and these versions yet."""
    origin = graph_rows.provenance(_PACKAGES)
    stored = graph_rows.made_alike(fronts.read(_store(options.out)), origin)
    done = set() if options.again else {row["model"] for row in stored}
    for name in options.only or available():
        if name not in done:
            row = walked(name, options.limit)
            graph_rows.append(_store(options.out), [row], origin)
            wrong = [step for step, found in row["steps"].items() if "failure" in found or not _passed(found)]
            told = f"look at {', '.join(wrong)}" if wrong else "all well"
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
            written, status = done.stdout, done.returncode
            ending = f"the process ended with status {status}" if status else None
        except subprocess.TimeoutExpired as late:
            written, ending = (late.stdout or b"").decode(errors="replace"), f"not done after {limit_s:g} s"
        log.seek(0)
        last_words = " ".join(log.read().split())[-300:]
    steps = found_steps(written, f"{ending}: {last_words}" if ending else None)
    return {"model": name, "steps": steps, "seconds": round(time.perf_counter() - started, 1)}


def found_steps(written: str, ending: str | None) -> dict[str, Row]:
    """Returns the findings by step, in order; an untimely end is the failure of the step that it fell into.

    Args:
        written: What the process wrote, a line of JSON each; half a line at the end is left out.
        ending: How the process ended, or None where it ended well. Before the first step that is the failure of
            "start", after the last one, as at the interpreter's exit, of "exit".
    """
    whole = written[: written.rfind("\n") + 1]
    steps = {line.pop("step"): line for line in map(json.loads, whole.splitlines())}
    begun = [step for step, found in steps.items() if "begun" in found]
    if ending or begun:
        step = begun[0] if begun else "exit" if steps else "start"
        steps[step] = {"failure": ending or "the process ended in the middle, with status 0"}
    return steps


def tables(out: Path) -> str:
    """One row per architecture, and below it the reasons for what is missing."""
    columns = ["model", "layers", "factorised", "nodes", "pairs found", "padded", "left alone", "to PyTorch"]
    columns += ["after padding", "ONNX Runtime", *(f"RTX {name}" for name in _PRECISIONS)]
    columns += [f"ONNX Runtime {name}" for name in POLICIES]
    notes: list[str] = []
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    stored = fronts.read(_store(out))
    alike = graph_rows.made_as_last(stored)
    rows = {row["model"]: row for row in alike}.values()
    lines += [f"| {' | '.join(_cells(row['model'], row['steps'], notes))} |" for row in rows]
    told = [
        f"Opset {OPSET}, alpha 2, ranks padded to {QUANTUM}, batches 1 and 2, two lengths where the model has tokens. "
        "'to PyTorch' is the relative L2 difference of the outputs, 'after padding' the largest difference of a value "
        "against its output's largest one, and 'ONNX Runtime' of a precision its relative L2 difference to float32. "
        "Bold: further than rounding explains.",
        *(f"[{number}] {note}" for number, note in enumerate(notes, 1)),
        f"Together {sum(row['seconds'] for row in rows) / 60:.1f} minutes.",
        graph_rows.origin_told(alike, len(stored) - len(alike)),
    ]
    return "\n".join([*lines, "", *(f"{line}\n" for line in told)]).strip()


def _cells(name: str, steps: dict[str, Row], notes: list[str]) -> list[str]:
    """A row's cells; every failure becomes the number of a note, at the model's name where no column is the step's."""
    marks: dict[str, str] = {}
    for step, found in steps.items():
        if "failure" in found:
            notes.append(f"{name}, {step}: {' '.join(found['failure'].split())}")
            marks[step] = f"fails [{len(notes)}]"

    def cell(step: str, key: str | None, form: str = "{}") -> str:
        found = steps.get(step)
        if found is None or step in marks:
            return marks.get(step, "–")
        value = ("yes" if _passed(found) else "no") if key is None else found[key]
        told = "not run" if value is None else "0" if value == 0 else form.format(value)
        return told if _passed(found) else f"**{told}**"

    found = steps.get("rewrite", {})
    skipped = Counter(_kind(reason) for reason in found.get("skipped", ()))
    left = "; ".join(f"{count} {reason}" for reason, count in skipped.items()) or "–"
    pairs = str(found["padded"] + len(found["skipped"])) if "padded" in found else "–"
    around = [f"{step} {marks[step]}" for step in _AROUND if step in marks]
    return [
        ", ".join([name, *around]), cell("decompose", "layers"), cell("decompose", "factorised"),
        cell("export", "nodes"), pairs, cell("rewrite", "padded"), left, cell("export", "difference", "{:.0e}"),
        cell("rewrite", "difference", "{:.0e}"), cell("rewrite", None),
        *(cell(f"RTX {precision}", None) for precision in _PRECISIONS),
        *(cell(precision, "difference", "{:.1e}") for precision in POLICIES),
    ]  # fmt: skip


def _passed(found: Row) -> bool:
    return found.get("passed", True)


def _kind(reason: str) -> str:
    """A reason without its numbers, so that equal ones are counted together."""
    if "already on the quantum" in reason:
        return "on the quantum already"
    return "would be wider than exact factors" if "at which factors of its shape are exact" in reason else reason


def _store(out: Path) -> Path:
    return out / "models.jsonl"
