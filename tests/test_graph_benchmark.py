"""The tables of `benchmarks/graphs.py`: no failure is lost, and rows that were not made alike are not mixed."""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEPS = {
    "decompose": {"layers": 9, "factorised": 7},
    "export": {"nodes": 70, "difference": 1e-7, "passed": True},
    "rewrite": {"padded": 5, "skipped": ["its rank is already on the quantum"], "difference": 0.0, "passed": True},
}


@pytest.fixture
def models(monkeypatch):
    """The subcommand of the architectures."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import graph_models

    return graph_models


def written(steps):
    """What the walking process writes."""
    lines = [{"step": step, **found} for step, found in steps.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


def stored(path, *rows):
    """Appends rows as the subcommands do."""
    with path.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def cells(table, row):
    """The cells of a Markdown table's row, by column."""
    header, found = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (table.splitlines()[0], next(line for line in table.splitlines() if line.startswith(f"| {row}")))
    )
    return dict(zip(header, found, strict=True))


def test_an_end_outside_every_step_is_the_start_s_or_the_exit_s(models):
    assert models.found_steps("", "status 1") == {"start": {"failure": "status 1"}}
    assert models.found_steps(written(STEPS), "status -11") == {**STEPS, "exit": {"failure": "status -11"}}
    assert models.found_steps(written(STEPS), None) == STEPS


def test_an_end_within_a_step_is_that_step_s_and_half_a_line_is_left_out(models):
    text = written({**STEPS, "fp16": {"begun": True}})
    for end in ("", '{"step": "fp16", "sha'):
        assert models.found_steps(text + end, "killed") == {**STEPS, "fp16": {"failure": "killed"}}
    assert "status 0" in models.found_steps(text, None)["fp16"]["failure"]


def test_every_failed_step_has_a_note_of_its_number(models, tmp_path):
    failed = {**STEPS, "fp16": {"failure": "no kernel"}, "exit": {"failure": "status -11"}}
    started = {"start": {"failure": "no module"}}
    rows = [{"model": "A", "steps": failed, "seconds": 1.0}, {"model": "B", "steps": started, "seconds": 1.0}]
    stored(tmp_path / "models.jsonl", *rows)
    table = models.tables(tmp_path)
    assert cells(table, "A")["ONNX Runtime fp16"] == "fails [1]"
    assert cells(table, "A")["model"] == "A, exit fails [2]"
    assert cells(table, "B")["model"] == "B, start fails [3]"
    for note in ("[1] A, fp16: no kernel", "[2] A, exit: status -11", "[3] B, start: no module"):
        assert note in table.splitlines()


def test_a_rewrite_whose_outputs_differ_is_no_success(models, tmp_path):
    wrong = {**STEPS, "rewrite": {**STEPS["rewrite"], "difference": 0.5, "passed": False}}
    rows = [{"model": name, "steps": steps, "seconds": 1.0} for name, steps in (("A", wrong), ("B", STEPS))]
    stored(tmp_path / "models.jsonl", *rows)
    assert cells(models.tables(tmp_path), "A")["ONNX Runtime"] == "**no**"
    assert cells(models.tables(tmp_path), "B")["ONNX Runtime"] == "yes"


def test_what_other_code_writes_to_stdout_is_not_among_the_findings():
    script = """
import os, sys
import graph_path
findings = graph_path.reserved_stdout()
graph_path.say(findings, {"step": "one"})
os.write(1, b"a line of a library in C++")
print("a line of Python")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == '{"step": "one"}\n'
    assert "in C++" in done.stderr
    assert "of Python" in done.stderr


@pytest.fixture
def compressed(monkeypatch):
    """The subcommand of the fronts."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import graph_fronts

    return graph_fronts


def line(row, launches=4, **found):
    """A line of the fronts as it is stored."""
    latency = {"speedup": {"estimate": 1.0, "low": 0.9, "high": 1.1}}
    cost = {"macs": 1, "parameters": 1, "dense_macs": 1, "dense_parameters": 1, "latency": latency}
    made = {"accuracy": 0.9, "error": 0.0, **cost} if "refusal" not in found else {}
    identity = {"model": "vit", "seed": 0, "budget": {"launches": launches}, "machine": "here"}
    return {**identity, "row": row, **made, **found}


