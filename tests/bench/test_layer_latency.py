from collections import Counter
from itertools import chain, cycle, repeat
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lrd_deploy.bench.latency_table import LatencyTable
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.layer_latency import EngineCalls, MeasuredLatency
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.fake import FakeBackend
from lrd_deploy.models.survey import survey
from lrd_deploy.observer import SilentObserver
from lrd_deploy.ranks.cost import output_size
from lrd_deploy.records import SVD, KeepDense, LayerSignature, Tucker2

SIGNATURE = LayerSignature(
    kind="conv2d", in_channels=32, out_channels=32, kernel=(3, 3), padding=(1, 1), spatial=(4, 4)
)
CHOICES = (KeepDense(), Tucker2(rank_in=16, rank_out=16))
SCRIPT = {"dense.onnx": 5.0, "tucker2_16_16.onnx": 2.0}


def measured(store, **scripts):
    backend = FakeBackend({name: repeat(latency) for name, latency in (SCRIPT | scripts).items()})
    layers = EngineCalls(backend)
    return MeasuredLatency(batch=2, threads=1, store=store, layers=layers, clock=backend.clock), backend


def test_every_choice_gets_its_latency(tmp_path):
    latency, _ = measured(tmp_path / "t.jsonl")
    assert latency.latencies_ms({SIGNATURE: CHOICES}) == {
        (SIGNATURE, CHOICES[0]): 5.0,
        (SIGNATURE, CHOICES[1]): 2.0,
    }


def test_stored_rows_are_not_measured_again(tmp_path):
    measured(tmp_path / "t.jsonl")[0].latencies_ms({SIGNATURE: CHOICES})
    again, backend = measured(tmp_path / "t.jsonl", **{"dense.onnx": 99.0})
    assert again.latencies_ms({SIGNATURE: CHOICES})[SIGNATURE, KeepDense()] == 5.0
    assert backend.log == []


def test_progress_tells_of_what_is_timed_and_of_nothing_else(tmp_path):
    class Told(SilentObserver):
        def progress(self, *report):
            reports.append(report)

    reports = []
    latency, _ = measured(tmp_path / "t.jsonl")
    latency.observer = Told()
    for _ in range(2):
        latency.latencies_ms({SIGNATURE: CHOICES})
    assert reports == [("timing layers", 1, 1, "2 timings")]


def test_rows_of_other_conditions_are_not_used(tmp_path):
    measured(tmp_path / "t.jsonl")[0].latencies_ms({SIGNATURE: CHOICES})
    other, backend = measured(tmp_path / "t.jsonl")
    other.threads = 2
    other.latencies_ms({SIGNATURE: CHOICES})
    assert backend.log


def test_a_later_request_is_scaled_to_the_first_dense(tmp_path):
    measured(tmp_path / "t.jsonl")[0].latencies_ms({SIGNATURE: CHOICES[:1]})
    slower, _ = measured(tmp_path / "t.jsonl", **{"dense.onnx": 10.0, "tucker2_16_16.onnx": 4.0})
    latencies = slower.latencies_ms({SIGNATURE: CHOICES})
    assert latencies[SIGNATURE, CHOICES[0]] == 5.0
    assert latencies[SIGNATURE, CHOICES[1]] == pytest.approx(2.0)


def restless(store):
    jumps = (latency for _ in repeat(None) for latency in [2.0] * 12 + [4.0] * 12)
    backend = FakeBackend({"dense.onnx": repeat(5.0), "tucker2_16_16.onnx": jumps})
    return MeasuredLatency(batch=2, threads=1, store=store, layers=EngineCalls(backend), clock=backend.clock)


def test_timings_that_will_not_settle_are_kept_but_not_used_and_told(tmp_path):
    latency = restless(tmp_path / "t.jsonl")
    assert latency.latencies_ms({SIGNATURE: CHOICES}) == {(SIGNATURE, KeepDense()): 5.0}
    (note,) = latency.notes
    assert note.startswith("timings that would not settle were left out: 1, ")
    assert "tucker2 16, 16" in note
    (row,) = [row for row in LatencyTable.read(tmp_path / "t.jsonl").rows.values() if row.choice == CHOICES[1]]
    assert not row.settled


def test_what_would_not_settle_when_a_table_was_written_is_told_of_and_timed_again_only_to_retry(tmp_path):
    restless(tmp_path / "t.jsonl").latencies_ms({SIGNATURE: CHOICES})
    later, backend = measured(tmp_path / "t.jsonl")
    assert later.latencies_ms({SIGNATURE: CHOICES}) == {(SIGNATURE, KeepDense()): 5.0}
    assert not backend.log
    assert later.notes[0].startswith("timings that would not settle were left out: 1, ")
    again, _ = measured(tmp_path / "t.jsonl")
    again.retry = True
    assert (SIGNATURE, CHOICES[1]) in again.latencies_ms({SIGNATURE: CHOICES})


def test_what_settled_in_another_table_is_used(tmp_path):
    restless(tmp_path / "t.jsonl").latencies_ms({SIGNATURE: CHOICES})
    measured(tmp_path / "calm.jsonl")[0].latencies_ms({SIGNATURE: CHOICES})
    later, _ = measured(tmp_path / "t.jsonl")
    later.known = LatencyTable.read(tmp_path / "calm.jsonl")
    assert (SIGNATURE, CHOICES[1]) in later.latencies_ms({SIGNATURE: CHOICES})
    assert not later.notes


