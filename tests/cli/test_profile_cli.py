"""`profile`, and `rewrite --layers-from`, as a person calls them."""

import json
import xml.etree.ElementTree as ET

import onnx
import pytest

from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.files import sha256_of
from lrd_deploy.records import SVD, KeepDense, LayerSignature
from tests.bench.profiles import layer, profile_of

SIGNATURE = LayerSignature(kind="linear", in_channels=64, out_channels=64)


def save(path, choice, names, signature=SIGNATURE):
    graph = layer_graph(signature, choice)
    for node, name in zip(graph.graph.node, names, strict=True):
        node.name = name
    onnx.save(graph, path)
    return path


@pytest.fixture
def dense(tmp_path):
    return save(tmp_path / "dense.onnx", KeepDense(), ["fc"])


@pytest.fixture
def low(tmp_path):
    return save(tmp_path / "low.onnx", SVD(rank=60), ["fc.down", "fc.up"])


def test_a_profile_is_kept_drawn_and_merged_by(call, dense, low, tmp_path):
    record, plot = tmp_path / "p.json", tmp_path / "p.svg"
    code, out, err = call("profile", dense, low, "--batch", 4, "--launches", 2, "-o", record, "--plot", plot, "--json")
    assert code == 0
    assert "profiling" in err
    printed = json.loads(out)
    assert printed == json.loads(record.read_text())
    (row,) = printed["layers"]
    assert (row["name"], row["chains"], len(row["candidate"]["kernels"])) == ("fc", ["fc"], 2)
    ET.parse(plot)
    code, out, _ = call("rewrite", low, "-o", tmp_path / "m.onnx", "--mode", "merge", "--layers-from", record, "--json")
    assert code == 0
    merged = json.loads(out)
    assert merged["modified"] == (row["verdict"] == "loses")
    assert len(merged["applied"]) + len(merged["skipped"]) == 1


def test_one_model_is_profiled_alone(call, low):
    code, out, _ = call("profile", low, "--launches", 2)
    assert code == 0
    assert out.splitlines()[2].split()[0] == "fc"
    assert "merge" not in out


@pytest.mark.parametrize("mode", ["pad", "truncate", "balance"])
def test_modes_that_take_no_profile_say_which_do(call, low, tmp_path, mode):
    code, out, err = call("rewrite", low, "-o", tmp_path / "m.onnx", "--mode", mode, "--layers-from", "p.json")
    assert (code, out) == (2, "")
    assert "--mode merge with --layers-from" in err
    assert "leave out --layers-from" in err


def test_auto_changes_only_layers_of_the_profile(call, low, tmp_path):
    found = profile_of(layer("fc", 1.0, 0.5, "pays"), sha256=sha256_of(low))
    record = found.write(tmp_path / "p.json")
    code, out, _ = call("rewrite", low, "-o", tmp_path / "m.onnx", "--mode", "auto", "--layers-from", record, "--json")
    assert code == 0
    assert json.loads(out)["skipped"][0]["reason"] == "it is not among the layers asked for"


def test_bad_input_is_told_in_four_parts(call, dense, low, tmp_path):
    other = save(tmp_path / "other.onnx", KeepDense(), ["fc"],
                 LayerSignature(kind="linear", in_channels=8, out_channels=8))  # fmt: skip
    (tmp_path / "p.json").write_text("{}")
    cases = {
        ("profile", dense, tmp_path / "none.onnx"): "none.onnx': No such file",
        ("profile", dense, other): "the same names, types and shapes",
        ("profile", dense, low, "--threads", 1000): "1000 threads; at most",
        ("profile", dense, low, "--plot", "p.png"): "'p.png'; a file that ends in .svg\n  → write 'p.svg'",
        ("profile", dense, low, "--launches", 1): "--launches",
        ("rewrite", low, "-o", "m.onnx", "--mode", "merge", "--layers-from", tmp_path / "p.json"): "as ModelProfile",
    }
    for arguments, words in cases.items():
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert "Traceback" not in err


def test_an_input_without_a_batch_is_told(call, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")
    sides = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])] for name in "xy"]
    graph = onnx.helper.make_graph([node], "scalar", *sides)
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    code, out, err = call("profile", tmp_path / "m.onnx", "--launches", 2)
    assert (code, out) == (2, "")
    assert "an input 'x' without dimensions; a first input whose first dimension is the batch" in err
