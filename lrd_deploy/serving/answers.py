"""Does the packaged model answer as the trained one did? Asked in a fresh process, of the bundle alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.process import run_worker
from lrd_deploy.engines.difference import output_difference
from lrd_deploy.errors import BackendError, InputError
from lrd_deploy.files import storage_errors, write_bytes
from lrd_deploy.records import OutputDifference, Record
from lrd_deploy.serving.warmup import WARMUP_FOLDER

_WORKER = "lrd_deploy.serving.worker"
Answers = list[dict[str, NDArray[np.generic]]]  # by output name, one per batch


class AnswerPlan(Record):
    """What a worker does: answers the warm-up inputs of one version with its own model, or with another file."""

    bundle: Path
    number: int
    model: Path | None
    answers: Path


class Refusal(Record):
    """An error of the worker, in the four parts of ours."""

    doing: str
    found: str
    accepted: str
    remedy: str


class AnswersWritten(Record):
    """That a worker wrote its answers, or why it did not."""

    refusal: Refusal | None = None


def answers_in_new_process(bundle: Path, number: int, threads: int, model: Path | None = None) -> Answers:
    """Returns what a model answers to a bundle's warm-up inputs, run in a fresh process as config.pbtxt says.

    Args:
        bundle: the model's folder; all that the process reads, where `model` is None.
        number: of the version.
        threads: of the libraries in the process.
        model: an ONNX file to be asked instead of the version's own.

    Raises:
        BackendError: the process failed; its last words are quoted.
    """
    with TemporaryDirectory(prefix="lrd-deploy-") as scratch:
        plan = AnswerPlan(
            bundle=bundle.resolve(),
            number=number,
            model=None if model is None else model.resolve(),
            answers=Path(scratch, "answers.npz"),
        )
        try:
            refusal = run_worker(_WORKER, plan, AnswersWritten, threads=max(threads, 1)).refusal
        except BackendError as failure:  # the process died or hung
            raise BackendError(
                f"answering warm-up inputs with '{model or bundle}' in a fresh process",
                found=failure.found,
                accepted="a process that ends with its answers",
                remedy="check that the model fits into memory, and runs: 'lrd-deploy verify MODEL.onnx MODEL.onnx'",
            ) from failure
        if refusal:
            doing = f"asking '{model or bundle}' in a fresh process: {refusal.doing}"
            raise BackendError(doing, **refusal.model_dump(exclude={"doing"}))
        return read_answers(plan.answers)


def compare_answers(expected: Answers, got: Answers, *, tolerance: float, batches: Sequence[int]) -> OutputDifference:
    """Compares answers over all outputs and batches; a text counts 0 where it is as expected, and 1 elsewhere.

    Raises:
        InputError: outputs or shapes differ, or a number is NaN or infinite.
    """
    if not all(np.isfinite(array).all() for answer in expected for array in answer.values() if array.dtype.kind == "f"):
        raise InputError(
            "asking the trained model",
            found="NaN or infinity among its answers to the warm-up inputs",
            accepted="inputs to which it has finite answers",
            remedy="give an ONNX file such inputs with --inputs X.npz; train a model of a run again",
        )
    if [list(answer) for answer in expected] != [list(answer) for answer in got]:
        raise InputError(
            "comparing answers",
            found=f"the outputs {list(got[0])} where {list(expected[0])} were expected",
            accepted="the same outputs in the same order",
            remedy="package the model again",
        )
    pairs = [
        _as_numbers(wanted[name], answer[name]) for wanted, answer in zip(expected, got, strict=True) for name in wanted
    ]
    ours, theirs = zip(*pairs, strict=True)
    return output_difference(ours, theirs, tolerance=tolerance, batches=tuple(batches))


def write_answers(answers: Answers, path: Path) -> None:
    """Writes answers as an .npz file, whole or not at all; equal answers give equal bytes."""
    write_bytes(path, _npz(answers))


def store_answers(answers: Answers, folder: Path) -> str:
    """Writes expected answers to the warm-up folder under a model's folder; returns the file's name."""
    data = _npz(answers)
    name = f"answers-{hashlib.sha256(data).hexdigest()[:16]}.npz"
    write_bytes(folder / WARMUP_FOLDER / name, data)
    return name


def read_answers(path: Path) -> Answers:
    """Returns stored answers.

    Raises:
        StorageError: the file cannot be read.
        InputError: it holds no answers.
    """
    with storage_errors("reading", path):
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = [str(name) for name in stored["names"]]
                count = len(stored.files) - 1
                arrays = [stored[f"{number}"] for number in range(count)]
        except (ValueError, KeyError, EOFError, BadZipFile) as exc:
            raise InputError(
                f"reading the answers '{path}'",
                found=str(exc),
                accepted="a file that 'lrd-deploy package' wrote",
                remedy="package the model again",
            ) from exc
    return [dict(zip(names, arrays[at : at + len(names)], strict=True)) for at in range(0, count, len(names))]


def _npz(answers: Answers) -> bytes:
    arrays = [array for answer in answers for array in answer.values()]
    named = {str(number): array.astype(str) if array.dtype == object else array for number, array in enumerate(arrays)}
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(list(answers[0])), **named)  # names of outputs are data: never names of files
    return buffer.getvalue()


def _as_numbers(
    expected: NDArray[np.generic], got: NDArray[np.generic]
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    if expected.dtype.kind != "U" or got.dtype.kind != "U" or expected.shape != got.shape:
        return expected, got
    return np.zeros(expected.shape), (expected != got).astype(float)
