"""A finished run as served models: answers checked against PyTorch, engines checked by digest, other runs refused."""

import json
import shutil

import numpy as np
import onnx
import pytest
import yaml

from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.pipeline import run
from lrd_deploy.pipeline.packaging import PackageRequest, package_run
from lrd_deploy.pipeline.workspace import StoredRecipe
from lrd_deploy.recipe import load_recipe
from lrd_deploy.records import EngineArtifact, RunRecord
from lrd_deploy.serving.check import check_bundle
from lrd_deploy.serving.triton_config import read_config
from tests.conftest import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run(load_recipe(str(folder / "tiny.yaml")), folder / "run")
    return folder / "run"


@pytest.fixture
def run_folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def add_engine(folder, backend, content=b"a plan"):
    """Gives a run an engine of the low-rank arm, as the build stage on a machine with a GPU would."""
    (folder / "engines" / f"lowrank.{backend}").write_bytes(content)
    artifact = EngineArtifact(
        path=f"engines/lowrank.{backend}",
        sha256=sha256_of(folder / "engines" / f"lowrank.{backend}"),
        source_sha256=sha256_of(folder / "lowrank.onnx"),
        backend=backend,
        backend_version="11.0",
        precision="fp32",
        target="this GPU",
        build_seconds=1.0,
        size_bytes=len(content),
    )
    built = json.loads((folder / "build.json").read_text())
    built["engines"] = {f"{backend} lowrank": artifact.model_dump(mode="json")}
    (folder / "build.json").write_text(json.dumps(built))


@pytest.mark.slow
def test_both_arms_of_a_run_answer_as_their_pytorch_models_do(finished, tmp_path):
    before = sha256_of(finished)
    result = package_run(finished, PackageRequest(tmp_path / "r", arms=("lowrank", "dense")))
    assert sha256_of(finished) == before
    assert [model.name for model in result.models] == ["tiny", "tiny_dense"]
    record = RunRecord.read(finished / "run.json")
    for model, arm in zip(result.models, ("lowrank", "dense"), strict=True):
        version = model.manifest.latest
        assert version.answers.passed
        assert (version.inputs_from, version.source.arm, version.batches) == ("run", arm, (1, 2))
        assert version.accuracy == getattr(record.accuracy, arm)
        assert version.source.digests[f"{arm}.onnx"] == sha256_of(finished / f"{arm}.onnx")
        assert (tmp_path / "r" / model.name / "labels.txt").read_text().split() == list("0123456789")
        assert check_bundle(tmp_path / "r" / model.name).passed
    assert result.models[0].manifest.latest.speedup == record.speedup
    assert result.models[1].manifest.latest.speedup is None
    config = read_config(tmp_path / "r" / "tiny" / "config.pbtxt")
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.output[0].label_filename == "labels.txt"


@pytest.mark.slow
def test_of_two_models_neither_changes_where_one_cannot(finished, tmp_path):
    package_run(finished, PackageRequest(tmp_path / "r", arms=("lowrank", "dense")))
    (tmp_path / "r" / "tiny_dense" / "labels.txt").write_text("by hand")
    before = sha256_of(tmp_path / "r")
    with pytest.raises(InputError, match=r"'labels\.txt' has changed since"):
        package_run(finished, PackageRequest(tmp_path / "r", arms=("lowrank", "dense"), instances=2))
    assert sha256_of(tmp_path / "r") == before


@pytest.mark.slow
def test_a_model_that_is_not_of_the_runs_weights_is_not_packaged(run_folder, tmp_path):
    model = onnx.load(run_folder / "lowrank.onnx")
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) > 1)
    array = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(np.float32(1.01) * array, weights.name))
    onnx.save(model, run_folder / "lowrank.onnx")
    with pytest.raises(InputError, match=r"reading '.*lowrank\.onnx': other bytes than the run wrote"):
        package_run(run_folder, PackageRequest(tmp_path / "r"))
    rewritten = json.loads((run_folder / "rewrite.json").read_text())
    rewritten["report"]["sha256"] = sha256_of(run_folder / "lowrank.onnx")
    (run_folder / "rewrite.json").write_text(json.dumps(rewritten))
    with pytest.raises(BackendError, match="answers that differ from those of what it was made from"):
        package_run(run_folder, PackageRequest(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_an_engine_is_packaged_beside_its_model_after_its_digest_was_checked(run_folder, tmp_path):
    add_engine(run_folder, "tensorrt")
    result = package_run(run_folder, PackageRequest(tmp_path / "r", max_batch=1000))
    assert [model.name for model in result.models] == ["tiny", "tiny_trt"]
    config = read_config(tmp_path / "r" / "tiny_trt" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 64)  # the largest of the engine's profile
    assert (tmp_path / "r" / "tiny_trt" / "1" / "model.plan").read_bytes() == b"a plan"
    assert "runs only on the GPU" in result.models[1].manifest.latest.unchecked
    assert check_bundle(tmp_path / "r" / "tiny_trt").passed
    (run_folder / "engines" / "lowrank.tensorrt").write_bytes(b"another")
    with pytest.raises(InputError, match=r"lowrank\.tensorrt': other bytes than the run wrote"):
        package_run(run_folder, PackageRequest(tmp_path / "r2"))
    assert not (tmp_path / "r2").exists()


@pytest.mark.slow
def test_engines_that_triton_cannot_load_are_left_out_with_the_reason(run_folder, tmp_path):
    add_engine(run_folder, "tensorrt-rtx")
    (left_out,) = package_run(run_folder, PackageRequest(tmp_path / "r")).skipped
    assert (left_out.what, "not of TensorRT-RTX" in left_out.reason) == ("engines/lowrank.tensorrt-rtx", True)
    add_engine(run_folder, "tensorrt")
    built = json.loads((run_folder / "build.json").read_text())
    built["engines"]["tensorrt lowrank"]["source_sha256"] = "0" * 64
    (run_folder / "build.json").write_text(json.dumps(built))
    result = package_run(run_folder, PackageRequest(tmp_path / "r"))
    assert [model.outcome for model in result.models] == ["unchanged"]
    assert "from another ONNX file" in result.skipped[0].reason


@pytest.mark.slow
def test_a_repository_within_or_around_the_run_is_refused(run_folder, tmp_path):
    for repository, word in ((run_folder / "served", "within"), (run_folder, "within"), (tmp_path, "around")):
        with pytest.raises(UsageError, match=f"a folder {word} the run"):
            package_run(run_folder, PackageRequest(repository))


@pytest.mark.slow
def test_models_trained_since_the_run_ended_are_refused(run_folder, tmp_path):
    trained = json.loads((run_folder / "lowrank.json").read_text())
    trained["accuracy"] += 0.001
    (run_folder / "lowrank.json").write_text(json.dumps(trained))
    with pytest.raises(UsageError, match=r"models trained since run\.json was written; .*lrd-deploy run"):
        package_run(run_folder, PackageRequest(tmp_path / "r"))


def test_a_run_that_is_not_finished_is_refused(tiny_recipe, tmp_path):
    recipe = load_recipe(str(tiny_recipe()))
    StoredRecipe(recipe=recipe, recipe_folder=None).write(tmp_path / "run" / "recipe.json")
    with pytest.raises(UsageError, match=r"no run\.json in it; .*finish it with 'lrd-deploy run"):
        package_run(tmp_path / "run", PackageRequest(tmp_path / "r"))
    with pytest.raises(UsageError, match=r"a folder without recipe\.json"):
        package_run(tmp_path, PackageRequest(tmp_path / "r"))
