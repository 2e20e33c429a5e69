import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lrd_deploy.bench.compare as comparing
from lrd_deploy.bench.compare import ARMS, compare, conclude, judge_samples
from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import LaunchSamples, balanced_order
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.samples_file import MeasuredUnder, SamplesFile, read_samples
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.observer import SilentObserver
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Comparison, Execution, Gpu, GpuReadings, KeepDense, LayerSignature

UNDER = MeasuredUnder(base_sha256="a", candidate_sha256="b", batch=8, threads=1, environment=environment())


def launch(base=4_000_000, candidate=2_000_000, control=4_000_000, converged=True, **changes):
    def blocks(ns):
        return ((ns, ns + 5),) * 8

    samples = LaunchSamples(
        load_order=("base", "candidate", "control"),
        calls_per_block=2,
        warmup_converged=converged,
        blocks={"base": blocks(base), "candidate": blocks(candidate), "control": blocks(control)},
        solo={"base": (base,) * 20, "candidate": (candidate,) * 20},
        cold_start_ns={"base": 9_000_000, "candidate": 3_000_000, "control": 9_000_000},
    )
    return samples.model_copy(update=changes)


def test_samples_become_a_comparison():
    found = conclude([launch() for _ in range(4)], UNDER)
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
    found = conclude([launch(control=5_000_000, converged=False) for _ in range(4)], UNDER)
    assert "came out at 0.800" in found.warnings[0]
    assert "in 4 of 4 launches" in found.warnings[1]


def linear(width, path):
    signature = LayerSignature(kind="linear", in_channels=width, out_channels=width)
    onnx.save(layer_graph(signature, KeepDense()), path)
    return {"x": layer_input(signature, 4)}


def test_fresh_processes_measure_two_real_models(tmp_path):
    inputs = linear(600, tmp_path / "a.onnx")
    heard = []

    class Listener(SilentObserver):
        def progress(self, _what, done, total):
            heard.append((done, total))

    settings = Bench(batch=4, launches=4, rounds=8)
    found, launches = compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, settings, Listener())
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(launches) == 4
    assert [samples.load_order for samples in launches] == [balanced_order(ARMS, number)[0] for number in range(4)]
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


def test_percentiles_are_stated_from_64_and_662_samples_on():
    def arm(samples):
        few = launch(solo={"base": (5,) * samples, "candidate": (5,) * samples})
        return conclude([few, few.model_copy(update={"solo": {"base": (), "candidate": (5,)}})], UNDER).base

    stated = {samples: (arm(samples).p90_ms, arm(samples).p99_ms) for samples in (63, 64, 661, 662)}
    assert stated == {63: (None, None), 64: (5e-6, None), 661: (5e-6, None), 662: (5e-6, 5e-6)}


def test_a_cold_start_is_in_no_other_figure():
    slow = {"base": 10**12, "candidate": 10**12, "control": 10**12}
    cold = conclude([launch(cold_start_ns=slow)] * 2, UNDER)
    warm = conclude([launch()] * 2, UNDER)
    assert cold.base.cold_start_ms == 1e6
    assert cold.base.model_copy(update={"cold_start_ms": warm.base.cold_start_ms}) == warm.base


def test_an_interval_that_holds_1_demonstrates_nothing():
    found = conclude([launch(candidate=3_960_000), launch(candidate=4_040_000)] * 2, UNDER)
    assert found.speedup.low < 1 < found.speedup.high
    assert not found.speedup.demonstrated


def test_a_throttled_gpu_and_operators_on_the_cpu_are_told():
    gpu = Gpu(name="A GPU", memory_mib=1, driver="1", cuda="13.0")
    read = GpuReadings(
        gpu=gpu, readings=3, sm_clock_mhz_low=1, sm_clock_mhz_high=2, temperature_c_high=90, throttled=("power cap",)
    )
    busy = launch(gpu=read, on_cpu={"base": ("Shape", "Gather", "Shape")}, h2d_ns={"base": (1000, 3000)})
    found = conclude([busy, launch()], UNDER)
    assert found.warnings == (
        "the GPU was throttled in 1 of 2 launches: power cap",
        "operators of base ran on the CPU: Gather, Shape",
    )
    assert (found.base.h2d_ms, found.base.d2h_ms) == (0.002, None)


