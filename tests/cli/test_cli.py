"""The command line's contract: exit codes, clean JSON on stdout, four-part messages without tracebacks."""

import json
import math
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from lrd_deploy.bench.latency_table import Conditions, LatencyRow, LatencyTable
from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.cli.main import GROUPS, VERBS
from lrd_deploy.records import SVD, Environment, KeepDense, LayerSignature
from tests.ranks.scripted import Scripted
from tests.report.folders import write_gate, write_run

SIGNATURE = LayerSignature(kind="linear", in_channels=16, out_channels=16)


NOISY = """
import os, subprocess
from lrd_deploy.cli import main
quiet = main.exit_code
def noisy(arguments):
    os.write(1, b"a solver's line\\n")
    subprocess.run(["echo", "a child's line"])
    return quiet(arguments)
main.exit_code = noisy
main.main(["doctor", "--json"])
"""


@pytest.fixture
def factors(tmp_path):
    path = tmp_path / "factors.onnx"
    onnx.save(layer_graph(SIGNATURE, SVD(rank=6)), path)
    return path


def refused(outcome, *parts):
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    return True


def test_what_libraries_and_children_print_is_not_among_the_results():
    done = subprocess.run([sys.executable, "-c", NOISY], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["environment"]
    assert "a solver's line" in done.stderr
    assert "a child's line" in done.stderr


GROUPED = [(group, verb) for group, _, verbs in GROUPS for verb, _ in verbs]


@pytest.mark.parametrize("verb", [*((name,) for name, _ in VERBS), *GROUPED], ids=" ".join)
def test_every_verb_has_help(call, verb):
    code, out, _ = call(*verb, "--help")
    assert code == 0
    assert "--json" in out


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lrd_deploy.cli.main", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    # The promise is 0.3 s and it takes 0.1; a busy machine gets slack into which no heavy import fits.
    assert min(seconds) < 0.5


def test_version(call):
    import lrd_deploy

    assert call("--version")[:2] == (0, f"{lrd_deploy.__version__}\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "digits", "--nonsense"], ["build", "x"]])
def test_a_wrong_call_is_2_and_says_how(call, arguments):
    assert refused(call(*arguments), "--help")


def test_doctor_tells_of_every_backend(call):
    code, out, _ = call("doctor", "--json")
    backends = json.loads(out)["backends"]
    assert code == 0
    assert set(backends) == {"onnxruntime", "tensorrt", "tensorrt-rtx"}
    assert backends["onnxruntime"]["runs"]
    assert call("doctor")[0] == 0


def test_doctor_tells_which_extra_installs_an_optional_package(call, monkeypatch):
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    named = {package["name"]: package["extra"] for package in json.loads(call("doctor", "--json")[1])["optional"]}
    assert named.keys() == {"tritonclient", "lightning", "nvidia-ml-py"}
    assert all(project["optional-dependencies"][extra][0].startswith(name) for name, extra in named.items())
    monkeypatch.setattr("lrd_deploy.bench.diagnosis.version_of", lambda _: None)
    out = call("doctor")[1]
    assert all(f"'lrd-deploy[{extra}]'" in out for extra in named.values())


def test_rewrite_pads_and_merges_and_the_outputs_stay(call, factors, tmp_path):
    code, out, _ = call("rewrite", factors, "-o", tmp_path / "p.onnx", "--quantum", 8, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["modified"]
    assert report["applied"][0]["change"] == "rank 6 is padded to 8"
    assert report["max_abs_difference"] < 1e-5
    assert call("rewrite", factors, "-o", tmp_path / "m.onnx", "--mode", "merge")[0] == 0
    assert call("verify", tmp_path / "p.onnx", tmp_path / "m.onnx")[0] == 0


def test_truncation_says_what_it_cost_and_fails_beyond_what_is_allowed(call, factors, tmp_path):
    out = tmp_path / "t.onnx"
    code, printed, _ = call("rewrite", factors, "-o", out, "--mode", "truncate", "--quantum", 4, "--json")
    report = json.loads(printed)
    assert code == 0
    assert report["applied"][0]["relative_error"] > 0.01
    assert report["relative_l2_difference"] > 0.01
    assert call("rewrite", factors, "-o", out, "--mode", "truncate", "--quantum", 4, "--max-error", 0.9)[0] == 0
    before = out.read_bytes()
    limited = ("rewrite", factors, "-o", out, "--mode", "truncate", "--quantum", 4, "--max-error", 0.01)
    assert refused(call(*limited), "outputs that differ by", "at most 0.01, as --max-error says")
    assert out.read_bytes() == before


def latencies(path, batch, milliseconds):
    """A table of another machine, with these latencies of the layer that `factors` holds."""
    conditions = Conditions(backend="onnxruntime", batch=batch, threads=1, fingerprint="elsewhere")
    there = Environment(fingerprint="elsewhere", cpu="other", cores=2, system="s", python="3", packages={})
    table = LatencyTable(environments={"elsewhere": there})
    for choice, latency_ms in milliseconds.items():
        table.add(
            LatencyRow(
                conditions=conditions,
                signature=SIGNATURE,
                choice=choice,
                latency_ms=latency_ms,
                spread=0.0,
                settled=True,
                samples=9,
            )
        )
    return table.write(path)


def test_ranks_are_enforced_by_the_latencies_of_a_table(call, factors, tmp_path):
    milliseconds = {SVD(rank=6): 3.0, SVD(rank=8): 1.0, SVD(rank=16): 2.0, KeepDense(): 4.0}
    table, out = latencies(tmp_path / "t.jsonl", 2, milliseconds), tmp_path / "o.onnx"
    auto = ("--mode", "auto", "--table", table, "--batch", 2)
    code, printed, _ = call("rewrite", factors, "-o", out, *auto, "--json")
    report = json.loads(printed)
    assert code == 0
    assert [(entry["rule"], entry["change"]) for entry in report["applied"]] == [("pad_rank", "rank 6 is padded to 8")]
    assert (report["enforced"]["batch"], report["enforced"]["threads"]) == (2, 1)
    code, printed, _ = call("rewrite", out, "-o", tmp_path / "again.onnx", *auto, "--json")
    assert code == 0
    assert json.loads(printed)["modified"] is False
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    code, printed, _ = call("rewrite", factors, "-o", out, *auto)
    assert code == 0
    assert "latencies in onnxruntime, batch 2, threads 1, on other" in printed


def test_ranks_are_enforced_by_what_is_measured_here_where_there_is_no_table(call, factors, tmp_path):
    table = tmp_path / "kept" / "t.jsonl"
    arguments = ("rewrite", factors, "-o", tmp_path / "o.onnx", "--mode", "auto", "--batch", 2, "--json")
    code, printed, _ = call(*arguments, "--table", table)
    assert code == 0
    decision, *_ = json.loads(printed)["enforced"]["decisions"]
    assert {"keep", "pad", "merge"} == {option["action"] for option in decision["options"]}
    assert len(LatencyTable.read(table).rows) >= 4
    assert call(*arguments)[0] == 0


def test_balancing_keeps_the_outputs_to_the_last_bit(call, factors, tmp_path):
    model = onnx.load(factors)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1024), weight.name))
    onnx.save(model, factors)
    code, printed, _ = call("rewrite", factors, "-o", tmp_path / "b.onnx", "--mode", "balance", "--json")
    report = json.loads(printed)
    assert code == 0
    assert report["modified"]
    assert report["max_abs_difference"] == 0.0


