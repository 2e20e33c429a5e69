"""Bringing every rank of an ONNX file to what is fastest on the deployment backend: keep, pad, truncate or merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import answers, compare_outputs, outputs_moved, rounding_tolerance
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.files import sha256_of, write_with_companions
from lrd_deploy.pipeline.chain_decisions import decide
from lrd_deploy.ranks.source import LatencySource
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import (
    Applied,
    ChainDecision,
    RankEnforcement,
    RewriteReport,
    RewrittenModel,
    Skipped,
)
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.truncate_rank import TruncateRank

QUANTA = (8, 16, 32, 64)
GRANTED = "lrd_deploy.truncated_within"  # the key of a model's metadata: the error that its truncations were allowed
ChainRule = PadRank | TruncateRank | MergeFactors
_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0)  # of the allowed error, tried until the outputs are within it


@dataclass(frozen=True)
class Goal:
    """What ranks may become.

    Attributes:
        quanta: multiples of these are candidates.
        max_error: largest relative L2 difference of the outputs that truncations may cause; None allows none.
        only: names of the factor chains that may change; None: all.
    """

    quanta: tuple[int, ...] = QUANTA
    max_error: float | None = None
    only: frozenset[str] | None = None


def enforce_ranks(
    source: Path,
    target: Path,
    batches: Sequence[Arrays],
    goal: Goal,
    latency: LatencySource,
    bench: Bench,
) -> RewrittenModel:
    """Rewrites every factor chain of an ONNX file into its fastest form, and compares outputs before and after.

    The file is looked at again until nothing changes, so that rewriting the result changes nothing. A file that was
    truncated within some error is not truncated further within the same; the model's metadata say so.

    Args:
        source: an ONNX file.
        target: gets the result, whole or not at all; may be the source.
        batches: inputs by name, to compare outputs on.
        goal: what ranks may become.
        latency: times the chains.
        bench: the deployment that it times for; for the report.

    Raises:
        InputError: the model is invalid, or a table lacks its layers.
        BackendError: ONNX Runtime refuses it, or outputs moved by more than rounding without a truncation.
        StorageError: a file cannot be read or written.
    """
    model, backend = read_model(source), runtime("onnxruntime")
    before, tolerance = answers(backend.load(source, SessionSettings()).run, batches), rounding_tolerance(model)
    done: list[RewrittenModel] = []

    def rewrite_and_compare(temporary: Path) -> None:
        room = _room(model, goal.max_error)
        for allowed in _predicted_errors(room):
            found = _enforced(model, goal, allowed, latency)
            write_model(found.model, temporary)
            after = backend.load(temporary, SessionSettings()).run
            difference = compare_outputs(before, after, batches, tolerance)
            if difference.passed or (allowed and difference.relative_l2 <= room):
                break
        else:
            raise outputs_moved(f"rewriting '{source}'", difference)
        report = RewriteReport(
            path=Path(target.name),
            sha256=sha256_of(temporary),
            modified=bool(found.applied),
            applied=found.applied,
            skipped=found.skipped,
            max_abs_difference=difference.max_abs,
            relative_l2_difference=difference.relative_l2,
            enforced=_record(found, goal, latency, bench, _about_errors(goal, room, allowed)),
        )
        done.append(RewrittenModel(report=report, difference=difference))

    write_with_companions(target, rewrite_and_compare)
    return done[0]


@dataclass(frozen=True)
class _Enforced:
    """A model, and what was decided on the way to it."""

    model: ModelProto
    applied: tuple[Applied, ...]
    decisions: tuple[ChainDecision, ...]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The chains that stayed as they were, and why."""
        changed = {decision.chain for decision in self.decisions if decision.action != "keep"}
        kept = [one for one in self.decisions if one.action == "keep" and one.chain not in changed]
        return tuple(Skipped(rule="enforce_ranks", node=one.chain, reason=one.reason) for one in kept)


def _room(model: ModelProto, max_error: float | None) -> float:
    """How far outputs may move by truncations now; 0 where none is allowed, or earlier ones have used it up."""
    granted = granted_error(model)
    return 0.0 if max_error is None or max_error <= granted else (max_error**2 - granted**2) ** 0.5


def _predicted_errors(room: float) -> Iterator[float]:
    """The errors to predict truncations within, largest first."""
    yield from (room * share for share in _SHARES) if room else (0.0,)


def _about_errors(goal: Goal, room: float, allowed: float) -> tuple[str, ...]:
    """Why less was truncated than a reader of the options expects."""
    if goal.max_error is not None and not room:
        return (f"nothing was truncated: an earlier call has used up the error of {goal.max_error:g}",)
    if allowed < room * max(_SHARES):
        return (f"truncations were predicted within {allowed:.2g}: with more, outputs moved by more than {room:.2g}",)
    return ()


def granted_error(model: ModelProto) -> float:
    """Returns the error that earlier truncations of this model were allowed; 0 where there were none.

    Raises:
        InputError: the model's metadata hold something else under that key.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == GRANTED), "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(
            f"reading the metadata of the graph '{model.graph.name}'",
            found=f"{GRANTED} = {text!r}",
            accepted="a number from 0 on",
            remedy="remove that entry from the model's metadata_props",
        )
    return value


def _enforced(model: ModelProto, goal: Goal, allowed: float, latency: LatencySource) -> _Enforced:
    """Decides and rewrites until nothing changes: a merged layer may be a factor of its neighbour."""
    applied: tuple[Applied, ...] = ()
    decisions: tuple[ChainDecision, ...] = ()
    budget, truncated = allowed**2, False
    while True:
        decided = decide(model, goal.quanta, budget, latency, goal.only)
        changes = [one for one in decided if one.rule is not None]
        decisions += tuple(one.decision for one in (changes if decisions else decided))
        if not changes:
            break
        merges_last = sorted(changes, key=lambda one: one.decision.action == "merge")  # they may rename neighbours
        model, done, _ = apply_rules(model, _joined([one.rule for one in merges_last]))
        if not done:
            break
        applied += done
        budget -= sum(one.loss for one in changes)
        truncated |= any(one.decision.action == "truncate" for one in changes)
    if truncated:
        _grant_(model, goal.max_error)
    return _Enforced(model, applied, decisions)


def _joined(rules: Sequence[ChainRule]) -> list[ChainRule]:
    """One rule for all chains that the same is done to, as each rule looks for the chains in the whole graph."""
    chains: dict[ChainRule, frozenset[str]] = {}
    for rule in rules:
        everywhere = replace(rule, only=None)
        chains[everywhere] = chains.get(everywhere, frozenset()) | rule.only
    return [replace(rule, only=names) for rule, names in chains.items()]


def _grant_(model: ModelProto, error: float) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != GRANTED]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=GRANTED, value=repr(error))


def _record(
    found: _Enforced, goal: Goal, latency: LatencySource, bench: Bench, notes: tuple[str, ...]
) -> RankEnforcement:
    return RankEnforcement(
        backend="onnxruntime",
        batch=bench.batch,
        threads=bench.threads,
        measured_on=latency.environment,
        max_error=goal.max_error,
        decisions=found.decisions,
        notes=(*getattr(latency, "notes", ()), *notes),
    )
