"""Models with their weights in a file beside them, as models above 2 GB have: read by mapping, written by streaming."""

import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from lrd_deploy.cli.main import exit_code
from lrd_deploy.engines import SessionSettings
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.engines.verify import verify
from lrd_deploy.errors import BackendError
from lrd_deploy.export import onnx_file
from lrd_deploy.export.model_files import external_locations, onnx_files
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.pipeline.rewriting import rewrite_model
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.rewrite.beside import MEASURED, NAME, measured, write_pairs
from tests.tolerances import sum_tolerance

SMALL = {"width": 32, "rank": 10, "pairs": 3, "dense": 1}
BIG = {"width": 8192, "rank": 2040, "pairs": 20, "dense": 1}  # 2.9 GB


@pytest.fixture
def source(tmp_path):
    return write_pairs(tmp_path / "source", **SMALL)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def outputs(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def assert_same_outputs(one, other, *, width):
    x = np.random.default_rng(1).standard_normal((2, width), np.float32)
    expected, got = outputs(one, x), outputs(other, x)
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=sum_tolerance(np.float32, width, largest))


def padded(source, target):
    return rewrite_model(source, [PadRank(8)], target, random_batches(source, (1, 2))).report


def test_a_rewritten_model_has_its_weights_beside_it(source, tmp_path):
    report = padded(source, tmp_path / "out" / "m.onnx")
    assert len(report.applied) == SMALL["pairs"]
    written = onnx.load(tmp_path / "out" / "m.onnx", load_external_data=False)
    (location,) = {entry.value for tensor in written.graph.initializer for entry in tensor.external_data[:1]}
    assert names(tmp_path / "out") == sorted(["m.onnx", location])
    keys = {entry.key for tensor in written.graph.initializer for entry in tensor.external_data}
    assert keys == {"location", "offset", "length"}
    assert_same_outputs(source, tmp_path / "out" / "m.onnx", width=SMALL["width"])
    onnx.checker.check_model(str(tmp_path / "out" / "m.onnx"), full_check=True)


def test_rewriting_the_result_writes_the_same_weights_again(source, tmp_path):
    padded(source, tmp_path / "out" / "m.onnx")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    report = padded(tmp_path / "out" / "m.onnx", tmp_path / "out" / "m.onnx")
    assert not report.modified
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == before


def test_a_model_may_be_rewritten_in_place(source):
    x = np.ones((1, SMALL["width"]), np.float32)
    before = outputs(source, x)
    assert padded(source, source).modified
    (weights,) = external_locations(read_model(source))
    assert names(source.parent) == sorted([NAME, "model.weights", weights])
    np.testing.assert_allclose(outputs(source, x), before, rtol=0, atol=sum_tolerance(np.float32, 32, 8.0))


def test_reading_holds_no_weight_and_maps_each(source):
    model = read_model(source)
    assert not any(tensor.raw_data for tensor in model.graph.initializer)
    held = {tensor.name: tensor for tensor in onnx.load(source).graph.initializer}
    for tensor in model.graph.initializer:
        values = tensor_values(tensor)
        assert not values.flags.owndata
        np.testing.assert_array_equal(values, onnx.numpy_helper.to_array(held[tensor.name]))


