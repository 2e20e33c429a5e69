"""Ranks enforced by scripted latencies: no wall clock."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lrd_deploy.bench.latency_table import Conditions, LatencyRow, LatencyTable, MeasuredEnvironment
from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.chain_decisions import Decided
from lrd_deploy.pipeline.enforcing import GRANTED, Goal, _joined, enforce_ranks
from lrd_deploy.pipeline.onnx_bench import chain_latencies, deployed_bench
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import SVD, ChainDecision, Environment, KeepDense, LayerSignature, Tucker2
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.ranks.scripted import Scripted
from tests.rewrite.graph_text import DOWN, PAIR, UP, model

LINEAR = LayerSignature(kind="linear", in_channels=96, out_channels=96)
CONV = LayerSignature(kind="conv2d", in_channels=48, out_channels=48, kernel=(3, 3), padding=(1, 1), spatial=(6, 6))
BENCH = Bench(batch=2)


class Table:
    """Latencies by choice; what it does not hold is missing."""

    environment = None

    def __init__(self, latencies):
        self.latencies = latencies

    def latencies_ms(self, requests):
        return {
            (signature, choice): self.latencies[choice]
            for signature, choices in requests.items()
            for choice in choices
            if choice in self.latencies
        }


@pytest.fixture
def enforce(tmp_path):
    def run(graph, latency, goal=None, name="after.onnx"):
        source = tmp_path / f"before-{name}"
        onnx.save(graph, source)
        batches = random_batches(source, (1, 3))
        done = enforce_ranks(source, tmp_path / name, batches, goal or Goal(), latency, BENCH)
        return onnx.load(tmp_path / name), done.report

    return run


def linear(rank, decay=0.0, name="fc"):
    """A pair of that rank whose components fall off exponentially."""
    graph = layer_graph(LINEAR, SVD(rank=rank))
    for node, factor in zip(graph.graph.node, ("down", "up"), strict=True):
        node.name = f"{name}.{factor}"
    down = next(tensor for tensor in graph.graph.initializer if tensor.name == "w0")
    scales = np.exp(-decay * np.arange(rank, dtype=np.float32))
    down.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(down) * scales, "w0"))
    return graph


def ranks(graph):
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    return [dims[node.input[1]] for node in graph.graph.node]


def actions(report):
    return [(decision.chain, decision.action) for decision in report.enforced.decisions]


def test_a_rank_off_the_staircase_is_padded_where_the_next_step_is_faster(enforce):
    times = {SVD(rank=30): 3.0, SVD(rank=32): 2.0, SVD(rank=48): 2.5, SVD(rank=64): 3.0, KeepDense(): 4.0}
    after, report = enforce(linear(30), Table(times))
    assert ranks(after) == [(96, 32), (32, 96)]
    (decision,) = report.enforced.decisions
    assert (decision.action, decision.choice) == ("pad", SVD(rank=32))
    assert {option.choice: option.latency_ms for option in decision.options} == {
        choice: latency for choice, latency in times.items() if choice != SVD(rank=48)
    }
    assert decision.reason == "svd 32 takes 2 ms, svd 30 3 ms"
    assert report.relative_l2_difference < 1e-6


def test_factors_slower_than_the_layer_are_merged(enforce):
    after, report = enforce(linear(30), Table({SVD(rank=30): 3.0, SVD(rank=32): 2.9, KeepDense(): 1.0}))
    assert ranks(after) == [(96, 96)]
    assert actions(report) == [("fc", "merge")]


def test_what_is_fastest_stays_and_the_times_are_told(enforce):
    times = {SVD(rank=32): 2.0, SVD(rank=64): 2.5, KeepDense(): 4.0}
    after, report = enforce(linear(32), Table(times))
    assert not report.modified
    assert report.skipped[0].reason == "svd 32 takes 2 ms, svd 64 2.5 ms: not 5 % faster"
    assert ranks(after) == [(96, 32), (32, 96)]


def test_ranks_are_truncated_only_where_an_error_is_allowed(enforce):
    times = {SVD(rank=20): 3.0, SVD(rank=16): 1.0, SVD(rank=24): 2.9, KeepDense(): 4.0}
    graph = linear(20, decay=0.3)
    assert actions(enforce(graph, Table(times))[1]) == [("fc", "keep")]
    after, report = enforce(graph, Table(times), Goal(max_error=0.1))
    assert actions(report) == [("fc", "truncate")]
    assert ranks(after) == [(96, 16), (16, 96)]
    assert 0 < report.relative_l2_difference < 0.1
    (chosen,) = [one for one in report.enforced.decisions[0].options if one.choice == SVD(rank=16)]
    assert chosen.relative_error == pytest.approx(report.applied[0].relative_error, rel=1e-3)


def test_an_error_that_is_too_large_leaves_the_rank_alone(enforce):
    times = {SVD(rank=20): 3.0, SVD(rank=16): 1.0, KeepDense(): 4.0}
    assert actions(enforce(linear(20), Table(times), Goal(max_error=0.05))[1]) == [("fc", "keep")]


def test_truncations_that_move_outputs_further_than_predicted_are_taken_back(enforce, monkeypatch):
    times = {SVD(rank=20): 3.0, SVD(rank=16): 1.0, KeepDense(): 4.0}
    error = enforce(linear(20, decay=0.3), Table(times), Goal(max_error=0.5))[1].relative_l2_difference
    monkeypatch.setattr("lrd_deploy.pipeline.chain_decisions.truncation_error", lambda *_: error / 10)
    _, report = enforce(linear(20, decay=0.3), Table(times), Goal(max_error=error / 2))
    assert actions(report) == [("fc", "keep")]
    assert report.relative_l2_difference < 1e-6
    assert "outputs moved by more than" in report.enforced.notes[-1]


def test_what_a_file_was_truncated_by_before_counts(enforce, monkeypatch):
    times = {SVD(rank=20): 3.0, SVD(rank=16): 1.0, KeepDense(): 4.0}
    graph = linear(20, decay=0.3)
    error = enforce(graph, Table(times), Goal(max_error=0.5))[1].relative_l2_difference
    monkeypatch.setattr("lrd_deploy.pipeline.chain_decisions.truncation_error", lambda *_: error / 10)
    fresh, before = Goal(max_error=1.01 * error), graph.metadata_props.add(key=GRANTED, value="0")
    assert actions(enforce(graph, Table(times), fresh)[1]) == [("fc", "truncate")]
    before.value = repr(0.5 * error)  # leaves room for 0.88 of the error, which the prediction hides
    assert actions(enforce(graph, Table(times), fresh)[1]) == [("fc", "keep")]


def neighbours():
    """A named pair and right after it an unnamed one: merged, the first looks like a factor of the second."""
    return model(
        '["one.down"] a = Gemm (x, w0)', '["one.up"] b = Gemm (a, w1)', "c = Gemm (b, w2)", "y = Gemm (c, w3)",
        inputs="float[batch,40] x", outputs="float[batch,40] y",
        weights=(("w0", (40, 30)), ("w1", (30, 40)), ("w2", (40, 5)), ("w3", (5, 40))),
    )  # fmt: skip


@pytest.mark.parametrize("max_error", [None, 0.05, 0.3])
@pytest.mark.parametrize("quantum", [8, 16, 64])
@pytest.mark.parametrize("overhead_ms", [0.0, 0.5])
def test_rewriting_twice_changes_nothing(enforce, max_error, quantum, overhead_ms):
    source = Scripted(quantum, overhead_ms=overhead_ms, ms_per_gmac=1000.0)
    tucker = layer_graph(CONV, Tucker2(rank_in=19, rank_out=27))
    for graph in (linear(30, decay=0.05), linear(71, decay=0.1), tucker, neighbours()):
        once, _ = enforce(graph, source, Goal(max_error=max_error))
        twice, report = enforce(once, source, Goal(max_error=max_error))
        assert not report.modified
        assert twice == once


def test_what_a_decision_changed_is_looked_at_again(enforce):
    times = {SVD(rank=30): 3.0, KeepDense(): 1.0, SVD(rank=5): 1.0, Tucker2(rank_in=40, rank_out=5): 2.0}
    after, report = enforce(neighbours(), Table(times))
    assert actions(report) == [("one", "merge"), ("Gemm_2 + Gemm_3", "keep"), ("one + Gemm_2 + Gemm_3", "merge")]
    assert len(after.graph.node) == 1


def test_a_decision_that_no_rule_carries_out_ends_the_search(enforce, monkeypatch):
    decision = ChainDecision(chain="fc", action="pad", choice=None, signature=None, options=(), reason="")
    nobodys = Decided(decision, PadRank(64, frozenset({"nobody"})))
    monkeypatch.setattr("lrd_deploy.pipeline.enforcing.decide", lambda *_: [nobodys])
    assert not enforce(linear(30), Table({}))[1].modified


def test_a_file_truncated_within_an_error_is_not_truncated_again_within_it(enforce):
    times = Table({SVD(rank=44): 3.0, SVD(rank=40): 2.0, SVD(rank=32): 1.0, KeepDense(): 4.0})
    graph = linear(44, decay=0.1)
    options = enforce(graph, times, Goal(max_error=1.0))[1].enforced.decisions[0].options
    (error,) = (option.relative_error for option in options if option.choice == SVD(rank=32))
    almost = 0.99 * error  # room for rank 40, and from there for rank 32 if it were counted anew
    once, _ = enforce(graph, times, Goal(max_error=almost))
    assert ranks(once) == [(96, 40), (40, 96)]
    assert {entry.key: entry.value for entry in once.metadata_props} == {GRANTED: repr(almost)}
    again = enforce(once, times, Goal(max_error=almost))[1]
    assert not again.modified
    assert again.enforced.notes == (f"nothing was truncated: an earlier call has used up the error of {almost:g}",)
    assert not enforce(once, times, Goal(max_error=almost / 2))[1].modified
    onwards, _ = enforce(once, times, Goal(max_error=2 * error))
    assert ranks(onwards) == [(96, 32), (32, 96)]


@pytest.mark.parametrize("value", ["rubbish", "nan", "-1", "inf"])
def test_metadata_that_say_no_error_are_refused(enforce, value):
    graph = linear(20)
    graph.metadata_props.add(key=GRANTED, value=value)
    with pytest.raises(InputError, match=f"{GRANTED} = '{value}'; a number from 0 on"):
        enforce(graph, Table({SVD(rank=20): 1.0, KeepDense(): 2.0}), Goal(max_error=0.1))


def test_every_chain_is_decided_by_its_own_times(enforce):
    graph = model(
        '["one.down"] a = Gemm (x, w0)', '["one.up"] b = Gemm (a, w1)', '["r"] c = Relu (b)',
        '["two.down"] d = Gemm (c, w2)', '["two.up"] y = Gemm (d, w3)',
        inputs="float[batch,40] x", outputs="float[batch,24] y",
        weights=(("w0", (40, 6)), ("w1", (6, 40)), ("w2", (40, 7)), ("w3", (7, 24))),
    )  # fmt: skip
    times = {SVD(rank=6): 2.0, SVD(rank=8): 1.0, SVD(rank=7): 1.05, KeepDense(): 3.0}
    _, report = enforce(graph, Table(times))
    assert actions(report)[:2] == [("one", "pad"), ("two", "keep")]
    assert [entry.node for entry in report.applied] == ["one"]
    assert [entry.node for entry in report.skipped] == ["two"]


def test_a_chain_that_cannot_be_timed_stays_with_the_reason(enforce):
    graph = model(DOWN.replace("transB=1", "transB=1, alpha=0.5"), UP, weights=PAIR)
    _, report = enforce(graph, Table({}))
    assert report.skipped[0].reason == "'fc.down' scales or transposes its input"
    assert report.enforced.decisions[0].options == ()


def test_a_chain_without_a_latency_of_its_own_stays_with_the_reason(enforce):
    _, report = enforce(linear(30), Table({SVD(rank=32): 1.0, KeepDense(): 2.0}))
    assert report.skipped[0].reason == "no latency of svd 30 is known that could be compared with"


def test_a_quantum_of_ones_own_is_the_only_one_tried(enforce):
    times = {SVD(rank=30): 3.0, SVD(rank=32): 1.0, SVD(rank=60): 2.0, KeepDense(): 4.0}
    after, _ = enforce(linear(30), Table(times), Goal(quanta=(60,)))
    assert ranks(after) == [(96, 60), (60, 96)]


def test_a_file_that_fails_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    onnx.save(linear(30), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    batches = random_batches(tmp_path / "m.onnx", (1,))
    monkeypatch.setattr("lrd_deploy.pipeline.enforcing.rounding_tolerance", lambda _model: -1.0)
    with pytest.raises(Exception, match="outputs that differ"):
        enforce_ranks(tmp_path / "m.onnx", tmp_path / "m.onnx", batches, Goal(), Table({}), BENCH)
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def stored(path, fingerprint, rows):
    here = Environment(fingerprint=fingerprint, cpu="other", cores=2, system="s", python="3", packages={})
    table = LatencyTable()
    table.add(MeasuredEnvironment(environment=here))
    conditions = Conditions(backend="onnxruntime", batch=2, threads=1, fingerprint=fingerprint)
    for choice, latency in rows.items():
        table.add(
            LatencyRow(
                conditions=conditions,
                signature=LINEAR,
                choice=choice,
                latency_ms=latency,
                spread=0,
                settled=True,
                samples=9,
            )
        )
    table.write(path)


def test_a_table_of_another_machine_decides_without_measuring(enforce, tmp_path):
    table = tmp_path / "t.jsonl"
    stored(table, "elsewhere", {SVD(rank=30): 3.0, SVD(rank=32): 2.0, KeepDense(): 4.0})
    before = table.read_bytes()
    with chain_latencies(table, BENCH, SilentObserver()) as latency:
        _, report = enforce(linear(30), latency)
    assert actions(report)[0] == ("fc", "pad")
    assert report.enforced.measured_on.fingerprint == "elsewhere"
    assert any("another machine" in note for note in report.enforced.notes)
    assert table.read_bytes() == before


def test_a_table_without_the_layer_is_refused(enforce, tmp_path):
    stored(tmp_path / "t.jsonl", "elsewhere", {SVD(rank=30): 3.0})
    with (
        chain_latencies(tmp_path / "t.jsonl", BENCH, SilentObserver()) as latency,
        pytest.raises(InputError, match="a dense row for every layer"),
    ):
        enforce(linear(30), latency)


def test_a_table_of_another_batch_is_refused(tmp_path):
    stored(tmp_path / "t.jsonl", "elsewhere", {KeepDense(): 4.0})
    with (
        pytest.raises(InputError, match="rows of one machine"),
        chain_latencies(tmp_path / "t.jsonl", Bench(batch=4), SilentObserver()),
    ):
        pass


def test_the_batch_that_a_model_fixes_is_the_one_deployed():
    fixed = model("y = Relu (x)", inputs="float[3,4] x", outputs="float[3,4] y")
    free = model("y = Relu (x)")
    assert deployed_bench(fixed, None, 2) == Bench(batch=3, threads=2)
    assert deployed_bench(fixed, 3, None) == Bench(batch=3)
    assert deployed_bench(free, 5, None) == Bench(batch=5)
    assert deployed_bench(free, None, None) == Bench()
    with pytest.raises(UsageError, match="--batch 8; 3, which the input 'x' fixes"):
        deployed_bench(fixed, 8, None)


def test_chains_that_become_the_same_are_looked_for_once():
    pads = [PadRank(8, frozenset("a")), PadRank(16, frozenset("b")), PadRank(8, frozenset("c"))]
    rules = [*pads, MergeFactors(frozenset("d")), MergeFactors(frozenset("e"))]
    assert _joined(rules) == [
        PadRank(8, frozenset("ac")),
        PadRank(16, frozenset("b")),
        MergeFactors(frozenset("de")),
    ]
