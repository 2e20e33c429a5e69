"""`lrd-deploy rewrite`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lrd_deploy.rewrite.rule import Rule

_OPTIONS: Mapping[str, Sequence[str]] = {
    "pad": ("quantum",),
    "truncate": ("quantum", "max_error"),
    "merge": (),
    "balance": (),
}


def rewrite(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file with factors in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    mode: Annotated[
        str,
        typer.Option(
            help="pad: ranks up to the quantum, with zeros. truncate: down to it, losing the least. "
            "merge: factors back into one node. balance: factors to one scale, before FP16."
        ),
    ] = "pad",
    quantum: Annotated[
        int | None, typer.Option(min=1, help="With pad and truncate: ranks become multiples of this. [16]")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(min=0.0, help="With truncate: fail where outputs move by more (relative L2).")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file of real inputs to compare outputs on. [random]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make every rank one the hardware likes, in any ONNX file; outputs before and after are compared."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.engines.inputs import random_batches, stored_batches
    from lrd_deploy.pipeline.rewriting import OutputsMayMove, OutputsStay, rewrite_model
    from lrd_deploy.report.terminal import rewrite_table

    given = {name: value for name, value in (("quantum", quantum), ("max_error", max_error)) if value is not None}
    _check_options(mode, given)
    sizes = (1, 2, 7)
    batches = stored_batches(inputs, sizes) if inputs else random_batches(model, sizes)
    allowed = OutputsMayMove(max_error) if mode == "truncate" else OutputsStay()
    report = rewrite_model(model, [_rule(mode, quantum or 16)], output, batches, allowed).report
    show(report, rewrite_table(report), as_json=as_json)


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


def _check_options(mode: str, given: Mapping[str, object]) -> None:
    from lrd_deploy.errors import UsageError

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
