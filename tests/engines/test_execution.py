from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from lrd_deploy.bench.latency_table import Conditions
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines import execution_provider as placed
from lrd_deploy.engines.execution_provider import check_placement, demand_placement_, lacking_for_cuda, providers
from lrd_deploy.engines.io_binding import BoundCall
from lrd_deploy.errors import BackendError, UsageError
from lrd_deploy.records import Execution, KeepDense, LayerSignature

CUDA = Execution.on("cuda")
SIGNATURE = LayerSignature(kind="linear", in_channels=8, out_channels=4)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(layer_graph(SIGNATURE, KeepDense()), path)
    return path


def test_what_is_not_said_is_what_serving_does():
    assert Execution.on("cpu") == Execution()
    assert Execution.on("cuda") == Execution(device="cuda:0", io_binding=True, tf32=True)
    assert Execution.on("cuda:1", io_binding=False, tf32=False) == Execution(device="cuda:1")
    assert Execution.on("cuda:007").gpu == 7


@pytest.mark.parametrize(
    ("device", "options", "found"),
    [
        ("gpu", {}, "the device 'gpu'; cpu, cuda or cuda:N"),
        ("cuda:-1", {}, "the device 'cuda:-1'"),
        ("cuda:\u0661", {}, "the device 'cuda:"),
        ("cpu", {"cuda_graph": True}, "a CUDA graph on the CPU"),
        ("cpu", {"tf32": True}, "TF32 on the CPU"),
        ("cuda", {"cuda_graph": True, "io_binding": False}, "a CUDA graph without IO binding"),
    ],
)
def test_what_does_not_go_together_is_refused(device, options, found):
    with pytest.raises(UsageError, match=found):
        Execution.on(device, **options)


def test_latencies_of_cpu_and_gpu_are_of_different_conditions():
    rest = {"backend": "onnxruntime", "batch": 8, "threads": 1, "fingerprint": "here"}
    variants = [Execution(), CUDA, Execution.on("cuda:1"), Execution.on("cuda", cuda_graph=True)]
    assert len({Conditions(**rest, execution=execution) for execution in variants}) == 4
    assert Conditions(**rest) == Conditions(**rest, execution=Execution())  # rows written before there were devices


def test_the_provider_gets_what_the_execution_says():
    assert providers(Execution()) == ["CPUExecutionProvider"]
    (name, options), last = providers(Execution.on("cuda:2", cuda_graph=True, tf32=False))
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": "2", "enable_cuda_graph": "1", "use_tf32": "0"}


class FakeSession:
    """A session whose nodes are on these providers."""

    def __init__(self, used, **nodes):
        self.used, self.nodes = used, nodes

    def get_providers(self):
        return [f"{name}ExecutionProvider" for name in self.used]

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(
                ep_name=f"{name}ExecutionProvider",
                get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops],
            )
            for name, ops in self.nodes.items()
        ]


def test_a_session_that_fell_back_to_the_cpu_is_refused():
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider; a session on cuda:0"):
        check_placement(FakeSession(["CPU"], CPU=["Relu"]), CUDA, "loading")


def test_a_node_with_weights_on_the_cpu_is_refused_and_one_on_shapes_is_not():
    both = ["CUDA", "CPU"]
    check_placement(FakeSession(both, CUDA=["Conv"], CPU=["Shape", "Gather"]), CUDA, "loading")
    with pytest.raises(BackendError, match=r"2 nodes with weights on the CPU \(ConvInteger, MatMul\)"):
        check_placement(FakeSession(both, CUDA=["Conv"], CPU=["MatMul", "ConvInteger", "Shape"]), CUDA, "loading")
    check_placement(FakeSession(["CPU"], CPU=["Conv"]), Execution(), "loading")


def test_onnx_runtime_says_what_the_cpu_was_given(model):
    options = onnxruntime.SessionOptions()
    demand_placement_(options, CUDA, onnxruntime.InferenceSession)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    assert placed.operators_on_cpu(session) == ("Gemm",)


def test_an_onnx_runtime_that_records_no_placement_may_not_fall_back(model):
    options = onnxruntime.SessionOptions()
    demand_placement_(options, CUDA, object)
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        onnxruntime.InferenceSession(str(model), options, providers=[("CUDAExecutionProvider", {"device_id": "99"})])


def driver(gpus, status=0):
    def count(pointer):
        pointer._obj.value = gpus

    return SimpleNamespace(cuInit=lambda _flags: status, cuDeviceGetCount=count)