def test_outputs_are_compared_on_inputs_that_are_given(call, factors, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 16), np.float32))
    arguments = ("rewrite", factors, "-o", tmp_path / "t.onnx", "--mode", "truncate", "--quantum", 4)
    report = json.loads(call(*arguments, "--inputs", tmp_path / "x.npz", "--json")[1])
    assert report["relative_l2_difference"] < 1e-6  # a bias is all that is left, and it is kept


def test_verify_is_1_when_outputs_differ(call, factors, tmp_path):
    onnx.save(layer_graph(SIGNATURE, KeepDense()), tmp_path / "other.onnx")
    code, out, _ = call("verify", factors, tmp_path / "other.onnx", "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


def test_verify_tells_what_it_was_run_on_and_what_to_try(call, factors, tmp_path):
    onnx.save(layer_graph(SIGNATURE, KeepDense()), tmp_path / "other.onnx")
    code, out, _ = call("verify", factors, tmp_path / "other.onnx")
    assert (code, "10, random, in batches of 1, 2, 7" in out) == (1, True)
    assert "--inputs samples.npz judges by real ones" in out
    assert "--tolerance says how much they may" in out
    np.savez(tmp_path / "x.npz", x=np.ones((50, 16), np.float32))
    code, out, _ = call("verify", factors, factors, "--inputs", tmp_path / "x.npz", "--json")
    assert (code, json.loads(out)["inputs"], sum(json.loads(out)["batches"])) == (0, "given", 50)


def test_ranks_are_not_truncated_in_the_only_copy_of_a_model(call, factors):
    before = factors.read_bytes()
    arguments = ("rewrite", factors, "-o", factors, "--mode", "truncate", "--quantum", 4)
    assert refused(call(*arguments), "what is lost cannot be had back")
    assert factors.read_bytes() == before


def test_build_writes_engine_and_manifest(call, factors, tmp_path):
    code, out, _ = call("build", factors, "-o", tmp_path / "e.onnx", "--json")
    assert code == 0
    manifest = json.loads((tmp_path / "e.onnx.json").read_text())
    assert manifest | {"path": str(tmp_path / "e.onnx")} == json.loads(out)


def test_bench_prints_the_comparison(call, factors, tmp_path):
    code, out, _ = call("bench", factors, factors, "--quick", "--json", "--samples", tmp_path / "s.jsonl")
    found = json.loads(out)
    assert code == 0
    assert found["speedup"]["launches"] == 4
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 1 + 4
    code, out, _ = call("bench", "--judge", tmp_path / "s.jsonl", "--json")
    assert (code, json.loads(out)) == (0, found)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--device", "tpu"), "the device 'tpu'; cpu, cuda or cuda:N"),
        (("--cuda-graph",), "a CUDA graph on the CPU"),
        (("--tf32",), "TF32 on the CPU"),
        (("--device", "cuda"), "running on cuda:0: no GPU here"),
        (("--threads", 1000), "1000 threads; at most"),
        (("--judge", "s.jsonl"), "--judge without them: nothing is measured"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(call, factors, monkeypatch, options, found):
    monkeypatch.setattr("lrd_deploy.engines.execution_provider.lacking_for_cuda", lambda _gpu: ["no GPU here"])
    assert refused(call("bench", factors, factors, *options), found)


def test_bench_refuses_models_with_different_inputs(call, factors, tmp_path):
    other = onnx.load(factors)
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1
    onnx.save(other, tmp_path / "other.onnx")
    assert refused(call("bench", factors, tmp_path / "other.onnx"), "the same names, types and shapes")


def test_bench_judges_or_measures_two_models(call, factors):
    code, _, err = call("bench", factors)
    assert code == 2
    assert "CANDIDATE.onnx" in err


@pytest.mark.parametrize("verb", ["compress", "rewrite", "build", "verify", "bench"])
@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_file_that_is_no_model_is_refused_by_every_verb(call, tmp_path, verb, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    arguments = ["-o", tmp_path / "o"] if verb in {"compress", "rewrite", "build"} else [path]
    assert refused(call(verb, path, *arguments), "m.onnx")
    assert not (tmp_path / "o").exists()


def test_bad_options_are_refused_with_what_is_accepted(call, factors, tmp_path):
    out = tmp_path / "o.onnx"
    assert refused(
        call("rewrite", factors, "-o", out, "--mode", "guess"), "--mode truncate with --quantum, --max-error"
    )
    assert refused(call("rewrite", factors, "-o", out, "--mode", "merge", "--quantum", 8), "leave out --quantum")
    assert refused(
        call("rewrite", factors, "-o", out, "--batch", 8), "--mode auto with --quantum, --max-error, --table"
    )
    assert refused(call("build", factors, "-o", out, "--backend", "tvm"), "one of: onnxruntime, tensorrt, tensorrt-rtx")
    assert refused(call("build", factors, "-o", out, "--min-batch", 9, "--opt-batch", 8), "min ≤ opt ≤ max")
    assert refused(call("report", tmp_path), "no run.json in it")
    assert refused(call("run", tmp_path), "a folder without recipe.json")
    np.savez(tmp_path / "x.npz", wrong=np.zeros(3))
    assert refused(call("verify", factors, factors, "--inputs", tmp_path / "x.npz"), "with ONNX Runtime")


def test_a_folder_that_cannot_be_written_is_told(call, factors, tmp_path):
    (tmp_path / "file").touch()
    assert refused(call("rewrite", factors, "-o", tmp_path / "file" / "o.onnx"), "o.onnx", "another path")


def test_a_recipe_with_mistakes_is_refused_before_anything_starts(call, tiny_recipe, tmp_path):
    path = tiny_recipe(fine_tune={"epoch": 2, "learning_rate": 0.1})
    assert refused(call("run", path, "--out", tmp_path / "out"), "did you mean 'epochs'?")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_130_and_says_that_work_is_kept(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lrd_deploy.cli.run.run_until", interrupted)
    code, _, err = call("run", "digits")
    assert code == 130
    assert "what was finished is kept" in err


def test_a_crash_is_2_and_asks_for_a_report(call, monkeypatch):
    def crash(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("lrd_deploy.cli.run.run_until", crash)
    code, out, err = call("run", "digits")
    assert (code, out) == (2, "")
    assert "boom" in err
    assert "this is a bug" in err


def test_the_verbs_of_a_recipe_share_one_folder(call, tiny_recipe, tmp_path):
    recipe, out = tiny_recipe(), tmp_path / "run"
    code, plan, _ = call("plan", recipe, "--out", out, "--json")
    assert code == 0
    layer = json.loads(plan)["layers"][1]
    assert {"name", "signature", "choice", "predicted_error", "predicted_latency_ms", "reason"} <= layer.keys()
    code, trained, _ = call("train", recipe, "--out", out, "--json")
    assert code == 0
    assert len(json.loads(trained)["epochs"]) == 2
    code, exported, err = call("export", out, "--json")  # the folder stands for the recipe it was made with
    assert code == 0
    assert {"path", "sha256", "opset", "inputs", "outputs"} <= json.loads(exported).keys()
    assert "lowrank         unchanged" in err


@pytest.mark.slow
def test_run_ends_with_a_record_a_page_and_onnx_files(call, tiny_recipe, tmp_path):
    out = tmp_path / "run"
    code, printed, _ = call("run", tiny_recipe(), "--out", out, "--json")
    assert code == 0
    record = json.loads(printed)
    assert record["speedup"]["launches"] == 4
    for path in record["artifacts"].values():
        assert (out / path).is_file(), path
    code, text, _ = call("report", out)
    assert code == 0
    assert "A/A control" in text


def test_a_folder_with_a_gate_s_result_alone_has_a_report_too(call, tmp_path):
    write_gate(tmp_path, "FAIL")
    code, text, _ = call("report", tmp_path)
    assert code == 0  # the report was written; the verdict's own exit code is the gate's
    assert text.startswith("FAIL  The candidate is slower")
    assert (tmp_path / "report.html").is_file()
    code, printed, _ = call("report", tmp_path, "--json")
    assert json.loads(printed)["verdict"] == "FAIL"
    write_run(tmp_path)
    code, printed, _ = call("report", tmp_path, "--json")
    assert json.loads(printed)["recipe"] == "digits"
    (tmp_path / "gate.json").write_text("{")
    assert refused(call("report", tmp_path), "gate.json' as GateResult")


def test_a_rewrite_that_fails_leaves_the_target_and_the_source_alone(call, factors, monkeypatch):
    monkeypatch.setattr("lrd_deploy.pipeline.rewriting.rounding_tolerance", lambda _model: -1.0)
    before = factors.read_bytes()
    assert refused(call("rewrite", factors, "-o", factors), "outputs that differ")
    assert factors.read_bytes() == before
    assert [path.name for path in factors.parent.iterdir()] == [factors.name]


def odd_model(text):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[1,2] x) => (float[1,2] y) { y = Sqrt (x) }", "NaN or infinity in the reference's outputs"),
        ("g () => (float[1] y) <float[1] w = {1}> { y = Relu (w) }", "a model without inputs"),
        ("g (string[2] x) => (string[2] y) { y = Identity (x) }", "all of numbers"),
    ],
)
def test_models_that_cannot_be_compared_are_told(call, tmp_path, text, message):
    onnx.save(odd_model(text), tmp_path / "m.onnx")
    assert refused(call("verify", tmp_path / "m.onnx", tmp_path / "m.onnx"), message)


def test_a_dimension_without_a_name_is_a_free_one(call, tmp_path):
    model = odd_model("g (float[batch,4] x) => (float[batch,4] y) { y = Relu (x) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, tmp_path / "m.onnx")
    assert call("verify", tmp_path / "m.onnx", tmp_path / "m.onnx")[0] == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY"])
def test_inputs_that_cannot_be_read_are_told(call, factors, tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert refused(call("verify", factors, factors, "--inputs", tmp_path / "x.npz"), "an .npz file with one array")


@pytest.mark.parametrize("data", [5, None, []])
def test_a_data_section_of_a_wrong_kind_is_told(call, tiny_recipe, data):
    path = tiny_recipe()
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "data": data}))
    assert refused(call("plan", path), "at 'data")


@pytest.mark.parametrize(
    "body", ["raise OSError('no disk')", "syntax error here", "import torch; torch.zeros(1, 2) @ 3"]
)
def test_user_code_that_raises_is_told(call, tiny_recipe, tmp_path, body):
    name = f"code_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def make():\n    {body}\n")
    assert refused(call("plan", tiny_recipe(model={"python": f"{name}:make"}), "--out", tmp_path / "o"), f"{name}:make")


