"""A gate: outputs and form are compared first, then launches are taken until the policy can decide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.compare import LaunchLength, fresh_launches
from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import LaunchSamples
from lrd_deploy.engines.inputs import allowed_batches, repeated
from lrd_deploy.engines.verify import check_same_inputs
from lrd_deploy.export.onnx_file import default_opset, graph_inputs, read_model
from lrd_deploy.files import locked_folder
from lrd_deploy.gate.baseline import timestamp
from lrd_deploy.gate.notebook import Notebook
from lrd_deploy.gate.outputs import compare_answers
from lrd_deploy.gate.parity import compare_form
from lrd_deploy.gate.reference import Reference, artefact_of
from lrd_deploy.gate.sequence import gather
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.precision.mark import precision_differences
from lrd_deploy.records import Against, CaseEvidence, GateEvidence, GatePolicy, GateResult, Record

LENGTH = LaunchLength(rounds=40, arm_seconds=0.4, solo_seconds=0.0)

Inputs = Mapping[str, NDArray[np.generic]]
Launches = Callable[[Path, Path, Inputs, int, LaunchLength, Observer], Generator[LaunchSamples]]


class GateSettings(Record):
    """What a gate measures. `quantum`: what the candidate's ranks must be multiples of; None: any will do."""

    batches: tuple[int, ...] = (8,)
    threads: int = 1
    quantum: int | None = None


def gate(
    references: Mapping[Against, Reference],
    candidate: Path,
    settings: GateSettings,
    policy: GatePolicy,
    folder: Path,
    observer: Observer | None = None,
    launches: Launches = fresh_launches,
) -> GateResult:
    """Compares a candidate with its references and returns the verdict, which is also in `folder`.

    Args:
        references: the baseline, and an anchor if wanted; none where there is no baseline yet.
        candidate: an ONNX file with the baseline's inputs.
        settings: batches and threads, as deployed.
        policy: how it is judged.
        folder: is made; gets `gate.json` and the raw `samples.jsonl`.
        observer: hears of every launch.
        launches: where launches come from; fresh processes on this machine.

    Raises:
        InputError: a model is invalid, or takes other inputs.
        BackendError: a worker failed; finished launches are kept in `folder`.
        StorageError: the folder cannot be written.
        UsageError: another gate is using the folder.
    """
    observer = observer or SilentObserver()
    model = read_model(candidate)
    for reference in references.values():
        check_same_inputs(read_model(reference.model), model)
    with locked_folder(folder, holder="gate"):
        notebook = Notebook(_evidence(references, candidate, settings), policy, folder, observer)
        result = notebook.store()
        if result.decided_by != "latency":
            return result
        with contextlib.ExitStack() as running:
            sources = {}
            for case in notebook.evidence.cases:
                reference = references[case.against]
                inputs = {name: repeated(array, case.batch) for name, array in reference.samples.inputs.items()}
                found = launches(reference.model, candidate, inputs, case.threads, LENGTH, observer)
                sources[case.name] = notebook.ratios(case.name, running.enter_context(contextlib.closing(found)))
            gather(notebook.evidence.cases, sources, policy, notebook.keep)
        return notebook.store()


def _evidence(references: Mapping[Against, Reference], candidate: Path, settings: GateSettings) -> GateEvidence:
    """All but the launches."""
    baseline, anchor = references.get("baseline"), references.get("anchor")
    return GateEvidence(
        measured_at=timestamp(),
        baseline=baseline and baseline.artefact,
        candidate=artefact_of(candidate),
        anchor=anchor and anchor.artefact,
        outputs=baseline and compare_answers(baseline, candidate),
        anchor_outputs=anchor and compare_answers(anchor, candidate),
        parity=baseline and compare_form(baseline.model, candidate, settings.quantum),
        cases=_cases(references, settings),
        warnings=tuple(_warnings(references, candidate)),
        environment=environment(),
    )


def _cases(references: Mapping[Against, Reference], settings: GateSettings) -> tuple[CaseEvidence, ...]:
    cases = []
    for against, reference in references.items():
        inputs = graph_inputs(read_model(reference.model))
        for batch in dict.fromkeys(allowed_batches(inputs, settings.batches)):
            name = f"batch {batch}" + (" against the anchor" if against == "anchor" else "")
            cases.append(CaseEvidence(name=name, batch=batch, threads=settings.threads, against=against))
    return tuple(cases)


def _warnings(references: Mapping[Against, Reference], candidate: Path) -> Iterator[str]:
    model = read_model(candidate)
    opset = default_opset(model)
    for against, reference in references.items():
        yield from reference.notes
        other = read_model(reference.model)
        yield from precision_differences((other, model), (against, "candidate"))
        theirs = default_opset(other)
        if theirs != opset:
            yield f"the {against} is of opset {theirs}, the candidate of {opset}: they may be optimised differently"
