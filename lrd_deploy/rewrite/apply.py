"""Applying rules to an ONNX file: every match is rewritten or refused with a reason, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.export.skeleton import infer_shapes_
from lrd_deploy.files import sha256_of
from lrd_deploy.ranks.forms import FactorName
from lrd_deploy.records import Applied, RewriteReport, Skipped
from lrd_deploy.rewrite.held_weights import HeldWeights
from lrd_deploy.rewrite.imported_graph import import_graph, restore_attributes_
from lrd_deploy.rewrite.node_order import in_data_flow_order
from lrd_deploy.rewrite.rule import Rule


def rewrite_file(source: Path, rules: Sequence[Rule], target: Path) -> RewriteReport:
    """Applies `rules` in order to the model in `source` and writes the result to `target`.

    Raises:
        InputError: the model is invalid.
        StorageError: a file cannot be read or written.
    """
    model, applied, skipped = apply_rules(read_model(source), rules)
    write_model(model, target)
    del model  # its weights are on disk by now
    return RewriteReport(
        path=Path(target.name),
        sha256=sha256_of(target),
        modified=bool(applied),
        applied=applied,
        skipped=skipped,
    )


def apply_rules(
    model: ModelProto, rules: Sequence[Rule]
) -> tuple[ModelProto, tuple[Applied, ...], tuple[Skipped, ...]]:
    """Returns the new model, what was done and what was not; a model that no rule changes comes back as it was."""
    imported = _Imported.of(model)
    with _quiet_graphsurgeon():
        applied, skipped = _apply_(imported.graph, rules)
        return (imported.exported(model) if applied else model), applied, skipped


def graph_of(model: ModelProto) -> gs.Graph:
    """Returns the graph as rules get to see it, every node with a name of its own; to look at, not to change."""
    return _Imported.of(model).graph


def with_unique_names(model: ModelProto) -> ModelProto:
    """Returns a copy in which every node has a name of its own; those that were unique stay."""
    named = ModelProto()
    named.CopyFrom(model)
    _name_nodes_(named.graph)
    return named


@contextmanager
def _quiet_graphsurgeon() -> Iterator[None]:
    """Keeps graphsurgeon from printing to stdout; what it would warn about is checked here and raised."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = before


def _apply_(graph: gs.Graph, rules: Sequence[Rule]) -> tuple[tuple[Applied, ...], tuple[Skipped, ...]]:
    applied: list[Applied] = []
    skipped: list[Skipped] = []
    for rule in rules:
        for match in rule.match(graph):
            name = match.name
            reason = rule.check(graph, match)
            if reason:
                skipped.append(Skipped(rule=rule.name, node=name, reason=reason))
            else:
                change = rule.rewrite(match)
                applied.append(
                    Applied(rule=rule.name, node=name, change=change.text, relative_error=change.relative_error)
                )
    return tuple(applied), tuple(skipped)


def _refuse_overridable_initializers(model: ModelProto) -> None:
    """graphsurgeon would bake such a weight in, and what a caller feeds for it would be ignored."""
    inputs = {value.name for value in model.graph.input}
    overridable = [tensor.name for tensor in model.graph.initializer if tensor.name in inputs]
    if overridable:
        raise InputError(
            f"rewriting the graph '{model.graph.name}'",
            found=f"initializers that are graph inputs too, such as '{overridable[0]}'",
            accepted="weights that a caller cannot override",
            remedy="export with keep_initializers_as_inputs=False, or take them out of the graph's inputs",
        )


def _name_nodes_(graph: GraphProto) -> None:
    """Gives every node a name of its own: rules name new weights after their node, and equal names would merge them."""
    taken = {node.name for node in graph.node}
    seen = {""}
    for position, node in enumerate(graph.node):
        if node.name in seen:
            node.name = next(
                name
                for count in range(len(taken) + 1)
                if (name := f"{node.name or node.op_type}_{position}{'_' * count}") not in taken
            )
            taken.add(node.name)
        seen.add(node.name)


@dataclass(frozen=True)
class _Imported:
    """A model as a graph of graphsurgeon's.

    Attributes:
        graph: every node with a name of its own.
        named: the model that it was imported from, without its weights and functions.
        weights: which the graph reads.
    """

    graph: gs.Graph
    named: ModelProto
    weights: HeldWeights

    @classmethod
    def of(cls, model: ModelProto) -> _Imported:
        """Imports a model, which stays as it is."""
        _refuse_overridable_initializers(model)
        weights = HeldWeights()
        named = weights.taken_out(model)
        _name_nodes_(named.graph)
        with _quiet_graphsurgeon():
            graph = import_graph(named)
        weights.lend_(graph)
        return cls(graph, named, weights)

    def exported(self, model: ModelProto) -> ModelProto:
        """Returns the graph as a model again, with what graphsurgeon drops put back and shapes inferred anew.

        Raises:
            InputError: tensors that share a name, or types or shapes that contradict each other.
        """
        self.graph.cleanup(remove_unused_graph_inputs=False)
        self.graph.nodes = in_data_flow_order(self.graph)
        _check_names(self.graph)
        self.weights.take_new_(self.graph)
        after = gs.export_onnx(self.graph)
        after.ir_version = self.named.ir_version
        after.functions.extend(model.functions)
        _name_nodes_(after.graph)
        restore_attributes_(self.named.graph, after.graph)
        copy_metadata(self.named, after)
        self.weights.put_back_(after)
        infer_shapes_(after)
        return after


def _check_names(graph: gs.Graph) -> None:
    """Two tensors of one name would silently become one."""
    try:
        graph.tensors(check_duplicates=True)
    except OnnxGraphSurgeonException as exc:
        raise InputError(
            f"rewriting the graph '{graph.name}'",
            found=" ".join(str(exc).split())[:300],
            accepted="tensor names that are unique",
            remedy="rename one of the tensors that it lists",
        ) from exc


def copy_metadata(before: ModelProto, after: ModelProto) -> None:
    """Carries over metadata and doc strings of the model, the graph and every node; factors and layers share theirs."""
    for field in ("model_version", "domain"):
        if getattr(before, field):
            setattr(after, field, getattr(before, field))
    _copy_properties(before, after)
    _copy_properties(before.graph, after.graph)
    after.doc_string, after.graph.doc_string = before.doc_string, before.graph.doc_string
    nodes = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        source = next((nodes[name] for name in _earlier_names(node.name) if name in nodes), None)
        if source is not None:
            _copy_properties(source, node)
            node.doc_string = source.doc_string


def _earlier_names(name: str) -> Iterator[str]:
    """What a node may have been before the rules: itself, the layer that it is a factor of, or the first of factors."""
    yield name
    layer, _, factor = name.rpartition(".")
    if factor in get_args(FactorName):
        yield layer
    yield from (f"{name}.down", f"{name}.first", name.partition(" + ")[0])


def _copy_properties(before: object, after: object) -> None:
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