def test_a_run_cannot_be_named_out_of_its_folder(call, tiny_recipe):
    assert refused(call("run", tiny_recipe(name="../../elsewhere")), "at 'name'")


def test_a_broken_backend_is_told_by_doctor(call, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = call("doctor", "--json")
    assert code == 0
    assert "libnvinfer" in json.loads(out)["backends"]["tensorrt"]["detail"]


def test_models_with_different_inputs_are_told_apart(call, factors, tmp_path):
    onnx.save(
        layer_graph(LayerSignature(kind="linear", in_channels=9, out_channels=16), KeepDense()), tmp_path / "b.onnx"
    )
    for verb in ("verify", "bench"):
        assert refused(call(verb, factors, tmp_path / "b.onnx"), "x float32[batch, 16] and x float32[batch, 9]")


def test_a_dense_model_to_rewrite_is_told_where_factors_come_from(call, tmp_path):
    onnx.save(
        layer_graph(LayerSignature(kind="linear", in_channels=9, out_channels=16), KeepDense()), tmp_path / "d.onnx"
    )
    code, out, _ = call("rewrite", tmp_path / "d.onnx", "-o", tmp_path / "o.onnx")
    assert code == 0
    assert "no factors found" in out
    assert "'lrd-deploy compress'" in out


def test_an_onnx_file_where_a_recipe_belongs_is_told(call, factors):
    assert refused(call("run", factors), "a recipe, which is a YAML file", "'lrd-deploy compress'")


def test_a_recipe_that_is_not_utf_8_is_told(call, tiny_recipe):
    path = tiny_recipe()
    path.write_bytes(path.read_bytes() + b"# caf\xe9")
    assert refused(call("plan", path), "the byte 0xe9", "save the file as UTF-8")


def test_weights_that_are_not_there_are_told_with_the_path_looked_in(call, tiny_recipe, tmp_path):
    path = tiny_recipe(model={"python": "json:loads", "weights": "nope.safetensors"})
    assert refused(call("plan", path, "--out", tmp_path / "o"), str(tmp_path / "nope.safetensors"), "check the path")


MEASURED = {
    "model": {
        "transformers": {
            "model_type": "resnet",
            "layer_type": "basic",
            "num_channels": 1,
            "embedding_size": 64,
            "hidden_sizes": [64, 128],
            "depths": [1, 1],
            "num_labels": 10,
        }
    },
    "data": {"digits": {"image_size": 32, "batch_size": 128}},
    "dense": {"epochs": 1, "learning_rate": 0.05},
    "ranks": {"policy": "latency", "target_speedup": 1.05, "quantum": 16},
}


def test_a_table_measured_once_plans_without_measuring(call, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lrd_deploy.bench.layer_latency._SETTLED", math.inf)  # what does not settle is timed again
    recipe, table = str(tiny_recipe(**MEASURED)), tmp_path / "kept" / "t.jsonl"
    code, out, _ = call("calibrate", "latency", recipe, "--table", str(table), "--json")
    assert code == 0
    done = json.loads(out)
    assert done["rows"] == done["rows_written"] == len(table.read_text().splitlines()) - 1
    again = json.loads(call("calibrate", "latency", recipe, "--table", str(table), "--json")[1])
    assert again["rows_written"] == 0
    foreign = tmp_path / "elsewhere.jsonl"
    foreign.write_text(table.read_text().replace(done["fingerprint"], "another machine"))
    code, out, _ = call("plan", recipe, "--table", str(foreign), "--out", str(tmp_path / "run"), "--json")
    assert code == 0
    plan = json.loads(out)
    assert any("another machine" in note for note in plan["notes"])
    assert plan["measured_speedup"] is None
    assert not (tmp_path / "run" / "latency.jsonl").exists()


def moved_to_a_gpu(line):
    """A line of a table as a machine with a GPU would have written it."""
    line = json.loads(line)
    if line["kind"] == "environment":
        gpu = {"name": "NVIDIA H200", "memory_mib": 143771, "driver": "580.1", "cuda": "13.0"}
        line["environment"] |= {"fingerprint": "a GPU machine", "gpus": [gpu]}
    else:
        execution = {"device": "cuda:0", "io_binding": True, "cuda_graph": True, "tf32": True}
        line["conditions"] |= {"fingerprint": "a GPU machine", "execution": execution}
    return json.dumps(line)


def test_a_table_of_a_gpu_plans_where_there_is_none(call, tiny_recipe, tmp_path):
    ranks = MEASURED["ranks"] | {"precision": "fp16"}
    here, table = str(tiny_recipe(**MEASURED | {"ranks": ranks})), tmp_path / "t.jsonl"
    assert call("calibrate", "latency", here, "--table", str(table))[0] == 0
    table.write_text("\n".join(map(moved_to_a_gpu, table.read_text().splitlines())) + "\n")
    assert refused(call("plan", here, "--table", str(table), "--out", str(tmp_path / "a")), "set 'bench' in the recipe")
    there = str(tiny_recipe(**MEASURED | {"ranks": ranks, "bench": {"batch": 2, "device": "cuda", "cuda_graph": True}}))
    code, out, err = call("plan", there, "--table", str(table), "--out", str(tmp_path / "b"), "--json")
    assert code == 0, err
    assert any("NVIDIA H200" in note for note in json.loads(out)["notes"])


@pytest.mark.parametrize("work", ["inference", "training"])
def test_calibrating_on_a_gpu_that_is_not_there_says_what_is_missing(call, tiny_recipe, tmp_path, work):
    recipe, table = str(tiny_recipe(**MEASURED)), tmp_path / "t.jsonl"
    outcome = call("calibrate", "latency", recipe, "--device", "cuda:99", "--work", work, "--table", str(table))
    assert refused(outcome, "cuda:99")
    assert not table.exists()


def test_shards_of_a_table_add_up(call, tiny_recipe, tmp_path):
    recipe = str(tiny_recipe(**MEASURED))
    for number in (1, 2, 3):
        table = str(tmp_path / "shards" / f"{number}.jsonl")
        assert call("calibrate", "latency", recipe, "--table", table, "--shard", f"{number}/3")[0] == 0
    whole = json.loads(call("calibrate", "latency", recipe, "--table", str(tmp_path / "t.jsonl"), "--json")[1])
    rows = sum(len(shard.read_text().splitlines()) - 1 for shard in (tmp_path / "shards").iterdir())
    assert rows >= whole["layers"]
    code, _, err = call("plan", recipe, "--table", str(tmp_path / "shards"), "--out", str(tmp_path / "run"))
    assert code == 0, err


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", ""])
def test_a_shard_that_is_none_is_refused(call, tiny_recipe, shard):
    assert refused(call("calibrate", "latency", str(tiny_recipe()), "--shard", shard), "I/N with 1 ≤ I ≤ N")


def test_a_table_that_is_not_there_is_refused(call, tiny_recipe, tmp_path):
    recipe = str(tiny_recipe(**MEASURED))
    assert refused(call("plan", recipe, "--table", str(tmp_path / "none.jsonl")), "none.jsonl")


@pytest.fixture
def onnx_file(tmp_path):
    import onnx

    from lrd_deploy.bench.layer_graph import layer_graph
    from lrd_deploy.records import KeepDense, LayerSignature

    signature = LayerSignature(
        kind="conv2d", in_channels=256, out_channels=256, kernel=(3, 3), padding=(1, 1), spatial=(12, 12)
    )
    model = layer_graph(signature, KeepDense())
    model.graph.node[0].name = "conv"
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_an_onnx_file_is_planned_without_a_recipe(call, onnx_file, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((20, 256, 12, 12)).astype(np.float32))
    arguments = ["plan", str(onnx_file), "--target-speedup", "1.1", "--calibration-data", str(data), "--quantum", "32"]
    code, out, err = call(*arguments, "--batch", "4", "--out", str(tmp_path / "run"), "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["quantum"] == 32
    assert [layer["name"] for layer in plan["layers"]] == ["conv"]
    assert plan["layers"][0]["choice"]["form"] != "dense"
    assert plan["measured_speedup"] >= 1.1
    assert (tmp_path / "run" / "plan" / "staircases.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target-speedup", "2", "--max-error", "0.1"], "exactly one of"),
        (["--target-speedup", "0.5"], "greater than 1"),
        (["--quantum", "16", "--max-error", "0"], "greater than 0"),
    ],
)
def test_goals_that_make_no_sense_are_refused(call, onnx_file, arguments, reason):
    assert refused(call("plan", str(onnx_file), *arguments), reason)


