import importlib.util

import numpy as np
import onnx
import pytest

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.engines import BACKENDS, BuildSettings, SessionSettings, builder, runtime
from lrd_deploy.engines.difference import output_difference, rounding_tolerance
from lrd_deploy.engines.inputs import random_batches, repeated, sample_batches, stored_batches
from lrd_deploy.engines.verify import verify
from lrd_deploy.errors import BackendError, InputError, MissingPackage, StorageError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.records import KeepDense, LayerSignature, TensorInfo, Tucker2, VerifyPolicy

SIGNATURE = LayerSignature(
    kind="conv2d", in_channels=16, out_channels=16, kernel=(3, 3), padding=(1, 1), spatial=(6, 6)
)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(layer_graph(SIGNATURE, Tucker2(rank_in=8, rank_out=8)), path)
    return path


def test_a_built_engine_computes_what_the_model_does_and_its_manifest_holds(model, tmp_path):
    artifact = builder("onnxruntime").build(model, tmp_path / "engine.onnx", BuildSettings())
    assert artifact.sha256 == sha256_of(tmp_path / "engine.onnx")
    assert artifact.source_sha256 == sha256_of(model)
    x = {"x": layer_input(SIGNATURE, 3)}
    one, other = (
        runtime("onnxruntime").load(path, SessionSettings()).run(x)["y"] for path in (model, tmp_path / "engine.onnx")
    )
    tolerance = rounding_tolerance(onnx.load(model))
    assert output_difference([one], [other], tolerance=tolerance, batches=(3,)).passed


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_what_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BackendError, match=r"loading '.*m\.onnx' with ONNX Runtime"):
        runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings())


def test_a_file_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        runtime("onnxruntime").load(tmp_path / "none.onnx", SessionSettings())


def test_inputs_of_a_wrong_shape_are_told_before_anything_is_timed(model):
    session = runtime("onnxruntime").load(model, SessionSettings())
    with pytest.raises(BackendError, match="Got: 5 Expected: 6"):
        session.bind({"x": np.zeros((1, 16, 5, 6), np.float32)})


def test_an_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="one of: onnxruntime, tensorrt, tensorrt-rtx"):
        builder("openvino")
    with pytest.raises(UsageError, match="one of: onnxruntime, tensorrt, tensorrt-rtx"):
        runtime("openvino")


def test_every_backend_describes_itself():
    for name, backend in BACKENDS.items():
        assert backend.describe().name == name


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_package_names_its_extra(name, model, tmp_path, monkeypatch):
    backend = BACKENDS[name]
    monkeypatch.setitem(__import__("sys").modules, backend.package, None)
    with pytest.raises(MissingPackage, match=rf"pip install 'lrd-deploy\[{backend.extra}\]'"):
        backend.build(model, tmp_path / "e", BuildSettings())


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="the rtx extra is not installed")
class TestTensorRTRTX:
    def test_compiles_without_a_gpu_for_each_named_one(self, model, tmp_path):
        for capability in ("8.6", "12.0"):
            settings = BuildSettings(compute_capabilities=(capability,))
            artifact = builder("tensorrt-rtx").build(model, tmp_path / "m.engine", settings)
            assert artifact.target == f"compute capability {capability}"
            assert artifact.size_bytes == (tmp_path / "m.engine").stat().st_size > 1000

    def test_refuses_a_gpu_it_does_not_know(self, model, tmp_path):
        with pytest.raises(UsageError, match=r"compute capability '9\.0'; one of: 7\.5"):
            builder("tensorrt-rtx").build(model, tmp_path / "e", BuildSettings(compute_capabilities=("9.0",)))

    def test_tells_what_the_compiler_says_of_a_graph_it_refuses(self, tmp_path):
        graph = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20, "me" : 1]> g (float[batch,2] x) => (float[batch,2] y) '
            "{ y = me.Unheard (x) }"
        )
        onnx.save(graph, tmp_path / "m.onnx")
        with pytest.raises(BackendError, match=r"building '.*' with tensorrt-rtx"):
            builder("tensorrt-rtx").build(tmp_path / "m.onnx", tmp_path / "e", BuildSettings())
        assert not (tmp_path / "e").exists()


def test_verify_tells_equal_models_from_others(model, tmp_path):
    batches = random_batches(model, (1, 3))
    same = verify(model, model, batches)
    assert (same.passed, same.max_abs, same.top1_agreement, same.batches) == (True, 0.0, 1.0, (1, 3))
    onnx.save(layer_graph(SIGNATURE, KeepDense()), tmp_path / "other.onnx")
    other = verify(model, tmp_path / "other.onnx", batches)
    assert not other.passed
    assert verify(model, tmp_path / "other.onnx", batches, VerifyPolicy(tolerance=100.0)).passed