def test_a_front_is_of_one_experiment(compressed, tmp_path):
    store = tmp_path / "fronts.jsonl"
    stored(store, line("dense"), line("alpha 2", error=0.25), line("alpha 2", machine="there", error=0.75))
    stored(store, line("alpha 1.1", refusal="no rank"), line("alpha 2", launches=1, refusal="another budget"))
    stored(store, line("alpha 1.5"))
    table = compressed.tables(tmp_path)
    assert cells(table.split("\n\n", 1)[1], "alpha 2")["output error"] == "0.250"
    assert "| alpha 1.1 | refused: no rank |" in table
    assert "another budget" not in table


ORIGIN = {"machine": "m", "cpu": "a processor", "cores": 2, "versions": {"onnx": "1"}}


def test_rows_of_other_versions_are_made_again_and_not_shown(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models.graph_rows, "provenance", lambda _: ORIGIN)
    monkeypatch.setattr(models, "walked", lambda name, _: {"model": name, "steps": STEPS, "seconds": 1.0})
    unrecorded = {"model": "bert", "steps": {"start": {"failure": "of old"}}, "seconds": 1.0}
    stored(tmp_path / "models.jsonl", unrecorded, {**unrecorded, **ORIGIN, "versions": {"onnx": "0"}, "date": "2020"})
    assert "of old" in models.tables(tmp_path)
    options = SimpleNamespace(out=tmp_path, again=False, only=["bert"], limit=1)
    models.record(options)
    models.record(options)
    assert capsys.readouterr().out.count("bert") == 1
    table = models.tables(tmp_path)
    assert "of old" not in table
    assert table.splitlines()[-1].startswith("a processor, 2 cores; onnx 1; 2")
    assert table.endswith("Left out: 2 rows that were made otherwise.")


@pytest.fixture
def timing(monkeypatch):
    """The subcommand of rewriting times, with a clock that tells the size."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import graph_time

    monkeypatch.setattr(graph_time.graph_rows, "provenance", lambda _: ORIGIN)
    monkeypatch.setattr(graph_time, "seconds_of", lambda _, __, size, ___: {"seconds": size / 10})
    return graph_time


def test_a_size_that_comes_later_has_all_its_rounds(timing, tmp_path):
    timing.record(SimpleNamespace(out=tmp_path, sizes=[20], rounds=2))
    timing.record(SimpleNamespace(out=tmp_path, sizes=[20, 40], rounds=3))
    rows = timing.fronts.read(tmp_path / "time.jsonl")
    assert Counter((row["rule"], row["nodes"]) for row in rows) == {
        (rule, size): 3 for rule in ("pad_rank", "merge_factors", "decompose_node") for size in (20, 40)
    }
    assert "medians of 3," in timing.tables(tmp_path)
    assert cells(timing.tables(tmp_path), "grows as")["pad_rank, s"] == "n^1.00"


def test_a_rule_may_lack_a_size(timing, tmp_path):
    sizes = (("pad_rank", 20), ("pad_rank", 40), ("pad_rank", 40), ("merge_factors", 20))
    rows = [{"round": 0, "rule": rule, "nodes": size, "seconds": size / 10} for rule, size in sizes]
    stored(tmp_path / "time.jsonl", *rows)
    table = timing.tables(tmp_path)
    assert cells(table, "40")["merge_factors, s"] == "–"
    assert cells(table, "grows as")["merge_factors, s"] == "–"
    assert "medians of 1 to 2," in table


@pytest.mark.parametrize("text", ["0", "505", "-10", "many"])
def test_sizes_are_whole_blocks(timing, text):
    parser = argparse.ArgumentParser(exit_on_error=False)
    timing.add_arguments(parser)
    assert parser.parse_args(["--sizes", "510"]).sizes == [510]
    with pytest.raises(argparse.ArgumentError, match="choose a multiple of 10"):
        parser.parse_args([f"--sizes={text}"])