def test_only_what_spread_is_timed_again_and_what_never_settles_not_a_third_time(tmp_path):
    scripts = {
        "dense.onnx": repeat(5.0),
        "svd_8.onnx": repeat(1.0),
        "svd_16.onnx": chain(([2.0] * 12 + [4.0] * 12) * 3, repeat(3.0)),
        "svd_24.onnx": cycle([2.0] * 12 + [4.0] * 12),
    }
    linear = LayerSignature(kind="linear", in_channels=64, out_channels=64, spatial=(1,))
    backend = FakeBackend(scripts)
    latency = MeasuredLatency(
        batch=2, threads=1, store=tmp_path / "t.jsonl", layers=EngineCalls(backend), clock=backend.clock
    )
    choices = (KeepDense(), *(SVD(rank=rank) for rank in (8, 16, 24)))
    found = latency.latencies_ms({linear: choices})
    assert SVD(rank=24) not in {choice for _, choice in found}
    assert found[linear, SVD(rank=8)] == 1.0
    assert found[linear, SVD(rank=16)] == 3.0
    times = Counter(backend.log)
    again = min(times[f"{name}.onnx"] for name in ("dense", "svd_16", "svd_24"))
    assert again > times["svd_8.onnx"] + 30  # 15 rounds of four calls, less the longer warm-up of a short call
    latency.latencies_ms({linear: choices})
    assert Counter(backend.log) == times


def test_a_dense_layer_that_will_not_settle_is_used_and_told(tmp_path):
    jumps = (latency for _ in repeat(None) for latency in [2.0] * 12 + [4.0] * 12)
    backend = FakeBackend({"dense.onnx": jumps, "tucker2_16_16.onnx": repeat(1.0)})
    latency = MeasuredLatency(
        batch=2, threads=1, store=tmp_path / "t.jsonl", layers=EngineCalls(backend), clock=backend.clock
    )
    assert (SIGNATURE, KeepDense()) in latency.latencies_ms({SIGNATURE: CHOICES})
    assert latency.notes[0].startswith("timings of dense layers that would not settle are used all the same: 1, ")


def test_rows_of_other_tables_are_used_under_the_same_conditions(tmp_path):
    measured(tmp_path / "t.jsonl")[0].latencies_ms({SIGNATURE: CHOICES})
    elsewhere, backend = measured(tmp_path / "empty.jsonl")
    elsewhere.known = LatencyTable.read(tmp_path / "t.jsonl")
    assert elsewhere.latencies_ms({SIGNATURE: CHOICES})[SIGNATURE, CHOICES[1]] == 2.0
    assert backend.log == []


@pytest.mark.parametrize(
    ("signature", "choice"),
    [
        (SIGNATURE, KeepDense()),
        (SIGNATURE, Tucker2(rank_in=4, rank_out=8)),
        (SIGNATURE.model_copy(update={"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2)}), SVD(rank=4)),
        (SIGNATURE.model_copy(update={"groups": 32}), KeepDense()),
        (LayerSignature(kind="linear", in_channels=8, out_channels=6), SVD(rank=3)),
        (LayerSignature(kind="linear", in_channels=8, out_channels=6, spatial=(5,)), SVD(rank=3)),
        (LayerSignature(kind="linear", in_channels=8, out_channels=6, spatial=(5,)), KeepDense()),
    ],
    ids=str,
)
def test_the_graph_that_is_timed_is_valid_and_has_the_layers_shape(tmp_path, signature, choice):
    model = layer_graph(signature, choice)
    onnx.checker.check_model(model, full_check=True)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    output = runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings()).run({"x": layer_input(signature, 2)})
    size = output_size(signature)
    channels_first = (2, signature.out_channels, *size)
    assert output["y"].shape == (channels_first if signature.kind == "conv2d" else (2, *size, signature.out_channels))


def test_the_timed_nodes_are_those_that_an_export_has(tmp_path):
    from lrd_deploy.decompose.layers import Tucker2Conv2d
    from lrd_deploy.export.torch_export import export_onnx

    layer = nn.Sequential(Tucker2Conv2d(nn.Conv2d(32, 32, 3, padding=1), CHOICES[1])).eval()
    example = torch.zeros(2, 32, 4, 4)
    export_onnx(layer, example, tmp_path / "m.onnx", opset=20)
    exported = [(node.op_type, len(node.input)) for node in onnx.load(Path(tmp_path, "m.onnx")).graph.node]
    signature = survey(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)), example)[0].signature
    assert [(node.op_type, len(node.input)) for node in layer_graph(signature, CHOICES[1]).graph.node] == exported


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_layer_in_fp16_is_fp16_throughout(tmp_path, choice):
    model = layer_graph(SIGNATURE, choice, "fp16")
    onnx.checker.check_model(model, full_check=True)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    inputs = {"x": layer_input(SIGNATURE, 2, "fp16")}
    assert runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings()).run(inputs)["y"].dtype == np.float16
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_precisions_are_filed_apart(tmp_path):
    latency, backend = measured(tmp_path / "t.jsonl")
    latency.latencies_ms({SIGNATURE: CHOICES})
    half = EngineCalls(backend, precision="fp16")
    other = MeasuredLatency(batch=2, threads=1, store=tmp_path / "t.jsonl", layers=half, clock=backend.clock)
    backend.log.clear()
    other.latencies_ms({SIGNATURE: CHOICES})
    assert backend.log
    assert other.conditions.precision == "fp16"


def test_random_weights_keep_activations_at_their_scale():
    graph = layer_graph(SIGNATURE, KeepDense()).graph
    weight = onnx.numpy_helper.to_array(graph.initializer[0])
    assert np.linalg.norm(weight[0]) == pytest.approx(1.0, abs=0.3)
