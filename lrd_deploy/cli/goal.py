"""What ranks of an ONNX file are chosen for, as `plan` and `compress` take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrd_deploy.recipe import LatencyRank

QuantumOption = Annotated[
    int | None, typer.Option(min=1, help="With an ONNX file: ranks become multiples of this. [found by timing]")
]
BatchOption = Annotated[
    int | None, typer.Option(min=1, help="With an ONNX file: the deployed batch. [8, or what the model fixes]")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="With an ONNX file: the deployed threads. [1]")]


def latency_goal(
    model: Path, *, target_speedup: float | None, max_error: float | None, quantum: int | None
) -> LatencyRank:
    """Returns the policy that was asked for; twice the speed where neither a speedup nor an error was.

    Raises:
        UsageError: what was asked for makes no sense.
    """
    from pydantic import ValidationError

    from lrd_deploy.errors import UsageError
    from lrd_deploy.recipe import LatencyRank

    asked = {"target_speedup": target_speedup, "max_error": max_error, "quantum": quantum}
    given = {name: value for name, value in asked.items() if value is not None}
    default = {} if given.keys() & {"target_speedup", "max_error"} else {"target_speedup": 2.0}
    try:
        return LatencyRank(**default, **given)
    except ValidationError as exc:
        raise UsageError(
            f"choosing ranks for '{model}'",
            found=", ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in given.items()),
            accepted=exc.errors()[0]["msg"],
            remedy="correct the options",
        ) from exc