def failing_after(monkeypatch, finished):
    """Has so many launches end well, and the next one die."""

    def worker(*_args, **_options):
        if not finished:
            raise BackendError("measuring", found="it was killed by SIGKILL", accepted="a", remedy="free memory")
        return finished.pop()

    monkeypatch.setattr(comparing, "run_worker", worker)


def test_launches_that_finished_before_one_died_are_kept_and_can_be_judged(tmp_path, monkeypatch):
    inputs, kept = linear(8, tmp_path / "a.onnx"), tmp_path / "s.jsonl"
    failing_after(monkeypatch, [launch(), launch(candidate=2_000_100)])
    with pytest.raises(
        BackendError, match=r"SIGKILL; 2 of 4 launches .* kept in '.*s.jsonl';.* bench --judge .*s.jsonl"
    ):
        compare(
            tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, Bench(launches=4), None, SamplesFile(kept), ["a note"]
        )
    found = judge_samples(kept)
    assert found.speedup.estimate == pytest.approx(2.0, rel=1e-4)
    assert (found.speedup.launches, found.batch, found.warnings) == (2, 4, ("a note",))


def test_launches_that_nobody_kept_are_said_to_be_lost(tmp_path, monkeypatch):
    inputs = linear(8, tmp_path / "a.onnx")
    failing_after(monkeypatch, [launch()])
    with pytest.raises(BackendError, match=r"1 of 4 launches were finished and are lost;.*--samples FILE"):
        compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, Bench(launches=4))


def test_one_launch_is_not_judged(tmp_path):
    kept = SamplesFile(tmp_path / "s.jsonl")
    kept.begin(UNDER)
    kept.add(launch())
    with pytest.raises(InputError, match="1 finished launches; at least 2"):
        judge_samples(kept.path)


def test_samples_survive_a_line_cut_short_and_nothing_else(tmp_path):
    kept = SamplesFile(tmp_path / "s.jsonl")
    kept.begin(UNDER)
    kept.add(launch())
    kept.path.write_text(kept.path.read_text() + '{"load_order": ["ba')
    assert read_samples(kept.path) == (UNDER, (launch(),))
    for text, found in (
        ("", "an empty file"),
        ("{}", "no whole line"),
        ("{}\n", "line 1: "),
        (UNDER.model_dump_json() + "\n{}\n", "line 2: "),
    ):
        kept.path.write_text(text)
        with pytest.raises(InputError, match=found):
            read_samples(kept.path)


def test_launches_that_disagree_are_told():
    apart = [launch(candidate=1_000_000), launch(candidate=3_000_000)]
    assert conclude(apart * 2, UNDER).warnings[0].startswith("launches disagree, from ")


def test_an_odd_number_of_launches_is_told():
    assert conclude([launch()] * 3, UNDER).warnings[0].startswith("3 launches are an odd number")


def test_a_model_of_nan_is_not_compared(tmp_path):
    inputs = linear(8, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 8), np.nan, np.float32), "w0"))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(BackendError, match=r"b\.onnx' before timing it: NaN or infinity in its output 'y'"):
        compare(tmp_path / "a.onnx", tmp_path / "b.onnx", inputs, Bench(launches=4))


def test_a_gpu_that_is_absent_is_told_before_any_process_starts(tmp_path, monkeypatch):
    inputs = linear(8, tmp_path / "a.onnx")
    failing_after(monkeypatch, [])
    monkeypatch.setattr(
        "lrd_deploy.engines.execution_provider.lacking_for_cuda", lambda _gpu: ["no driver", "no library"]
    )
    with pytest.raises(BackendError, match=r"running on cuda:3: no driver; no library; .*or measure with --device cpu"):
        compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, Bench(device="cuda:3"))


def test_io_binding_is_measured_and_recorded(tmp_path):
    inputs = linear(64, tmp_path / "a.onnx")
    settings = Bench(launches=4, rounds=4, io_binding=True)
    found, launches = compare(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, settings)
    assert found.execution == Execution(io_binding=True)
    assert launches[0].h2d_ns == {}  # nothing is copied to a CPU