def test_a_plan_is_for_the_batch_that_the_file_fixes(call, onnx_file, tmp_path, monkeypatch):
    import onnx

    model = onnx.load(onnx_file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, onnx_file)
    assert refused(call("plan", onnx_file, "--batch", 8), "--batch 8", "2, which the input 'x' fixes")
    timed = set()

    def latencies_ms(source, requests):
        timed.add(source.conditions.batch)
        return Scripted(16).latencies_ms(requests)

    monkeypatch.setattr(MeasuredLatency, "latencies_ms", latencies_ms)
    code, _, err = call("plan", onnx_file, "--max-error", 0.9, "--out", tmp_path / "run")
    assert code == 0, err
    assert timed == {2}


@pytest.mark.slow
def test_an_onnx_file_is_compressed_without_training(call, onnx_file, tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "fast.onnx"
    np.savez(data, x=np.random.default_rng(0).standard_normal((40, 256, 12, 12)).astype(np.float32))
    arguments = ("compress", onnx_file, "-o", out, "--target-speedup", 1.1, "--calibration-data", data, "--quick")
    code, printed, err = call(*arguments, "--batch", 4, "--folder", tmp_path / "kept", "--json")
    assert code == 0, err
    done = json.loads(printed)
    assert [layer["name"] for layer in done["layers"]] == ["conv"]
    assert (done["path"], done["data_files"]) == (str(out), [])
    assert done["speedup"]["launches"] == 4
    assert 0 < done["output_error"] < 1
    assert (tmp_path / "kept" / "latency.jsonl").is_file()
    assert call("verify", onnx_file, out, "--tolerance", 1)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target-speedup", "2", "--max-error", "0.1"], "exactly one of"),
        (["--target-speedup", "0.5"], "greater than 1"),
        (["--max-error", "0"], "greater than 0"),
        (["--calibration-data", "none.npz"], "none.npz"),
        (["--table", "none.jsonl"], "none.jsonl"),
    ],
)
def test_goals_of_a_compression_that_make_no_sense_are_refused(call, onnx_file, tmp_path, arguments, reason):
    out = tmp_path / "o.onnx"
    assert refused(call("compress", onnx_file, "-o", out, "--folder", tmp_path / "kept", *arguments), reason)
    assert not out.exists()


