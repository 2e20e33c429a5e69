import numpy as np
import onnx
import pytest

from lrd_deploy.bench.compare import compare, conclude
from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import LaunchSamples
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.errors import BackendError, UsageError
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Comparison, KeepDense, LayerSignature


def launch(base=4_000_000, candidate=2_000_000, control=4_000_000, converged=True):
    def blocks(ns):
        return ((ns, ns + 5),) * 8

    return LaunchSamples(
        load_order=("base", "candidate", "control"),
        calls_per_block=2,
        warmup_converged=converged,
        blocks={"base": blocks(base), "candidate": blocks(candidate), "control": blocks(control)},
        solo={"base": (base,) * 20, "candidate": (candidate,) * 20},
        cold_start_ns={"base": 9_000_000, "candidate": 3_000_000, "control": 9_000_000},
    )


def test_samples_become_a_comparison():
    found = conclude([launch() for _ in range(4)], 8, 1, environment())
    assert found.speedup.estimate == pytest.approx(2.0)
    assert found.speedup.demonstrated
    assert found.control.estimate == 1.0
    assert found.base.p50_ms == 4.0
    assert found.base.throughput_per_s == pytest.approx(2000)
    assert found.base.p90_ms is not None  # 80 samples
    assert found.base.p99_ms is None
    assert found.warnings == ()
    assert Comparison.model_validate_json(found.to_json()) == found


def test_a_control_that_is_off_and_a_warm_up_that_does_not_settle_are_told():
    found = conclude([launch(control=5_000_000, converged=False) for _ in range(4)], 8, 1, environment())
    assert "came out at 0.800" in found.warnings[0]
    assert "in 4 of 4 launches" in found.warnings[1]


def linear(width, path):
    signature = LayerSignature(kind="linear", in_channels=width, out_channels=width)
    onnx.save(layer_graph(signature, KeepDense()), path)
    return {"x": layer_input(signature, 4)}


def test_fresh_processes_measure_two_real_models(tmp_path):
    inputs = linear(600, tmp_path / "a.onnx")
    heard = []

    class Listener:
        def progress(self, _what, done, total):
            heard.append((done, total))

    settings = Bench(batch=4, launches=4, rounds=8)
    found, launches = compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, settings, Listener())
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(launches) == 4
    assert {samples.load_order[0] for samples in launches} == {"base", "control"}
    assert 0.5 < found.speedup.estimate < 2.0  # a smoke test of the plumbing, not of the noise


def test_a_worker_that_cannot_run_a_model_is_told_with_its_last_words(tmp_path):
    linear(8, tmp_path / "a.onnx")
    wrong = {"x": np.zeros((4, 9), np.float32)}
    with pytest.raises(BackendError, match=r"fresh process \(worker\).*Got: 9 Expected: 8"):
        compare(tmp_path / "a.onnx", tmp_path / "a.onnx", wrong, Bench(launches=4))


def test_more_threads_than_cores_are_refused(tmp_path):
    inputs = linear(8, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"measuring inference: 1000 threads; at most \d+, the cores"):
        compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, Bench(threads=1000, launches=4))
