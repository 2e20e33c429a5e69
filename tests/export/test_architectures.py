"""The models people have: decomposed, exported, found again in the file, rewritten; always the same outputs."""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, OPTIONAL
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.difference import compare_outputs, rounding_tolerance
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.export.onnx_layers import survey_onnx
from lrd_deploy.export.torch_export import export_onnx
from lrd_deploy.models.example import call, named_outputs
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import UniformRank
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.pad_rank import PadRank

SIZES = ((1, 5), (3, 9))  # batch, and length where there are tokens
SLOW = {"SegFormer", "DETR", "MobileNetV2", "EfficientNet", "Swin"}  # a graph of hundreds of nodes takes seconds


def parameters():
    for name, architecture in ARCHITECTURES.items():
        yield pytest.param(architecture, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, (package, architecture) in OPTIONAL.items():
        missing = pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
        yield pytest.param(architecture, id=name, marks=missing)


class Case:
    """A low-rank model and its file."""

    def __init__(self, architecture, folder):
        self.architecture, self.path = architecture, folder / "lowrank.onnx"
        example = architecture.inputs(2, 6)
        self.module = architecture.build()
        self.plan = plan_ranks(survey(self.module, example), UniformRank(alpha=2))
        decompose_(self.module, self.plan)
        self.record = export_onnx(self.module, example, self.path, opset=20)
        self.model = read_model(self.path)
        self.batches = [
            {name: tensor.numpy() for name, tensor in architecture.inputs(batch, length).items()}
            for batch, length in SIZES
        ]

    @torch.no_grad()
    def in_torch(self, inputs):
        example = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outputs = named_outputs(call(self.module, example), example)
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def in_file(self, path):
        return runtime("onnxruntime").load(path, SessionSettings()).run


@pytest.fixture(scope="module", params=parameters())
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("architecture"))


def test_the_file_computes_what_the_module_does_at_other_batches_and_lengths(case):
    tolerance = rounding_tolerance(case.model)
    difference = compare_outputs(case.in_torch, case.in_file(case.path), case.batches, tolerance)
    assert difference.passed, difference


def test_inputs_and_outputs_keep_their_names_and_their_open_dimensions(case):
    example = case.architecture.inputs(2, 6)
    assert [value.name for value in case.record.inputs] == list(example)
    assert [value.name for value in case.record.outputs] == list(case.in_torch(case.batches[0]))
    for value in case.record.inputs:
        fixed = tuple(example[value.name].shape)
        open_dimensions = ("batch", "sequence") if case.architecture.has_tokens else ("batch",)
        assert value.shape == (*open_dimensions, *fixed[len(open_dimensions) :])
    assert all(value.shape[0] == "batch" for value in case.record.outputs)


def test_every_layer_is_factorised_or_says_why_not(case):
    assert case.plan.factorised
    assert all(layer.reason for layer in case.plan.layers)


def test_every_factor_is_in_the_file_under_its_module_name(case):
    nodes = {node.name: node.op_type for node in case.model.graph.node}
    for layer in case.plan.factorised:
        factors = case.module.get_submodule(layer.name).groups
        for factor in factors:
            assert nodes[f"{layer.name}.{factor}"] in {"Conv", "Gemm", "MatMul"}
        joined = {(entry.module, entry.factor) for entry in case.record.origins}
        assert {(layer.name, factor) for factor in factors} <= joined
    assert len(nodes) == len(case.model.graph.node)


def test_every_chain_is_found_under_its_layer_and_padded_or_refused_with_a_reason(case, tmp_path):
    marked = onnx.ModelProto()
    marked.CopyFrom(case.model)
    for node in marked.graph.node:
        node.metadata_props.add(key="mark", value=node.name)
    padded, applied, skipped = apply_rules(marked, [PadRank(16)])
    assert {entry.node for entry in (*applied, *skipped)} == {layer.name for layer in case.plan.factorised}
    assert applied
    assert all(entry.reason for entry in skipped)
    marks = {
        node.name: [entry.value for entry in node.metadata_props if entry.key == "mark"] for node in padded.graph.node
    }
    assert marks == {name: [name] for name in marks}  # every node has its own metadata still

    write_model(padded, tmp_path / "padded.onnx")
    tolerance = rounding_tolerance(case.model)
    before, after = case.in_file(case.path), case.in_file(tmp_path / "padded.onnx")
    assert compare_outputs(before, after, case.batches, tolerance).passed

    again, applied_again, _ = apply_rules(padded, [PadRank(16)])
    assert applied_again == ()
    assert again is padded


def test_the_inputs_settle_the_size_of_every_layer(case):
    shapes = {name: array.shape for name, array in case.batches[1].items()}
    layers = survey_onnx(case.model, shapes=shapes)
    assert all(layer.signature for layer in layers if layer.refusal is None)
    unknown = [layer for layer in layers if "input is not" in (layer.refusal or "")]
    assert unknown == []


def test_a_decomposed_model_is_not_the_dense_one(case):
    dense, lowrank = case.architecture.build(), case.in_torch(case.batches[0])
    example = {name: torch.from_numpy(array) for name, array in case.batches[0].items()}
    with torch.no_grad():
        outputs = named_outputs(call(dense, example), example)
    assert any(not np.allclose(outputs[name].numpy(), lowrank[name]) for name in lowrank)
