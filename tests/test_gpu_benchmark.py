"""The benchmark for a GPU, in small sizes on the CPU: every part runs, and what was stopped goes on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.latency_table import LatencyTable

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PLAN_AND_ROW = ["training-plan", "training", "inference-plan", "inference", "engine"]


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark, with latencies timed more shortly than any decision should rest on."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("lrd_deploy.bench.layer_latency._SECONDS_PER_CHOICE", 0.002)
    import gpu

    return gpu


@pytest.fixture
def run(gpu, tmp_path, capsys):
    """Runs all of it for one small model; returns the parts that were measured, and what was printed."""
    results = tmp_path / "out" / "results.jsonl"

    def call(*more):
        before = lines(results)
        arguments = ["all", "--device", "cpu", "--smoke", "--in-process", "--models", "small-vit"]
        gpu.main([*arguments, "--out", str(results), "--calibration", str(tmp_path / "calibration"), *more])
        return [line["row"]["part"] for line in lines(results)[len(before) :]], capsys.readouterr()

    call.results = results
    return call


def lines(path):
    """The whole lines of a file of results."""
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def test_stopped_in_the_middle_it_goes_on_where_it_was(gpu, run, tmp_path, monkeypatch):
    measure = gpu._MEASURES["inference"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu._MEASURES, "inference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    kept = run.results.read_text()
    assert [line["row"]["part"] for line in lines(run.results)] == ["machine", "ceiling", *PLAN_AND_ROW[:3]]
    run.results.write_text(kept + '{"row": {"part": "infer')  # cut short while it was written
    monkeypatch.setitem(gpu._MEASURES, "inference", measure)
    measured, printed = run()
    assert measured == PLAN_AND_ROW[3:]
    assert run.results.read_text().startswith(kept)
    for words in ("Small sizes", "Training small-vit, fp32, eager", "| small-vit | fp32 | 1 | off | onnxruntime |",
                  "TensorRT:", "Latency over rank"):  # fmt: skip
        assert words in printed.out
    assert run()[0] == []

    table = LatencyTable.read_all([tmp_path / "calibration"])
    assert table.environments.keys() == {environment().fingerprint}
    assert {(key[0].work, key[0].backend) for key in table.rows} == {
        ("training", "torch sequential channels_last"),
        ("inference", "onnxruntime"),
    }


def test_no_row_is_started_that_is_not_expected_to_end_in_time(run):
    measured, printed = run("--minutes", "0.01")
    assert measured == []
    assert "7 rows are left" in printed.err


def test_rows_that_were_refused_are_tried_again_when_asked(gpu, run, monkeypatch):
    monkeypatch.setattr(gpu, "attempt", lambda row, *_: {"refusal": f"no {row.part} today"})
    assert run()[0] == ["machine", "ceiling", "training-plan", "inference-plan"]  # what needs a plan waits for it
    measured, printed = run()
    assert measured == []
    assert "no training-plan today" in printed.out
    assert run("--again")[0] == ["machine", "ceiling", "training-plan", "inference-plan"]


def test_missing_packages_are_told_before_anything_is_measured(gpu, run, monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package", "nor_this"))
    with pytest.raises(SystemExit, match="missing packages: no_such_package, nor_this"):
        run()


def test_rows_are_expected_to_take_what_their_kind_took(gpu, tmp_path):
    row = gpu.Row("training", "resnet50", "bf16", "eager")
    results = gpu.Results(tmp_path / "r.jsonl")
    assert results.seconds(row) == gpu.EXPECTED["training eager"]
    for precision, seconds, outcome in (("bf16", 20, "result"), ("tf32", 30, "result"), ("fp32", 99, "refusal")):
        kind = {**vars(row), "precision": precision}
        results.add({"row": kind, "machine": "m", "seconds": seconds, outcome: {}})
    assert gpu.Results(tmp_path / "r.jsonl").seconds(row) == 30
    assert all(each.expected_s > 0 for each in gpu.all_rows())


def test_rows_of_another_machine_count_when_told_but_not_its_ceilings(gpu, tmp_path):
    results = gpu.Results(tmp_path / "r.jsonl")
    training, ceiling = gpu.Row("training", "resnet50", "bf16", "eager"), gpu.Row("ceiling")
    for row in (training, ceiling):
        results.add({"row": vars(row), "machine": "there", "seconds": 1, "result": {}})
    assert results.of(training, "here") is None
    assert results.of(training, "here", any_machine=True)["machine"] == "there"
    assert results.of(ceiling, "here", any_machine=True) is None


def test_every_row_comes_after_its_plan_and_once(gpu, tmp_path):
    options = gpu.parsed(["all", "--out", str(tmp_path / "r.jsonl")])
    rows = gpu.wanted_rows(options)
    assert len(rows) == len(set(rows))
    assert all(rows.index(row.plan) < rows.index(row) for row in rows if row.plan)
    assert options.device == "cuda:0"


@pytest.mark.usefixtures("gpu")
def test_a_batch_that_does_not_fit_is_halved():
    from gpu_training import backed_off

    tried = []

    def at(batch):
        tried.append(batch)
        if batch > 64:
            raise torch.OutOfMemoryError("too much")
        return {"batch": batch}

    assert backed_off(256, at) == {"batch": 64}
    assert tried == [256, 128, 64]


@pytest.mark.usefixtures("gpu")
def test_no_layer_is_faster_than_its_floor_allows():
    from gpu_ceiling import floor_ms
    from gpu_training import layers_of

    layers = [layer for layer in layers_of("small-vit") if layer.name.endswith("classifier")]
    (layer,) = layers
    assert (layer.signature.in_channels, layer.signature.out_channels) == (64, 10)
    slow_products = {"flops_per_s": {"fp32": 1e3}, "bytes_per_s": 1e30}
    assert floor_ms(layers, None, 2, "fp32", slow_products) == pytest.approx(2 * 2 * 640)  # 2 FLOPs for each MAC
    slow_copies = {"flops_per_s": {"fp32": 1e30}, "bytes_per_s": 4e3}
    assert floor_ms(layers, None, 2, "fp32", slow_copies) == pytest.approx(640 + 2 * (64 + 10))
    assert floor_ms(layers, None, 2, "fp16", slow_copies) is None


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "matrix"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "memory"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>", "memory"),
        ("triton_red_fused_native_layer_norm_0", "memory"),
        ("flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", "matrix"),
        ("something_else", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    from gpu_profile import kind_of

    assert kind_of(kernel) == kind


@pytest.mark.usefixtures("gpu")
def test_only_kernels_count_on_a_gpu():
    from gpu_profile import summarised
    from torch.autograd import DeviceType

    def event(key, us, device_type=DeviceType.CUDA, **more):
        return SimpleNamespace(key=key, self_device_time_total=us, device_type=device_type, **more)

    events = [
        event("aten::conv2d", 99.0, DeviceType.CPU),
        event("Optimizer.step", 99.0, is_user_annotation=True),
        event("sm90_gemm", 30.0, is_user_annotation=False),
        event("elementwise_kernel", 10.0),
    ]
    found = summarised(events, "cuda:0", wall_us=50.0)
    assert found["busy"] == 0.8
    assert (found["matrix"], found["memory"], found["other"]) == (0.75, 0.25, 0.0)
    assert [kernel["name"] for kernel in found["top"]] == ["sm90_gemm", "elementwise_kernel"]
    assert summarised(events[:2], "cuda:0", wall_us=50.0) == {}


@pytest.mark.nightly
def test_the_command_measures_every_part_in_processes_of_their_own(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "all", "--device", "cpu", "--smoke"]
    command += ["--out", tmp_path / "results.jsonl", "--calibration", tmp_path / "calibration"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "results.jsonl")
    assert [line for line in found if "refusal" in line] == []
    assert [line["row"]["part"] for line in found].count("training") == 2
    assert (tmp_path / "calibration").is_dir()
