"""`lrd-deploy rewrite`."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lrd_deploy.engines.backend import Arrays
    from lrd_deploy.records import RewriteReport
    from lrd_deploy.rewrite.rule import Rule

_OPTIONS: Mapping[str, Sequence[str]] = {
    "pad": ("quantum",),
    "truncate": ("quantum", "max_error"),
    "merge": ("layers_from",),
    "balance": (),
    "auto": ("quantum", "max_error", "table", "batch", "threads", "layers_from"),
}

MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Relative L2 by which outputs may move. With truncate it fails beyond. [any] "
        "With auto, ranks are truncated only within it. [none]",
    ),
]
LayersFromOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PROFILE.json",
        help="With merge and auto: change only factors that 'profile' found slower than their dense layer. [all]",
    ),
]


def rewrite(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file with factors in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    mode: Annotated[
        str,
        typer.Option(
            help="pad: ranks up to the quantum, with zeros. truncate: down to it, losing the least. "
            "merge: factors back into one node. balance: factors to one scale, before FP16. "
            "auto: whichever of keep, pad, truncate and merge is fastest, as measured in ONNX Runtime."
        ),
    ] = "pad",
    quantum: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks become multiples of this. [16; with auto 8, 16, 32 and 64 are tried]"),
    ] = None,
    max_error: MaxErrorOption = None,
    table: Annotated[
        Path | None, typer.Option(help="With auto: latencies measured before, and where new ones are kept.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="With auto: the deployed batch. [8]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With auto: the deployed threads. [1]")] = None,
    layers_from: LayersFromOption = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file of real inputs to compare outputs on. [random]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make every rank one the hardware likes, in any ONNX file; outputs before and after are compared."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import placed_model, written_model
    from lrd_deploy.engines.inputs import compared_on
    from lrd_deploy.files import check_apart
    from lrd_deploy.pipeline.rewriting import OutputsMayMove, OutputsStay, rewrite_model
    from lrd_deploy.report.terminal import rewrite_table

    asked = {
        "quantum": quantum,
        "max_error": max_error,
        "table": table,
        "batch": batch,
        "threads": threads,
        "layers_from": layers_from,
    }
    _check_options(mode, {name: value for name, value in asked.items() if value is not None})
    if mode == "truncate" or max_error is not None:
        check_apart(output, model)
    batches = compared_on(model, inputs)
    if mode == "auto":
        report = _enforced(model, output, batches, asked)
    elif layers_from:
        report = _merged_back(model, output, batches, {**asked, "inputs": inputs})
    else:
        allowed = OutputsMayMove(max_error) if mode == "truncate" else OutputsStay()
        report = rewrite_model(model, [_rule(mode, quantum or 16)], output, batches, allowed).report
    wrote = written_model(output)
    show(placed_model(report, wrote), rewrite_table(report), as_json=as_json, wrote=[wrote])


def _enforced(model: Path, output: Path, batches: Sequence[Arrays], asked: Mapping[str, Any]) -> RewriteReport:
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.pipeline.enforcing import QUANTA, Goal, enforce_ranks
    from lrd_deploy.pipeline.merging_back import losing_chains
    from lrd_deploy.pipeline.onnx_bench import chain_latencies, deployed_bench
    from lrd_deploy.records import ModelProfile

    bench = deployed_bench(read_model(model), asked["batch"], asked["threads"])
    only = losing_chains(model, ModelProfile.read(asked["layers_from"])) if asked["layers_from"] else None
    goal = Goal((asked["quantum"],) if asked["quantum"] else QUANTA, asked["max_error"], only)
    with ConsoleObserver() as observer, chain_latencies(asked["table"], bench, observer) as latency:
        return enforce_ranks(model, output, batches, goal, latency, bench).report


def _merged_back(model: Path, output: Path, batches: Sequence[Arrays], asked: Mapping[str, Any]) -> RewriteReport:
    from lrd_deploy.bench.compare import compare
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.engines.inputs import one_batch
    from lrd_deploy.pipeline.merging_back import merge_back
    from lrd_deploy.recipe.settings import Bench
    from lrd_deploy.records import ModelProfile

    found = ModelProfile.read(asked["layers_from"])
    timed = one_batch(model, found.batch, asked["inputs"])
    bench = Bench(batch=found.batch, threads=found.threads, launches=6)
    with ConsoleObserver() as observer:
        return merge_back(
            model, found, output, batches, lambda base, merged: compare(base, merged, timed, bench, observer)[0].speedup
        ).report


def _rule(mode: str, quantum: int) -> Rule:
    from lrd_deploy.rewrite.balance_factors import BalanceFactors
    from lrd_deploy.rewrite.merge_factors import MergeFactors
    from lrd_deploy.rewrite.pad_rank import PadRank
    from lrd_deploy.rewrite.truncate_rank import TruncateRank

    return {
        "pad": PadRank(quantum),
        "truncate": TruncateRank(quantum),
        "merge": MergeFactors(),
        "balance": BalanceFactors(),
    }[mode]


def _check_options(mode: str, given: Mapping[str, Any]) -> None:
    from lrd_deploy.errors import UsageError

    if not isfinite(given.get("max_error", 0.0)):
        raise UsageError(
            "choosing how to rewrite",
            found=f"--max-error {given['max_error']}",
            accepted="a number from 0 on",
            remedy="leave it out to allow any error with --mode truncate, and none with --mode auto",
        )
    foreign = [name for name in given if name not in _OPTIONS.get(mode, ())]
    if mode in _OPTIONS and not foreign:
        return
    takes = [
        f"--mode {name}" + (f" with {', '.join(map(_flag, options))}" if options else "")
        for name, options in _OPTIONS.items()
    ]
    raise UsageError(
        "choosing how to rewrite",
        found=" ".join([f"--mode {mode}", *(f"{_flag(name)} {given[name]}" for name in given)]),
        accepted="; ".join(takes),
        remedy=f"leave out {', '.join(_flag(name) for name in foreign)}" if mode in _OPTIONS else "choose one of these",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
