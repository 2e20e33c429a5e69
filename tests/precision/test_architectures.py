"""ResNet and ViT, dense and low-rank, in every precision: ONNX Runtime runs them, TensorRT-RTX compiles them."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch

from benchmarks.architectures import ARCHITECTURES
from lrd_deploy import UniformRank, decompose_, export_onnx, plan_ranks, survey
from lrd_deploy.engines import BuildSettings, SessionSettings, builder, runtime
from lrd_deploy.errors import BackendError
from lrd_deploy.models.source import load_model
from lrd_deploy.pipeline.converting import convert_model
from lrd_deploy.pipeline.onnx_samples import samples_of
from lrd_deploy.pipeline.precision_evidence import evidence_for
from lrd_deploy.recipe.settings import TransformersConfig
from lrd_deploy.records import DimensionRange, PrecisionPolicy

CONFIGS = {
    "resnet": {
        "model_type": "resnet",
        "num_channels": 1,
        "num_labels": 10,
        "embedding_size": 16,
        "layer_type": "bottleneck",
        "hidden_sizes": [32, 64],
        "depths": [1, 2],
    },
    "vit": {
        "model_type": "vit",
        "num_channels": 1,
        "num_labels": 10,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    },
}
POLICIES = {
    "fp16": PrecisionPolicy(precision="fp16"),
    "bf16": PrecisionPolicy(precision="bf16"),
    "int8": PrecisionPolicy(precision="int8", method="entropy", activation_type="int8"),
    "int8 for ONNX Runtime": PrecisionPolicy(precision="int8", method="entropy", activation_type="uint8"),
}


@pytest.fixture(scope="module", params=[f"{arm} {name}" for name in CONFIGS for arm in ("dense", "low-rank")])
def exported(request, tmp_path_factory):
    """An exported model, and samples beside it."""
    arm, _, name = request.param.partition(" ")
    torch.manual_seed(0)
    module = load_model(TransformersConfig(transformers=CONFIGS[name])).module.eval()
    example = torch.randn(2, 1, 32, 32)
    if arm == "low-rank":
        decompose_(module, plan_ranks(survey(module, example[:1]), UniformRank(alpha=2, round_to=8)))
    folder = tmp_path_factory.mktemp("models")
    export_onnx(module, example, folder / "model.onnx", opset=20)
    images = np.random.default_rng(0).standard_normal((32, 1, 32, 32)).astype(np.float32)
    np.savez(folder / "x.npz", images=images)
    return folder / "model.onnx"


def converted(model, policy, target):
    samples = samples_of(model, model.with_name("x.npz"))
    return convert_model(model, target, policy, evidence_for(model, policy, samples, None))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_weight_is_converted_and_the_outputs_stay_within_what_rounding_explains(exported, policy, tmp_path):
    report = converted(exported, policy, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    assert (report.share.weights, report.share.macs) == (1.0, 1.0)
    if policy.precision != "bf16":
        assert report.difference.passed
        assert report.difference.relative_l2 > 0


def test_onnx_runtime_has_no_bf16_convolution_on_cpus_and_says_so(exported, tmp_path):
    converted(exported, POLICIES["bf16"], tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"Could not find an implementation for Conv\(22\)"):
        runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings())


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="the rtx extra is not installed")
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_tensorrt_rtx_compiles_it(exported, name, tmp_path):
    converted(exported, POLICIES[name], tmp_path / "m.onnx")
    artifact = builder("tensorrt-rtx").build(tmp_path / "m.onnx", tmp_path / "m.engine", BuildSettings(max_batch=8))
    assert artifact.size_bytes == (tmp_path / "m.engine").stat().st_size > 1000


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="the rtx extra is not installed")
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_tensorrt_rtx_compiles_masked_attention_of_any_length(name, tmp_path):
    architecture = ARCHITECTURES["DistilBERT"]
    export_onnx(architecture.build(), architecture.inputs(2, 6), tmp_path / "model.onnx", opset=20)
    np.savez(tmp_path / "x.npz", **{key: tensor.numpy() for key, tensor in architecture.inputs(32, 6).items()})
    converted(tmp_path / "model.onnx", POLICIES[name], tmp_path / "m.onnx")
    settings = BuildSettings(max_batch=8, dimensions={"sequence": DimensionRange(min=1, opt=8, max=32)})
    artifact = builder("tensorrt-rtx").build(tmp_path / "m.onnx", tmp_path / "m.engine", settings)
    assert artifact.size_bytes > 1000