def machine(driver_found=None, provider_error=None):
    def load(name):
        error = (
            provider_error
            if "providers_cuda" in name
            else None
            if driver_found
            else f"{name}: cannot open shared object file"
        )
        if error:
            raise OSError(error)
        return driver_found

    return load


@pytest.mark.parametrize(
    ("load", "lacking"),
    [
        (machine(driver(1)), []),
        (machine(driver(1), "undefined symbol: Provider_GetHost"), []),
        (machine(), ["no NVIDIA driver (libcuda.so.1: cannot open shared object file)"]),
        (machine(driver(0, 100)), ["the NVIDIA driver finds no usable GPU (cuInit returned 100)"]),
        (machine(driver(0)), ["no GPU 0: there are 0, counted from 0"]),
        (
            machine(driver(1), "libcudnn.so.9: cannot open shared object file: No such file or directory"),
            ["libcudnn.so.9: cannot open shared object file"],
        ),
    ],
)
def test_what_a_machine_lacks_is_named(load, lacking, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert lacking_for_cuda(0, load) == lacking


def test_an_onnx_runtime_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "built without CUDA: install onnxruntime-gpu" in lacking_for_cuda(0)[0]


def test_a_session_on_an_absent_gpu_is_refused(model, monkeypatch):
    monkeypatch.setattr(placed, "lacking_for_cuda", lambda _gpu: ["no driver"])
    with pytest.raises(BackendError, match="running on cuda:0: no driver; an NVIDIA GPU"):
        runtime("onnxruntime").load(model, SessionSettings(execution=CUDA))


def test_a_bound_call_computes_what_a_plain_one_does(model):
    x = {"x": layer_input(SIGNATURE, 3)}
    session = runtime("onnxruntime").load(model, SessionSettings(execution=Execution(io_binding=True)))
    call = session.bind(x)
    call()
    assert isinstance(call, BoundCall)
    assert np.array_equal(call.outputs[0].numpy(), session.run(x)["y"])


def test_a_bound_call_reads_and_writes_the_same_places(model):
    session = runtime("onnxruntime").load(model, SessionSettings(execution=Execution(io_binding=True)))
    call = session.bind({"x": layer_input(SIGNATURE, 3)})
    places = [value.data_ptr() for value in (*call.inputs, *call.outputs)]
    other = {"x": layer_input(SIGNATURE, 3) + 1}
    to_device, to_host = call.copies(other)
    to_device()
    call()
    to_host()
    assert [value.data_ptr() for value in (*call.inputs, *call.binding.get_outputs())] == places
    assert np.array_equal(call.outputs[0].numpy(), session.run(other)["y"])


def test_a_bound_call_of_a_wrong_shape_is_told_before_it_is_timed(model):
    session = runtime("onnxruntime").load(model, SessionSettings(execution=Execution(io_binding=True)))
    with pytest.raises(BackendError, match=r"binding the model's inputs and outputs.*Got: 9 Expected: 8"):
        session.bind({"x": np.zeros((1, 9), np.float32)})


def test_with_a_cuda_graph_only_bound_runs_on_fixed_buffers_are_captured(monkeypatch):
    """The run that learns the outputs' shapes has no fixed outputs yet, so the graph must not be of it."""
    log = []

    class Value:
        @staticmethod
        def ortvalue_from_numpy(array, *place):
            return ("input", array.shape, place)

    class Binding:
        def bind_ortvalue_input(self, name, value):
            log.append((name, value))

        def bind_output(self, name, *place):
            log.append((name, place))

        def bind_ortvalue_output(self, name, value):
            log.append((name, value))

        def get_outputs(self):
            return ["y's buffer"]

        def synchronize_outputs(self):
            log.append("synchronised")

    def run(_binding, options=None):
        log.append("captured" if options is None else options.get_run_config_entry("gpu_graph_id"))

    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    session = SimpleNamespace(
        io_binding=Binding, get_outputs=lambda: [SimpleNamespace(name="y")], run_with_iobinding=run
    )
    BoundCall.of(session, {"x": np.zeros((2, 3))}, Execution.on("cuda:1", cuda_graph=True))
    assert log == [
        ("x", ("input", (2, 3), ("cuda", 1))),
        ("y", ("cuda", 1)),
        "-1",
        ("y", "y's buffer"),
        "captured",
        "synchronised",
    ]
