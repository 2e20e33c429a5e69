"""`lrd-deploy convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.records import PrecisionReport

PrecisionOption = Annotated[Literal["fp16", "bf16", "int8"], typer.Option(help="What the graph computes in.")]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        help="An .npz file of real inputs by name: INT8 takes its ranges from them, FP16 finds on them what it does "
        "not hold; a quarter is held out to compare outputs on."
    ),
]
RangesOption = Annotated[Path | None, typer.Option(help="Ranges for INT8, from 'calibrate ranges'.")]
MethodOption = Annotated[
    Literal["minmax", "percentile", "entropy"] | None,
    typer.Option(help="How INT8 ranges are chosen from --calibration-data. [entropy]"),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Nodes that stay in float32, such as 'classifier*'; may be repeated."),
]
ActivationOption = Annotated[
    Literal["int8", "uint8"] | None,
    typer.Option(help="INT8 as TensorRT takes it, or UINT8, faster in ONNX Runtime on CPUs. [int8]"),
]


def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float32 ONNX file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    precision: PrecisionOption,
    calibration_data: CalibrationOption = None,
    ranges: RangesOption = None,
    method: MethodOption = None,
    keep: KeepOption = None,
    activation_type: ActivationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a graph to FP16, BF16 or INT8; its inputs and outputs stay as they are."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import placed_model, written_model
    from lrd_deploy.report.precision import precision_table

    asked = {"ranges": ranges, "method": method, "activation_type": activation_type}
    report = converted(model, output, precision, calibration_data, tuple(keep or ()), asked)
    wrote = written_model(output)
    report = placed_model(report, wrote)
    show(report, precision_table(report), as_json=as_json, wrote=[wrote])


def converted(
    model: Path,
    output: Path,
    precision: str,
    calibration_data: Path | None,
    keep: tuple[str, ...],
    int8: dict[str, Path | str | None],
) -> PrecisionReport:
    """Converts a file as options say; `int8` are those that only INT8 has.

    Raises:
        UsageError: options that do not go together.
    """
    from lrd_deploy.pipeline.converting import convert_model
    from lrd_deploy.pipeline.onnx_samples import samples_of
    from lrd_deploy.pipeline.precision_evidence import evidence_for
    from lrd_deploy.records import ActivationRanges, PrecisionPolicy

    _check_options(precision, calibration_data, int8)
    samples = samples_of(model, calibration_data) if calibration_data else None
    stored = ActivationRanges.read(int8["ranges"]) if int8["ranges"] else None
    chosen = int8["method"] or (stored.method if stored else "entropy")
    own = {"method": chosen, "activation_type": int8["activation_type"] or "int8"} if precision == "int8" else {}
    policy = PrecisionPolicy(precision=precision, keep=keep, **own)
    return convert_model(model, output, policy, evidence_for(model, policy, samples, stored))


def _check_options(precision: str, calibration_data: Path | None, int8: dict[str, Path | str | None]) -> None:
    from lrd_deploy.errors import UsageError

    given = [f"--{name.replace('_', '-')}" for name, value in int8.items() if value is not None]
    if precision != "int8" and given:
        raise UsageError(
            f"converting to {precision.upper()}",
            found=given[0],
            accepted=f"{precision.upper()} without it: it would do nothing",
            remedy=f"leave out {given[0]}, or choose --precision int8",
        )
    if {"--ranges", "--method"} <= set(given):
        raise UsageError(
            "converting to INT8",
            found="--ranges and --method",
            accepted="one of them: stored ranges have their method",
            remedy="leave out --method, or --ranges",
        )
    if precision == "int8" and int8["ranges"] is None and calibration_data is None:
        raise UsageError(
            "converting to INT8",
            found="neither --ranges nor --calibration-data",
            accepted="ranges by 'lrd-deploy calibrate ranges', or samples to measure them on",
            remedy="pass --ranges FILE, or --calibration-data X.npz",
        )