@pytest.fixture
def tokens_file(tmp_path):
    signature = LayerSignature(kind="linear", in_channels=512, out_channels=512, spatial=(6,))
    model = layer_graph(signature, KeepDense())
    model.graph.node[0].name = "dense"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = "sequence"
    onnx.save(model, tmp_path / "tokens.onnx")
    return tmp_path / "tokens.onnx"


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_an_open_dimension_asks_for_its_size(call, tokens_file, tmp_path, verb):
    places = ["-o", tmp_path / "o.onnx", "--folder", tmp_path] if verb == "compress" else ["--out", tmp_path]
    what = "'sequence' of the input 'x' (axis 1) may have any size"
    assert refused(call(verb, tokens_file, *places), what, "say --dim 'sequence=SIZE'")
    assert refused(call(verb, tokens_file, *places, "--dim", "sequence=1:2:3"), "NAME=SIZE, such as sequence=128")
    np.savez(tmp_path / "x.npz", x=np.ones((8, 6, 512), np.float32))
    beside = ("--dim", "sequence=6", "--calibration-data", tmp_path / "x.npz")
    assert refused(call(verb, tokens_file, *places, *beside), "beside it; one of the two")


def test_a_plan_times_tokens_at_the_size_that_was_said(call, tokens_file, tmp_path, monkeypatch):
    monkeypatch.setattr(MeasuredLatency, "latencies_ms", lambda _, requests: Scripted(16).latencies_ms(requests))
    arguments = ("--max-error", 1, "--batch", 1, "--dim", "sequence=9", "--out", tmp_path / "run", "--json")
    code, out, err = call("plan", tokens_file, *arguments)
    assert code == 0, err
    assert [layer["signature"]["spatial"] for layer in json.loads(out)["layers"]] == [[9]]


