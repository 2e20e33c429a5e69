"""Kernels that know their nodes: from literal graphs and traces, and from ONNX Runtime itself."""

import json

import numpy as np
import onnx
import pytest

from lrd_deploy.engines import SessionSettings, profiler, runtime
from lrd_deploy.engines.onnxruntime_profile import kernels_of, trace_calls
from lrd_deploy.errors import BackendError, UsageError
from tests.rewrite.graph_text import DOWN, PAIR, UP, model


def graph(*nodes, opsets='"" : 20, "com.microsoft.nchwc" : 1, "com.microsoft" : 1'):
    text = f"<ir_version: 10, opset_import: [{opsets}]> g (float[b,4] x) => (float[b,4] y) {{ {' '.join(nodes)} }}"
    return onnx.parser.parse_model(text).graph


def nodes_by_kernel(optimised, original):
    return {kernel.name: set(kernel.nodes) for kernel in kernels_of(optimised, original)}


ORIGINAL = graph('["c"] h = Conv (x, w)', '["r"] i = Relu (h)', '["d"] j = Conv (i, v)', '["r2"] y = Relu (j)')


def test_a_blocked_convolution_is_found_by_the_value_that_it_is_called_after():
    optimised = graph(
        '["i_nchwc"] t0 = com.microsoft.nchwc.Conv (x, w0)',
        '["j_nchwc"] t1 = com.microsoft.nchwc.Conv (t0, v0)',
        '["ReorderOutput"] j = com.microsoft.nchwc.ReorderOutput (t1)',
        '["r2"] y = Relu (j)',
    )
    assert nodes_by_kernel(optimised, ORIGINAL) == {
        "i_nchwc": {"c", "r"}, "j_nchwc": {"d"}, "ReorderOutput": set(), "r2": {"r2"},
    }  # fmt: skip


def test_a_fused_node_runs_all_that_lies_between_its_values():
    optimised = graph(
        '["fused c"] i = com.microsoft.FusedConv (x, w)', '["whatever"] y = com.microsoft.FusedConv (i, v)'
    )
    assert nodes_by_kernel(optimised, ORIGINAL) == {"fused c": {"c", "r"}, "whatever": {"d", "r2"}}


def test_a_node_whose_values_were_renamed_is_found_by_the_start_of_its_name():
    optimised = graph('["c/SomeFusion/"] other = com.microsoft.FusedConv (x, w)')
    assert nodes_by_kernel(optimised, ORIGINAL) == {"c/SomeFusion/": {"c"}}


def test_a_blocked_convolution_that_adds_its_fourth_input_runs_the_sum_and_its_activation():
    original = graph(
        '["a"] p = Conv (x, w)', '["b"] q = Conv (p, v)', '["sum"] s = Add (q, p)', '["r"] t = Relu (s)',
        '["end"] y = GlobalAveragePool (t)',
    )  # fmt: skip
    optimised = graph(
        '["p_nchwc"] t0 = com.microsoft.nchwc.Conv (x, w0)',
        '["q_nchwc"] t1 = com.microsoft.nchwc.Conv <activation = "Relu"> (t0, v0, bias, t0)',
        '["end"] y = GlobalAveragePool (t1)',
    )
    assert nodes_by_kernel(optimised, original) == {"p_nchwc": {"a"}, "q_nchwc": {"b", "sum", "r"}, "end": {"end"}}


def event(name, started, microseconds, category="Node"):
    suffix = "_kernel_time" if category == "Node" else ""
    return {"cat": category, "name": f"{name}{suffix}", "ts": started, "dur": microseconds, "args": {}}


def test_a_trace_is_cut_into_calls_and_half_a_microsecond_is_added_back():
    events = [event("session_initialization", 0, 9, "Session")]
    for started in (100, 200):
        events += [event("a", started, 3), event("b", started + 3, 0), event("model_run", started, 5, "Session")]
    assert trace_calls(json.dumps(events).encode()) == [{"a": 3500, "b": 500}] * 2


def test_what_runs_inside_a_loop_is_in_the_time_of_the_loop():
    events = [event("body", 11, 2), event("body", 14, 2), event("loop", 10, 8), event("after", 18, 1),
              event("model_run", 10, 9, "Session")]  # fmt: skip
    assert trace_calls(json.dumps(events).encode()) == [{"loop": 8500, "after": 1500}]


@pytest.mark.parametrize("trace", [b"", b'[{"cat": "Node"}]', b'[{"cat": "Node", "name": "a_ker', b"[3]"])
def test_a_trace_that_was_cut_short_is_refused(trace):
    with pytest.raises(BackendError, match="reading ONNX Runtime's profile"):
        trace_calls(trace)


@pytest.fixture
def pair(tmp_path):
    onnx.save(model(DOWN, UP, weights=PAIR), tmp_path / "pair.onnx")
    return tmp_path / "pair.onnx"


def test_every_call_is_timed_kernel_by_kernel_and_outputs_stay(pair, tmp_path):
    x = {"x": np.ones((2, 4), np.float32)}
    session = profiler("onnxruntime").load_profiled(pair, SessionSettings(), tmp_path)
    call = session.bind(x)
    call()
    np.testing.assert_array_equal(session.run(x)["y"], runtime("onnxruntime").load(pair, SessionSettings()).run(x)["y"])
    times = session.kernel_times()
    assert [kernel.nodes for kernel in times.kernels] == [("fc.down",), ("fc.up",)]
    assert len(times.calls_ns) == 3  # `bind` tries its inputs
    assert all(nanoseconds > 0 for call in times.calls_ns for nanoseconds in call)


def test_calls_that_the_trace_lacks_are_told(pair, tmp_path):
    session = profiler("onnxruntime").load_profiled(pair, SessionSettings(), tmp_path)
    session.bind({"x": np.ones((2, 4), np.float32)})
    session.calls += 5
    with pytest.raises(BackendError, match=r"1 of 6 calls in its trace; .* million events"):
        session.kernel_times()


def test_names_of_any_kind_come_back_whole(tmp_path):
    graph = model(DOWN, UP, weights=PAIR)
    names = ['a"b\\c\n', "[red]x[/red]/é"]
    for node, name in zip(graph.graph.node, names, strict=True):
        node.name = name
    onnx.save(graph, tmp_path / "m.onnx")
    session = profiler("onnxruntime").load_profiled(tmp_path / "m.onnx", SessionSettings(), tmp_path)
    session.run({"x": np.ones((1, 4), np.float32)})
    assert [kernel.nodes for kernel in session.kernel_times().kernels] == [(name,) for name in names]


def test_backends_that_cannot_profile_are_refused_with_those_that_can():
    with pytest.raises(UsageError, match="profiling a model: the backend 'tensorrt'; one of: onnxruntime;"):
        profiler("tensorrt")
