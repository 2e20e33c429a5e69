"""Applying rules to an ONNX file: every match is rewritten or refused with a reason, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.files import sha256_of
from lrd_deploy.records import Applied, RewriteReport, Skipped
from lrd_deploy.rewrite.rule import Rule


def rewrite_file(source: Path, rules: Sequence[Rule], target: Path) -> RewriteReport:
    """Applies `rules` in order to the model in `source` and writes the result to `target`.

    Raises:
        InputError: the model is invalid.
        StorageError: a file cannot be read or written.
    """
    model, applied, skipped = apply_rules(read_model(source), rules)
    write_model(model, target)
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
    graph = gs.import_onnx(model)
    applied: list[Applied] = []
    skipped: list[Skipped] = []
    for rule in rules:
        for chain in rule.match(graph):
            name = chain.name
            reason = rule.check(graph, chain)
            if reason:
                skipped.append(Skipped(rule=rule.name, node=name, reason=reason))
            else:
                applied.append(Applied(rule=rule.name, node=name, change=rule.rewrite(chain)))
    return (_exported(graph, model) if applied else model), tuple(applied), tuple(skipped)


def _exported(graph: gs.Graph, before: ModelProto) -> ModelProto:
    """The graph as a model again, with what graphsurgeon drops put back and shapes inferred anew."""
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    after = gs.export_onnx(graph)
    after.ir_version = before.ir_version
    _copy_metadata(before, after)
    return onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)


def _copy_metadata(before: ModelProto, after: ModelProto) -> None:
    """Carries over metadata and doc strings of the model, the graph, and every node that kept its name."""
    _copy_properties(before, after)
    _copy_properties(before.graph, after.graph)
    after.doc_string, after.graph.doc_string = before.doc_string, before.graph.doc_string
    nodes = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        if node.name in nodes:
            _copy_properties(nodes[node.name], node)
            node.doc_string = nodes[node.name].doc_string


def _copy_properties(before: object, after: object) -> None:
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
