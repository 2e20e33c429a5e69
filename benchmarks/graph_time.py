"""Rewriting time against the number of nodes, factor pairs among other nodes, and the exponent it grows with."""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import fronts
import graph_rows
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.records import SVD
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.rule import Rule

_SIZES = (500, 1000, 1500, 2000, 3000, 4000, 5000)
_WIDTH, _RANK, _QUANTUM = 48, 12, 16
_BLOCK = 10  # nodes: a pair of factors, a dense one, and what stands between layers
_PACKAGES = ("numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon")
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's own."""
    parser.add_argument("--sizes", nargs="+", type=_nodes, default=_SIZES, metavar="NODES")
    parser.add_argument("--rounds", type=int, default=7, help="each times every size and rule once")


def record(options: argparse.Namespace) -> None:
    """Times every rule at every size until it has all its rounds; these turn the order about in turn."""
    origin, sizes = graph_rows.provenance(_PACKAGES), dict.fromkeys(options.sizes)
    rows = graph_rows.made_alike(fronts.read(_store(options.out)), origin)
    done = Counter((row["rule"], row["nodes"]) for row in rows)
    arms = [(rule, size) for size in sizes for rule in rules(size) if done[rule, size] < options.rounds]
    with TemporaryDirectory(prefix="graphs-") as folder:
        models = {size: _written(Path(folder, f"{size}.onnx"), size) for size in {size: None for _, size in arms}}
        for rule, size in dict(reversed(arms)).items():
            seconds_of(models[size], rule, size, Path(folder))  # imports and first allocations
        for number in range(min((done[arm] for arm in arms), default=options.rounds), options.rounds):
            due = [arm for arm in arms if done[arm] <= number]
            rows = [
                {"round": number, "rule": rule, "nodes": size, **seconds_of(models[size], rule, size, Path(folder))}
                for rule, size in (due if number % 2 == 0 else due[::-1])
            ]
            graph_rows.append(_store(options.out), rows, origin)
            print(f"round {number + 1} of {options.rounds}", flush=True)


def rules(size: int) -> dict[str, Rule]:
    """The rules by name, each with work in every block."""
    choices = {f"block_{number}.dense": SVD(rank=_RANK) for number in range(size // _BLOCK)}
    return {"pad_rank": PadRank(_QUANTUM), "merge_factors": MergeFactors(), "decompose_node": DecomposeNode(choices)}


def seconds_of(model: Path, rule: str, size: int, folder: Path) -> Row:
    """Reads, rewrites, checks and writes once."""
    made = rules(size)[rule]
    gc.collect()
    started = time.perf_counter()
    report = rewrite_file(model, [made], folder / "rewritten.onnx")
    seconds = time.perf_counter() - started
    if len(report.applied) != size // _BLOCK:
        raise SystemExit(f"{rule} changed {len(report.applied)} of {size // _BLOCK} layers")
    return {"applied": len(report.applied), "seconds": seconds}


def network(size: int) -> ModelProto:
    """So many nodes in residual blocks of ten, each with a pair of factors and a dense MatMul."""
    random = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights = [numpy_helper.from_array(np.full(1, 0.5, np.float32), "half")]
    value = "x"
    for number in range(size // _BLOCK):
        name = f"block_{number}"
        shapes = {"down": (_WIDTH, _RANK), "up": (_RANK, _WIDTH), "dense": (_WIDTH, _WIDTH), "bias": (_WIDTH,)}
        weights += [
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 7, f"{name}.{part}_w")
            for part, shape in shapes.items()
        ]
        nodes += _block(name, value)
        value = f"{name}.out"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 8, _WIDTH]) for end in ("x", value)]
    graph = helper.make_graph(nodes, f"blocks_{size}", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _block(name: str, value: str) -> Iterator[NodeProto]:
    """x ─ down ─ up ─ Add bias ─ Sigmoid ─ Mul ─ Mul half ─ dense ─ Relu ─ Tanh ─ Add x."""
    steps = (
        ("down", "MatMul", f"{name}.down_w"), ("up", "MatMul", f"{name}.up_w"), ("biased", "Add", f"{name}.bias_w"),
        ("gate", "Sigmoid", None), ("gated", "Mul", f"{name}.biased"), ("halved", "Mul", "half"),
        ("dense", "MatMul", f"{name}.dense_w"), ("relu", "Relu", None), ("tanh", "Tanh", None), ("out", "Add", value),
    )  # fmt: skip
    source = value
    for step, operator, other in steps:
        inputs = [source] if other is None else [source, other]
        yield helper.make_node(operator, inputs, [f"{name}.{step}"], name=f"{name}.{step}")
        source = f"{name}.{step}"


def tables(out: Path) -> str:
    """Medians by size and rule, and the exponent that a straight line through the logarithms has."""
    stored = fronts.read(_store(out))
    rows = graph_rows.made_as_last(stored)
    taken: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        taken.setdefault(row["rule"], {}).setdefault(row["nodes"], []).append(row["seconds"])
    medians = {rule: {size: median(found) for size, found in by_size.items()} for rule, by_size in taken.items()}
    sizes = sorted({row["nodes"] for row in rows})
    lines = [
        f"| nodes | layers changed | {' | '.join(f'{rule}, s' for rule in medians)} |",
        "|---" * (2 + len(medians)) + "|",
    ]
    for size in sizes:
        cells = (f"{found[size]:.2f}" if size in found else "–" for found in medians.values())
        lines.append(f"| {size} | {size // _BLOCK} | {' | '.join(cells)} |")
    if len(sizes) > 1:
        lines.append(f"| grows as | | {' | '.join(map(_growth, medians.values()))} |")
    rounds = sorted({len(found) for by_size in taken.values() for found in by_size.values()}) or [0]
    counted = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    lines += ["", f"File to file (read, checks, rule, shapes inferred, written); medians of {counted}, in turn."]
    return "\n".join([*lines, "", graph_rows.origin_told(rows, len(stored) - len(rows))])


def _growth(seconds: dict[int, float]) -> str:
    """The exponent, where there is more than one size to tell it by."""
    if len(seconds) < 2:
        return "–"
    return f"n^{np.polyfit(np.log([*seconds]), np.log([*seconds.values()]), 1)[0]:.2f}"


def _nodes(text: str) -> int:
    """A size as it is asked for: whole blocks."""
    size = int(text) if text.isdecimal() else 0
    if size == 0 or size % _BLOCK:
        raise argparse.ArgumentTypeError(f"{text!r} nodes are no whole blocks; choose a multiple of {_BLOCK}")
    return size


def _written(path: Path, size: int) -> Path:
    return write_model(network(size), path)


def _store(out: Path) -> Path:
    return out / "time.jsonl"
