import json

import numpy as np
import onnx
import pytest

from lrd_deploy.precision.mark import mark_of
from lrd_deploy.records import ActivationRanges, EngineArtifact, PrecisionReport, Verification
from tests.pipeline.test_compressing import comparison
from tests.precision.graphs import images, network


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    np.savez(tmp_path / "x.npz", **images(32))
    return path


@pytest.fixture
def data(model):
    return model.with_name("x.npz")


def refused(outcome, *words):
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return all(word in err for word in words)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_convert_prints_its_record_and_nothing_else(call, model, data, tmp_path, precision):
    out = tmp_path / "out.onnx"
    code, printed, err = call(
        "convert", model, "-o", out, "--precision", precision, "--calibration-data", data, "--json"
    )
    assert code == 0, err
    report = PrecisionReport.model_validate_json(printed)
    assert mark_of(onnx.load(out)).policy == report.policy
    code, printed, _ = call("convert", model, "-o", out, "--precision", precision, "--calibration-data", data)
    assert [line.split()[1:] for line in printed.splitlines() if "batches" in line] == [["8"]] * (precision != "bf16")
    assert code == 0
    assert "multiply–accumulates   100.0%" in printed


def test_ranges_are_measured_once_and_used_without_data(call, model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, err = call("calibrate", "ranges", model, "--data", data, "--method", "minmax", "--json")
    assert code == 0, err
    stored = tmp_path / json.loads(printed)["path"]
    assert stored == tmp_path / "calibration" / "model.minmax.json"
    assert ActivationRanges.read(stored).samples == 24
    code, _, err = call("convert", model, "-o", "out.onnx", "--precision", "int8", "--ranges", stored)
    assert code == 0, err
    assert mark_of(onnx.load("out.onnx")).policy.method == "minmax"


def test_build_converts_first_and_says_so(call, model, data, tmp_path):
    out = tmp_path / "e.onnx"
    code, printed, err = call("build", model, "-o", out, "--precision", "int8", "--calibration-data", data, "--json")
    assert code == 0, err
    manifest = json.loads(printed)
    stored = EngineArtifact.read(tmp_path / "e.onnx.json")
    assert EngineArtifact.model_validate(manifest) == stored.model_copy(update={"path": out})
    assert (manifest["precision"], manifest["converted"]["macs"]) == ("int8", 1.0)
    graph = onnx.load(out).graph
    assert sum(node.op_type == "QLinearConv" for node in graph.node) == 3  # the kernels that UINT8 is for


def test_verify_keeps_its_result_and_judges_it_again(call, model, data, tmp_path):
    half, kept = tmp_path / "half.onnx", tmp_path / "v.json"
    assert call("convert", model, "-o", half, "--precision", "fp16")[0] == 0
    assert call("verify", model, half, "--inputs", data, "--out", kept)[0] == 0
    half.unlink()
    assert call("verify", "--judge", kept)[0] == 0
    code, printed, _ = call("verify", "--judge", kept, "--min-sqnr-db", 150, "--json")
    assert code == 1
    assert "below 150.0 dB" in Verification.model_validate_json(printed).reasons[0]


OPTIONS = {
    "nothing to scale by": (("--precision", "int8"), "neither --ranges nor --calibration-data"),
    "an option of INT8": (("--precision", "fp16", "--activation-type", "uint8"), "leave out --activation-type"),
    "two methods": (("--precision", "int8", "--ranges", "r.json", "--method", "minmax"), "stored ranges have their"),
    "no such precision": (("--precision", "fp8"), "fp8"),
    "no precision": ((), "--precision"),
    "no such node": (("--precision", "fp16", "--keep", "nope"), "which no node's name matches"),
    "no such ranges": (("--precision", "int8", "--ranges", "r.json"), "r.json"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options_are_told_and_nothing_is_written(call, model, tmp_path, options, message):
    assert refused(call("convert", model, "-o", tmp_path / "o.onnx", *options), message)
    assert not (tmp_path / "o.onnx").exists()


def test_other_verbs_tell_bad_options_too(call, model, data, tmp_path):
    out = tmp_path / "e"
    assert refused(call("build", model, "-o", out, "--calibration-data", data), "without --precision")
    assert refused(call("calibrate", "ranges", model, "--data", data, "--percentile", 99), "with --method entropy")
    calibrate = ("calibrate", "ranges", model, "--data", data, "--method", "percentile", "--percentile")
    assert refused(call(*calibrate, 10), "above 50 and at most 100")
    assert refused(call(*calibrate, "nan"), "above 50 and at most 100")
    assert refused(call("verify", model), "'B.onnx'")
    assert refused(call("verify", model, "--judge", data), "nothing is run")
    assert refused(call("verify", "--judge", data), "as Verification")
    assert refused(call("verify", model, model, "--min-cosine", 2), "--min-cosine 2.0")
    (tmp_path / "r.json").write_text("{}")
    assert refused(
        call("convert", model, "-o", out, "--precision", "int8", "--ranges", tmp_path / "r.json"), "ActivationRanges"
    )


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_file_that_is_no_model_is_told(call, data, tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    assert refused(call("convert", path, "-o", tmp_path / "o", "--precision", "fp16"), "m.onnx")
    assert refused(call("calibrate", "ranges", path, "--data", data, "--out", tmp_path / "o"), "m.onnx")
    assert not (tmp_path / "o").exists()


def test_bench_tells_where_precisions_differ(call, model, tmp_path, monkeypatch):
    assert call("convert", model, "-o", tmp_path / "half.onnx", "--precision", "fp16")[0] == 0

    def compare(*arguments):
        return comparison(2.0).model_copy(update={"warnings": tuple(arguments[-1])}), ()

    monkeypatch.setattr("lrd_deploy.bench.compare.compare", compare)
    code, printed, err = call("bench", model, tmp_path / "half.onnx", "--json")
    assert code == 0, err
    assert json.loads(printed)["warnings"] == [
        "the base is in fp32, the candidate converted to FP16: the ratio shows that difference too"
    ]
    assert json.loads(call("bench", model, model, "--json")[1])["warnings"] == []
