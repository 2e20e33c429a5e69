"""Rewriting a file and proving that its outputs stayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import compare_outputs, outputs_moved, rounding_tolerance
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.files import write_whole
from lrd_deploy.records import RewrittenModel
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.rule import Rule


def rewrite_model(source: Path, rules: Sequence[Rule], target: Path, batches: Sequence[Arrays]) -> RewrittenModel:
    """Applies rules to an ONNX file and compares outputs before and after on the given batches.

    Raises:
        InputError: the model is invalid.
        BackendError: ONNX Runtime refuses it, or the outputs moved further than rounding explains.
        StorageError: a file cannot be read or written.
    """
    backend = runtime("onnxruntime")
    before = backend.load(source, SessionSettings())
    tolerance = rounding_tolerance(read_model(source))
    done: list[RewrittenModel] = []

    def rewrite_and_compare(temporary: Path) -> None:
        report = rewrite_file(source, rules, temporary)
        difference = compare_outputs(before.run, backend.load(temporary, SessionSettings()).run, batches, tolerance)
        if not difference.passed:
            raise outputs_moved(f"rewriting '{source}'", difference)
        whole = report.model_copy(update={"path": Path(target.name), "max_abs_difference": difference.max_abs})
        done.append(RewrittenModel(report=whole, difference=difference))

    write_whole(target, rewrite_and_compare)  # the target may be the source, and stays as it was if anything fails
    return done[0]
