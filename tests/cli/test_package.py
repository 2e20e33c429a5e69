"""`lrd-deploy package`: its record, its table, its refusals and its exit codes."""

import json
import shlex

import pytest

from tests.serving.graphs import OTHER_WEIGHTS, save


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "m.onnx")


@pytest.fixture
def package(call):
    return lambda *arguments: call("package", *arguments)


def test_the_record_tells_of_files_and_digests_and_the_table_how_to_serve_them(package, model, tmp_path):
    repository = tmp_path / "my models"
    code, out, _ = package(model, "--triton", repository, "--json")
    assert code == 0
    (packaged,) = json.loads(out)["models"]
    assert {"path", "sha256", "size_bytes"} == packaged["manifest"]["files"][0].keys()
    assert packaged["manifest"]["versions"][0]["answers"]["passed"]
    code, out, _ = package(model, "--triton", repository)
    assert code == 0
    assert "m: version 1 was there already; nothing to do; answers as before packaging" in out
    assert f"tritonserver --model-repository={shlex.quote(str(repository))}" in out


def test_a_check_is_1_when_the_answers_differ_and_2_when_files_do(package, model, tmp_path):
    assert package(model, "--triton", tmp_path / "r")[0] == 0
    bundle = tmp_path / "r" / "m"
    code, out, _ = package("--check", bundle, "--json")
    assert code == 0
    assert json.loads(out)["passed"]
    swapped = save(bundle / "1" / "model.onnx", OTHER_WEIGHTS)
    code, out, err = package("--check", bundle)
    assert (code, out) == (2, "")
    assert "'1/model.onnx' has changed since" in err
    manifest = json.loads((bundle / "manifest.json").read_text())
    from lrd_deploy.files import sha256_of

    manifest["files"][0].update(sha256=sha256_of(swapped), size_bytes=swapped.stat().st_size)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = package("--check", bundle)
    assert code == 1
    assert "FAILED" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "neither a source nor a repository"),
        (["m.onnx"], "a source without a repository"),
        (["--triton", "r"], "name both what to package and where to"),
        (["m.onnx", "--check", "r/m"], "--check REPO/NAME alone"),
        (["m.onnx", "--triton", "r", "--arm", "both"], "no --arm with an ONNX file"),
        (["m.onnx", "--triton", "r", "--arm", "half"], "choosing what to package: --arm half"),
        (["folder", "--triton", "r"], "a folder without recipe.json"),
        (["folder", "--triton", "r", "--arm", "half"], "lowrank, dense or both of a run"),
        (["mine.yaml", "--triton", "r"], "do 'lrd-deploy run mine.yaml' first"),
        (["folder", "--triton", "r", "--inputs", "x.npz"], "a run has test data of its own"),
        (["m.onnx", "--triton", "r", "--version", "0"], "greater than or equal to 1"),
        (["m.onnx", "--triton", "r", "--name", "../out"], "naming the model: '../out'"),
        (["m.onnx", "--triton", "r", "--labels", "none.txt"], "none.txt"),
        (["none.onnx", "--triton", "r"], "none.onnx"),
    ],
)
def test_wrong_calls_are_refused_with_what_is_accepted(package, model, monkeypatch, arguments, reason):
    monkeypatch.chdir(model.parent)
    (model.parent / "folder").mkdir()
    code, out, err = package(*arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert "Traceback" not in err
    assert not (model.parent / "r").exists()


def test_a_largest_batch_for_a_fixed_one_is_refused(package, model, tmp_path):
    save(model, "g (float[2,3] x) => (float[2,3] y) { y = Relu (x) }")
    assert (
        "--max-batch 4 for a model with a fixed batch"
        in package(model, "--triton", tmp_path / "r", "--max-batch", 4)[2]
    )
    assert package(model, "--triton", tmp_path / "r")[0] == 0
