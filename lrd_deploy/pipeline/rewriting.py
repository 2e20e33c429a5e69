"""Rewriting a file and proving that its outputs stayed, or showing how far they moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import answers, compare_outputs, outputs_moved, rounding_tolerance
from lrd_deploy.errors import UsageError
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.files import write_with_companions
from lrd_deploy.records import OutputDifference, RewrittenModel
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.rule import Rule


@dataclass(frozen=True)
class OutputsStay:
    """The rules are exact: a difference that rounding does not explain is a fault."""

    def check(self, doing: str, difference: OutputDifference) -> None:
        """Raises `BackendError` where the outputs moved further than rounding explains."""
        if not difference.passed:
            raise outputs_moved(doing, difference)


@dataclass(frozen=True)
class OutputsMayMove:
    """The rules lose something on purpose: at most a relative L2 difference of `max_error`, or whatever it is."""

    max_error: float | None = None

    def check(self, doing: str, difference: OutputDifference) -> None:
        """Raises `UsageError` where the outputs moved further than the caller allows."""
        if self.max_error is not None and difference.relative_l2 > self.max_error:
            raise UsageError(
                doing,
                found=f"outputs that differ by {difference.relative_l2:.2g} (relative L2)",
                accepted=f"at most {self.max_error:g}, as --max-error says",
                remedy="allow more, choose a smaller quantum, or pad",
            )


def rewrite_model(
    source: Path,
    rules: Sequence[Rule],
    target: Path,
    batches: Sequence[Arrays],
    allowed: OutputsStay | OutputsMayMove | None = None,
) -> RewrittenModel:
    """Applies rules to an ONNX file and compares outputs before and after on the given batches.

    Args:
        source: an ONNX file.
        rules: applied in order.
        target: gets the result where it may have it, else stays as it was.
        batches: inputs by name.
        allowed: how far outputs may move; no further than rounding unless told otherwise.

    Raises:
        InputError: the model is invalid.
        BackendError: ONNX Runtime refuses it, or the outputs moved further than rounding explains.
        UsageError: the outputs moved further than is allowed.
        StorageError: a file cannot be read or written.
    """
    allowed = allowed or OutputsStay()
    tolerance = rounding_tolerance(read_model(source))  # which no engine gets to see before it is checked
    backend = runtime("onnxruntime")
    before = answers(backend.load(source, SessionSettings()).run, batches)
    done: list[RewrittenModel] = []

    def rewrite_and_compare(temporary: Path) -> None:
        report = rewrite_file(source, rules, temporary)
        difference = compare_outputs(before, backend.load(temporary, SessionSettings()).run, batches, tolerance)
        allowed.check(f"rewriting '{source}'", difference)
        measured = {"max_abs_difference": difference.max_abs, "relative_l2_difference": difference.relative_l2}
        whole = report.model_copy(update={"path": Path(target.name), **measured})
        done.append(RewrittenModel(report=whole, difference=difference))

    write_with_companions(target, rewrite_and_compare)  # the target may be the source, and stays if anything fails
    return done[0]