@pytest.fixture
def nothing_may_be_timed(monkeypatch):
    def timed(*_):
        pytest.fail("it was timed before the threads were checked")

    monkeypatch.setattr("lrd_deploy.bench.layer_latency.MeasuredLatency.latencies_ms", timed)
    monkeypatch.setattr("lrd_deploy.train.loop.train", timed)


@pytest.mark.parametrize("verb", ["compress", "plan", "rewrite"])
@pytest.mark.usefixtures("nothing_may_be_timed")
def test_more_threads_than_cores_are_refused_before_an_onnx_file_is_timed(call, onnx_file, factors, tmp_path, verb):
    calls = {
        "compress": ("compress", onnx_file, "-o", tmp_path / "o.onnx", "--folder", tmp_path / "kept"),
        "plan": ("plan", onnx_file, "--out", tmp_path / "kept"),
        "rewrite": ("rewrite", factors, "-o", tmp_path / "o.onnx", "--mode", "auto"),
    }
    assert refused(call(*calls[verb], "--threads", 9999), "9999 threads", "the cores that this process may use")


@pytest.mark.parametrize("verb", ["plan", "run", "calibrate"])
@pytest.mark.usefixtures("nothing_may_be_timed")
def test_more_threads_than_cores_are_refused_before_a_recipe_trains(call, tiny_recipe, tmp_path, verb):
    recipe = tiny_recipe(bench={"threads": 9999}, ranks={"policy": "latency", "target_speedup": 1.5})
    calls = {
        "plan": ("plan", recipe, "--out", tmp_path / "run"),
        "run": ("run", recipe, "--out", tmp_path / "run"),
        "calibrate": ("calibrate", "latency", recipe, "--table", tmp_path / "t.jsonl"),
    }
    assert refused(call(*calls[verb]), "9999 threads", "the cores that this process may use")
    assert not (tmp_path / "run").exists()


def test_options_of_an_onnx_file_are_refused_with_a_recipe(call, tiny_recipe):
    assert refused(call("plan", str(tiny_recipe()), "--batch", "4"), "--batch; these only with an ONNX file")