def test_outputs_that_move_leave_nothing_behind(source, tmp_path):
    class Broken(PadRank):
        def rewrite(self, chain):
            chain.nodes[0].inputs[0], chain.nodes[1].inputs[1] = chain.nodes[0].inputs[0], chain.nodes[1].inputs[1]
            change = super().rewrite(chain)
            values = chain.nodes[1].inputs[1].values
            values[:] = -values
            return change

    with pytest.raises(BackendError, match="outputs that differ"):
        rewrite_model(source, [Broken(8)], tmp_path / "out" / "m.onnx", random_batches(source, (1,)))
    assert names(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from lrd_deploy.export import onnx_file
bytes_of, written = onnx_file.tensor_bytes, []
def dying(tensor):
    for chunk in bytes_of(tensor):
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(tensor.name)
        yield chunk
onnx_file.tensor_bytes = dying
onnx_file.write_model(onnx_file.read_model(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("replaces", [True, False])
def test_a_kill_while_weights_are_written_leaves_what_was_there(source, tmp_path, replaces):
    target = tmp_path / "out" / "m.onnx"
    target.parent.mkdir()
    if replaces:
        padded(source, target)
    before = {name: (target.parent / name).read_bytes() for name in names(target.parent)}
    done = subprocess.run([sys.executable, "-c", KILLED, source, target], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    left = {name: (target.parent / name).read_bytes() for name in names(target.parent) if not name.startswith(".")}
    assert left == before


def test_what_does_not_fit_into_one_file_goes_beside_it(tmp_path, source, monkeypatch):
    whole = onnx.load(source)
    onnx.save(whole, tmp_path / "whole.onnx")
    monkeypatch.setattr(onnx_file, "_LARGEST_WRITTEN", 10_000)
    rewrite_model(tmp_path / "whole.onnx", [MergeFactors()], tmp_path / "out" / "m.onnx", random_batches(source, (1,)))
    assert len(names(tmp_path / "out")) == 2
    assert_same_outputs(source, tmp_path / "out" / "m.onnx", width=SMALL["width"])


def test_one_file_above_protobufs_limit_is_refused_unread(tmp_path):
    from lrd_deploy.errors import InputError

    with (tmp_path / "m.onnx").open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(InputError, match=r"2\.0 GiB in one file; .*save_as_external_data=True"):
        read_model(tmp_path / "m.onnx")


def test_a_model_in_memory_with_weights_in_two_folders_runs(source, tmp_path):
    model = read_model(source)
    other = read_model(write_model(model, tmp_path / "other" / "m.onnx"))
    model.graph.initializer[0].CopyFrom(other.graph.initializer[0])
    x = np.ones((1, SMALL["width"]), np.float32)
    (got,) = OnnxRuntime().load_in_memory(model, SessionSettings()).run({"x": x}).values()
    np.testing.assert_array_equal(got, outputs(source, x))
    copied = onnx_files(source, read_model(source))
    assert set(copied.files) == {"model.onnx", "model.weights"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_beside_a_model_are_converted(source, tmp_path, precision):
    target = tmp_path / "out" / "half.onnx"
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((16, SMALL["width"])).astype(np.float32))
    data = ["--calibration-data", tmp_path / "x.npz"] if precision == "fp16" else []
    assert exit_code(list(map(str, ["convert", source, "-o", target, "--precision", precision, *data]))) == 0
    kinds = {tensor.data_type for tensor in read_model(target).graph.initializer}
    assert kinds == {getattr(onnx.TensorProto, {"fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision])}


@pytest.mark.slow
def test_three_gigabytes_are_rewritten_in_less_than_two(tmp_path):
    source, target = write_pairs(tmp_path / "big", **BIG), tmp_path / "big" / "out.onnx"
    size = (source.parent / "model.weights").stat().st_size
    assert size > 2.9e9
    command = [sys.executable, "-c", MEASURED, tmp_path / "peak.json", "rewrite", source, "-o", target]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=280)
        found = measured(tmp_path / "peak.json")
        assert found["code"] == 0
        assert found["peak_bytes"] <= 1.6 * size
        assert_same_outputs(source, target, width=BIG["width"])
        assert all(dim % 16 == 0 for tensor in read_model(target).graph.initializer for dim in tensor.dims)
    finally:
        for path in source.parent.iterdir():
            path.unlink()


def test_files_with_weights_beside_are_verified(source, tmp_path):
    padded(source, tmp_path / "m.onnx")
    assert verify(source, tmp_path / "m.onnx", random_batches(source, (1, 3))).passed
