"""Compression with scripted latencies and comparisons: no wall clock."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.difference import compare_outputs
from lrd_deploy.errors import InputError, StorageError, UsageError
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.compressing import Measuring, compress
from lrd_deploy.pipeline.onnx_samples import stored_samples
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.records import Comparison, Environment, KeepDense, Latency, Ratio
from tests.ranks.scripted import Scripted, dense_latency_of, latency_of
from tests.rewrite.graph_text import model

WIDTH = 48
LATENCY = Latency(min_ms=1.0, p50_ms=1.0, p90_ms=None, p99_ms=None, cold_start_ms=1.0, throughput_per_s=1.0, samples=1)
HERE = Environment(fingerprint="f", cpu="scripted", cores=1, system="s", python="3", packages={})


def tokens(decay=0.4):
    """A layer on tokens whose number is open."""
    graph = model(
        '["one"] a = MatMul (x, w1)', '["r1"] b = Relu (a)', '["two"] y = MatMul (b, w2)',
        inputs=f"float[batch,sequence,{WIDTH}] x", outputs=f"float[batch,sequence,{WIDTH}] y",
        weights=(("w1", (WIDTH, WIDTH)), ("w2", (WIDTH, WIDTH))),
    )  # fmt: skip
    return with_decay(graph, decay)


def network(decay=0.4):
    """Three layers whose singular values fall off exponentially, and one too small to factorise."""
    graph = model(
        '["one"] a = Gemm <transB=1> (x, w1, b1)', '["r1"] b = Relu (a)',
        '["two"] c = Gemm <transB=1> (b, w2, b2)', '["r2"] d = Relu (c)',
        '["three"] e = MatMul (d, w3)', '["head"] y = Gemm <transB=1> (e, w4)',
        inputs=f"float[batch,{WIDTH}] x", outputs="float[batch,4] y",
        weights=(("w1", (WIDTH, WIDTH)), ("b1", (WIDTH,)), ("w2", (WIDTH, WIDTH)), ("b2", (WIDTH,)),
                 ("w3", (WIDTH, WIDTH)), ("w4", (4, WIDTH))),
    )  # fmt: skip
    return with_decay(graph, decay)


def with_decay(graph, decay):
    for number, tensor in enumerate(graph.graph.initializer):
        array = np.random.default_rng(number).standard_normal(tuple(tensor.dims))
        if array.shape == (WIDTH, WIDTH):
            u, _, vt = np.linalg.svd(array)
            array = WIDTH * (u * np.exp(-decay * np.arange(WIDTH))) @ vt / 4
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return graph


class Timer:
    """The whole model takes what its layers take together."""

    def __init__(self, source):
        self.source = source

    def latencies_ms(self, plan):
        sized = plan.model_copy(update={"layers": tuple(layer for layer in plan.layers if layer.signature)})
        return dense_latency_of(self.source, sized.layers), latency_of(self.source, sized)


def comparison(estimate, low=None, high=None):
    speedup = Ratio(
        estimate=estimate, low=low or estimate * 0.99, high=high or estimate * 1.01, confidence=0.95,
        demonstrated=True, launches=4,
    )  # fmt: skip
    control = speedup.model_copy(update={"estimate": 1.0, "demonstrated": False})
    return Comparison(
        base=LATENCY, candidate=LATENCY, speedup=speedup, control=control, backend="onnxruntime", batch=4, threads=1,
        per_launch_speedup=(estimate,), warnings=(), environment=HERE,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def call(goal, speedups=(2.5,), graph=None, timer=True, inputs=None, target=None):
        source = tmp_path / "dense.onnx"
        onnx.save(graph or network(), source)
        if inputs is None:
            inputs = np.random.default_rng(0).standard_normal((240, WIDTH)).astype(np.float32) + 0.5
        np.savez(tmp_path / "x.npz", x=inputs)
        latency, script = Scripted(8, overhead_ms=1e-5), iter(speedups)
        measuring = Measuring(latency, Timer(latency) if timer else None, lambda _a, _b: comparison(next(script)))
        return compress(
            source,
            target or tmp_path / "fast.onnx",
            LatencyRank(**goal, quantum=8),
            stored_samples(tmp_path / "x.npz", 4),
            measuring,
            SilentObserver(),
        )

    return call


def test_too_few_samples_to_compress_by_are_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"compressing .*: 4 samples to calibrate by; at least 8 in full batches"):
        run({"target_speedup": 1.8}, inputs=np.ones((8, WIDTH), np.float32))
    assert not (tmp_path / "fast.onnx").exists()


def test_a_speedup_is_reached_with_the_layers_that_give_it(run, tmp_path):
    done = run({"target_speedup": 1.8})
    assert [layer.name for layer in done.layers] == ["one", "two", "three", "head"]
    assert {entry.node for entry in done.skipped} >= {"head"}
    assert all(entry.reason for entry in done.skipped)
    assert done.speedup.estimate == 2.5
    written = onnx.load(tmp_path / "fast.onnx")
    chosen = {layer.name for layer in done.layers if not isinstance(layer.choice, KeepDense)}
    assert {node.name.partition(".")[0] for node in written.graph.node if node.name.endswith(".down")} == chosen
    assert {entry.node for entry in done.bias_corrections} == chosen
    assert done.parameters.lowrank < done.parameters.dense
    assert done.path == Path("fast.onnx")


def test_the_error_that_is_told_is_that_of_the_file_on_the_samples_held_out(run, tmp_path):
    done = run({"target_speedup": 1.8})
    sessions = [
        runtime("onnxruntime").load(tmp_path / name, SessionSettings()).run for name in ("dense.onnx", "fast.onnx")
    ]
    held_out = stored_samples(tmp_path / "x.npz", 4).held_out
    again = compare_outputs(*sessions, held_out, tolerance=1.0)
    assert done.output_error == pytest.approx(again.relative_l2, rel=1e-4)
    assert (done.calibration_samples, done.held_out_samples) == (180, 60)
    assert done.data == "'x.npz'"


def test_biases_are_corrected_where_that_helps_and_the_effect_is_told(run):
    done = run({"target_speedup": 2.2})
    assert done.bias_corrected
    assert done.output_error < done.output_error_uncorrected
    corrected = {entry.node: entry for entry in done.bias_corrections}
    for name in {"one", "two"} & corrected.keys():
        assert corrected[name].mean_error_after < corrected[name].mean_error_before
    if "three" in corrected:
        assert "no Add of a constant" in corrected["three"].reason


def test_outputs_stay_within_the_error_and_use_most_of_it(run):
    for limit in (0.02, 0.2):
        done = run({"max_error": limit})
        assert done.output_error <= limit
        assert done.goal == f"an error within {limit:g}"
    assert done.output_error > 0.02


def test_a_larger_error_never_costs_speed(run):
    predicted = [
        sum(layer.predicted_latency_ms for layer in run({"max_error": limit}).layers) for limit in (0.01, 0.05, 0.3)
    ]
    assert predicted == sorted(predicted, reverse=True)


def test_an_error_that_no_plan_is_within_is_refused_with_the_nearest(run, tmp_path):
    with pytest.raises(
        UsageError, match=r"at most 1e-07 .* the mildest plan that makes the model faster is off by (\S+);"
    ) as caught:
        run({"max_error": 1e-7}, graph=network(decay=0.05))
    assert not (tmp_path / "fast.onnx").exists()
    nearest = float(caught.value.remedy.removeprefix("allow ").partition(",")[0])
    assert run({"max_error": nearest}, graph=network(decay=0.05)).output_error <= nearest


def test_a_speedup_out_of_reach_is_refused_with_the_nearest(run, tmp_path):
    with pytest.raises(UsageError, match=r"a speedup of 50; the fastest combination of candidates measures"):
        run({"target_speedup": 50})
    assert not (tmp_path / "fast.onnx").exists()


def test_fresh_processes_have_the_last_word_on_the_speedup(run):
    done = run({"target_speedup": 1.5}, speedups=(1.2, 1.6))
    assert done.speedup.estimate == 1.6
    milder = run({"target_speedup": 1.5}, speedups=(1.6,))
    assert done.parameters.lowrank < milder.parameters.lowrank


def test_a_speedup_that_fresh_processes_never_show_is_refused_with_what_they_show(run, tmp_path):
    with pytest.raises(
        UsageError, match=r"a speedup of 1\.5; the fastest plan tried measures 1\.30× in fresh processes"
    ):
        run({"target_speedup": 1.5}, speedups=(1.3, 1.2, 1.25))
    assert not (tmp_path / "fast.onnx").exists()


def test_latencies_of_another_machine_are_not_held_against_this_ones_measurement(run):
    done = run({"target_speedup": 1.5}, speedups=(1.1,), timer=False)
    assert done.speedup.estimate == 1.1
    assert done.notes[-1] == "planned for another machine; on this one it measures 1.10×"


def test_a_plan_that_measures_slower_than_dense_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"a plan that measures 0\.90× in fresh processes, slower than dense"):
        run({"max_error": 0.1}, speedups=(0.9,))
    assert not (tmp_path / "fast.onnx").exists()


def test_the_model_itself_is_not_written_over(run, tmp_path):
    with pytest.raises(UsageError, match="the model that this is made of"):
        run({"max_error": 0.1}, speedups=(), target=tmp_path / "dense.onnx")


def test_a_target_that_is_a_folder_is_told_before_the_work(run, tmp_path):
    with pytest.raises(UsageError, match="a folder; a path for a file"):
        run({"max_error": 0.1}, speedups=(), target=tmp_path)


def test_a_model_that_factors_make_no_faster_is_refused(run):
    graph = model('["fc"] y = Gemm <transB=1> (x, w)', inputs=f"float[batch,{WIDTH}] x", outputs="float[batch,2] y",
                  weights=(("w", (2, WIDTH)),))  # fmt: skip
    with pytest.raises(UsageError, match="no form of any layer that is faster than dense"):
        run({"max_error": 0.1}, graph=graph)


def test_samples_that_are_not_the_models_are_refused(run):
    with pytest.raises(InputError, match="x \\(batch, 48\\)"):
        run({"max_error": 0.1}, inputs=np.zeros((20, 3), np.float32))


def test_weights_that_are_not_finite_are_refused(run):
    graph = network()
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((WIDTH, WIDTH), np.nan, np.float32), "w1"))
    with pytest.raises(InputError, match="weights that are NaN or infinite"):
        run({"max_error": 0.1}, graph=graph)


def test_a_layer_whose_weight_is_computed_stays_dense_and_the_others_do_not(run):
    graph = network()
    graph.graph.node[4].input[1] = "w3n"
    graph.graph.node.insert(0, onnx.helper.make_node("Neg", ["w3"], ["w3n"], name="negated"))
    done = run({"target_speedup": 1.3}, graph=graph)
    assert {entry.node: entry.reason for entry in done.skipped}["three"] == "its weight is not a constant"


def test_a_target_that_cannot_be_written_is_told_before_the_work(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="writing"):
        run({"max_error": 0.1}, speedups=(), target=tmp_path / "file" / "o.onnx")


def test_work_that_is_cut_short_leaves_no_target_and_nothing_beside_it(run, tmp_path):
    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run({"target_speedup": 1.5}, speedups=interrupted())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.onnx", "x.npz"]


def test_layers_on_tokens_are_timed_at_as_many_as_the_samples_have(run, tmp_path):
    samples = np.random.default_rng(0).standard_normal((24, 5, WIDTH)).astype(np.float32)
    done = run({"target_speedup": 1.5}, graph=tokens(), inputs=samples)
    assert {layer.signature.spatial for layer in done.layers} == {(5,)}
    written = onnx.load(tmp_path / "fast.onnx")
    (sequence,) = (value.type.tensor_type.shape.dim[1] for value in written.graph.input)
    assert sequence.dim_param == "sequence"  # the file still takes any number


def test_names_that_are_no_names_are_kept_as_data(run):
    graph = network()
    graph.graph.node[0].name = "[bold]one[/bold] {x}"
    done = run({"target_speedup": 2.2}, graph=graph)
    assert "[bold]one[/bold] {x}" in {layer.name for layer in done.layers}


def test_pytorch_is_not_imported(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    code = f"""
import sys
from tests.pipeline.test_compressing import Timer, comparison
from tests.ranks.scripted import Scripted
from pathlib import Path
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.compressing import Measuring, compress
from lrd_deploy.pipeline.onnx_samples import random_samples
from lrd_deploy.recipe import LatencyRank
import lrd_deploy.report.compression
source = Scripted(8, overhead_ms=1e-5)
measuring = Measuring(source, Timer(source), lambda a, b: comparison(2.5))
model = Path({str(tmp_path)!r}, "m.onnx")
goal = LatencyRank(target_speedup=1.5, quantum=8)
done = compress(model, model.with_name("o.onnx"), goal, random_samples(model, 8), measuring, SilentObserver())
assert done.data.startswith("random inputs")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