def test_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        output_difference([np.zeros((2, 3))], [np.zeros((2, 4))], tolerance=1, batches=(2,))
    with pytest.raises(InputError, match="NaN or infinity in the candidate's outputs"):
        output_difference([np.zeros((1, 2))], [np.array([[np.nan, 0.0]])], tolerance=1, batches=(1,))


def test_the_difference_is_symmetric_in_size_and_zero_for_equals():
    a, b = np.random.default_rng(0).standard_normal((2, 4, 5))
    found = output_difference([a], [b], tolerance=0.1, batches=(4,))
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert output_difference([a], [a], tolerance=0.0, batches=(4,)).passed


def test_random_inputs_follow_the_graph(model):
    (batch,) = random_batches(model, (5,))
    assert batch["x"].shape == (5, 16, 6, 6)
    assert batch["x"].dtype == np.float32


def test_stored_inputs_are_cut_or_repeated(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(3))
    assert [list(batch["x"]) for batch in stored_batches(tmp_path / "x.npz", (2, 5))] == [[0, 1], [0, 1, 2, 0, 1]]
    assert list(repeated(np.arange(2), 3)) == [0, 1, 0]


CASTS = {
    "numpy's default": (np.array([0.1, np.nan]), "float32"),
    "pixels": (np.array([0, 255], np.uint8), "float32"),
    "ids": (np.array([5, 2**31 - 1], np.int32), "int64"),
    "ids that fit": (np.array([5, 2**31 - 1], np.int64), "int32"),
    "a mask": (np.array([True, False]), "int64"),
}


@pytest.mark.parametrize(("array", "wanted"), CASTS.values(), ids=CASTS)
def test_stored_inputs_get_the_type_of_the_input(tmp_path, array, wanted):
    np.savez(tmp_path / "x.npz", x=array, labels=array)
    (batch,) = stored_batches(tmp_path / "x.npz", (2,), [TensorInfo(name="x", dtype=wanted, shape=("batch",))])
    assert batch["x"].dtype == wanted
    np.testing.assert_allclose(batch["x"], array, rtol=1e-7)
    assert batch["labels"].dtype == array.dtype


LOSSES = {
    "digits": (np.array([1, 2], np.int64), "float32"),
    "size": (np.array([1, 2**31]), "int32"),
    "sign": (np.array([-1]), "uint8"),
    "range": (np.array([1e300]), "float32"),
    "fractions": (np.array([0.5], np.float32), "int64"),
}


@pytest.mark.parametrize(("array", "wanted"), LOSSES.values(), ids=LOSSES)
def test_stored_inputs_that_would_lose_values_are_refused(tmp_path, array, wanted):
    np.savez(tmp_path / "x.npz", x=array)
    told = rf"x.npz': 'x' of type {array.dtype}; {wanted}, which the model takes.*x.astype\('{wanted}'\)"
    with pytest.raises(InputError, match=told):
        stored_batches(tmp_path / "x.npz", (1,), [TensorInfo(name="x", dtype=wanted, shape=("batch",))])


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda stream: np.save(stream, np.zeros(3)), "one array without a name"),
        (lambda s: s.write(b"1 2 3"), "no .npz"),
    ],
    ids=["npy", "text"],
)
def test_inputs_that_are_no_npz_are_refused(tmp_path, write, found):
    with (tmp_path / "x.npz").open("wb") as stream:
        write(stream)
    told = rf"{found}.*an \.npz file with one array per input.*numpy.savez\('samples.npz', input_name=array\)"
    with pytest.raises(InputError, match=told):
        stored_batches(tmp_path / "x.npz", (1,))


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [
        (80, "batch", [1, 2, 7, 32, 32, 6]),
        (10, "batch", [1, 2, 7]),
        (4, "batch", [1, 2, 7]),  # starts over
        (5, 2, [2, 2, 2]),
    ],
)
def test_every_sample_is_run_at_several_batches_or_at_the_models_own(count, batch, expected):
    inputs = [TensorInfo(name="x", dtype="float32", shape=(batch, 1))]
    batches = sample_batches({"x": np.arange(count)[:, None]}, inputs, (1, 2, 7))
    assert [len(found["x"]) for found in batches] == expected
    rows = np.concatenate([found["x"] for found in batches])[:, 0]
    assert list(rows) == [row % count for row in range(sum(expected))]
