"""A recipe whose model takes token ids and a mask: trained, decomposed, exported, measured, packaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.difference import compare_outputs, rounding_tolerance
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline import run
from lrd_deploy.pipeline.packaging import PackageRequest, package_run
from lrd_deploy.pipeline.training_stages import build_model
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.recipe import load_recipe

BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "num_labels": 2,
}


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    shutil.copy(Path(__file__).with_name("texts.py"), tmp_path / "texts_of_a_recipe.py")
    return tiny_recipe(
        model={"transformers": BERT},
        data={"python": "texts_of_a_recipe:make_loaders"},
        calibration={"samples": 48},
        ranks={"policy": "uniform", "alpha": 3},  # off the quantum
    )


def go(path, folder, until):
    return run(load_recipe(str(path)), folder, recipe_folder=path.parent, until=until)


def test_token_ids_and_their_mask_are_the_inputs_of_the_file(recipe, tmp_path):
    result = go(recipe, tmp_path / "run", "rewrite")
    assert result.rewritten.report.applied
    assert not result.exported.bare_tensor
    path = tmp_path / "run" / "lowrank.onnx"
    inputs = graph_inputs(read_model(path))
    assert [(tensor.name, tensor.shape) for tensor in inputs] == [
        ("input_ids", ("batch", "sequence")),
        ("attention_mask", ("batch", "sequence")),
    ]
    work = Workspace(load_recipe(str(recipe)), recipe.parent, tmp_path / "run", SilentObserver())
    module = build_model(work, result.lowrank.weights, result.plan).eval()

    @torch.no_grad()
    def in_torch(batch):
        return {"logits": module(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()}

    random = np.random.default_rng(0)
    batches = [
        {"input_ids": random.integers(20, size=(3, length)), "attention_mask": np.ones((3, length), np.int64)}
        for length in (4, 17)
    ]
    session = runtime("onnxruntime").load(path, SessionSettings())
    assert compare_outputs(in_torch, session.run, batches, rounding_tolerance(read_model(path))).passed


@pytest.mark.slow
def test_a_whole_run_ends_in_a_package(recipe, tmp_path):
    result = go(recipe, tmp_path / "run", "report")
    assert set(result.built.engines) >= {"onnxruntime dense", "onnxruntime lowrank"}
    assert result.built.refused == {}
    assert result.comparison.speedup.launches == 4
    packaged = package_run(tmp_path / "run", PackageRequest(repository=tmp_path / "models"))
    assert packaged.models
