import subprocess
import sys
from itertools import product

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from lrd_deploy.errors import InputError, MissingPackage
from lrd_deploy.records import StoredInput
from lrd_deploy.serving.labels import Labels
from lrd_deploy.serving.tensors import served_graph
from lrd_deploy.serving.triton_config import (
    ServingSettings,
    config_text,
    interface,
    model_config,
    read_config,
    session_settings,
)
from tests.serving.graphs import MATMUL, graph

FIXED = MATMUL.replace("batch", "2")
LONE = "g (float[n] x) => (float[n] y) { y = Relu (x) }"


def stored(served):
    return [
        StoredInput(name=tensor.info.name, dtype=tensor.info.dtype, shape=(4,), samples=8, file=f"{number}.bin")
        for number, tensor in enumerate(served.inputs)
    ]


def config_of(text=MATMUL, settings=None, *, backend="onnxruntime", labels=None, name="m"):
    served = served_graph(graph(text))
    return model_config(name, backend, served, settings or ServingSettings(), stored(served), labels)


@given(
    st.builds(
        ServingSettings,
        max_batch=st.integers(1, 2**20),
        measured_batch=st.integers(1, 2**20),
        max_queue_delay_us=st.integers(0, 2**40),
        instances=st.integers(1, 100),
        threads=st.integers(1, 100),
        gpu=st.booleans(),
    ),
    st.text(min_size=1),
    st.sampled_from([MATMUL, FIXED, LONE]),
    st.sampled_from(["onnxruntime", "tensorrt"]),
)
def test_the_text_reads_back_as_the_same_configuration(settings, name, text, backend):
    served = served_graph(graph(text))
    inputs = [one.model_copy(update={"name": name}) for one in stored(served)]
    config = model_config(name, backend, served, settings, inputs, Labels("y", ("a", "b", "c")))
    assert text_format.Parse(config_text(config), pb.ModelConfig()) == config


def test_text_that_reads_back_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(text_format, "MessageToString", lambda _: 'name: "other"')
    with pytest.raises(InputError, match="reads back as another configuration"):
        config_text(config_of())


def test_what_a_server_is_told():
    config = config_of(
        settings=ServingSettings(max_batch=32, measured_batch=4, max_queue_delay_us=250, instances=2, threads=3),
        labels=Labels("y", ("a", "b", "c")),
    )
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("m", "onnxruntime", "", 32)
    assert config.default_model_filename == "model.onnx"
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 2)]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "intra_op_thread_count": "3",
        "execution_mode": "0",
    }
    assert [output.label_filename for output in config.output] == ["labels.txt"]
    assert [(warm.batch_size, warm.inputs["x"].input_data_file) for warm in config.model_warmup] == [
        (1, "0.bin"),
        (4, "0.bin"),
    ]
    assert list(config.model_warmup[0].inputs["x"].dims) == [4]


def test_a_model_with_a_fixed_batch_is_served_as_it_is():
    config = config_of(FIXED)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[2, 4], [2, 3]]
    assert [warm.batch_size for warm in config.model_warmup] == [1]


def test_a_lone_batch_is_reshaped_away():
    tensor = config_of(LONE).input[0]
    assert (list(tensor.dims), tensor.HasField("reshape"), list(tensor.reshape.shape)) == ([1], True, [])


def test_a_plan_runs_on_gpus_and_has_no_threads():
    config = config_of(settings=ServingSettings(gpu=True), backend="tensorrt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert not config.parameters


@pytest.mark.parametrize(("largest", "measured"), [*product([1, 4, 8], [1, 4, 8])])
def test_no_batch_exceeds_the_largest(largest, measured):
    config = config_of(settings=ServingSettings(max_batch=largest, measured_batch=measured))
    assert all(size <= largest for size in config.dynamic_batching.preferred_batch_size)
    assert {warm.batch_size for warm in config.model_warmup} == {1, min(largest, measured)}
    assert config.HasField("dynamic_batching") == (largest > 1)


def test_a_session_runs_as_the_configuration_says():
    assert session_settings(config_of(settings=ServingSettings(threads=5))).threads == 5
    assert session_settings(config_of(settings=ServingSettings(gpu=True))).threads == 0


def test_settings_leave_the_interface_and_other_tensors_do_not():
    one = interface(config_of())
    assert interface(config_of(settings=ServingSettings(max_batch=2, instances=3, gpu=True))) == one
    assert interface(config_of(FIXED)) != one
    assert interface(config_of(MATMUL.replace("x", "z"))) != one
    assert interface(config_of(backend="tensorrt")) != one


@pytest.mark.parametrize("content", [b"name: ", b"nonsense: 3", b"\xff"])
def test_what_is_no_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.pbtxt").write_bytes(content)
    with pytest.raises(InputError, match=r"reading the configuration .*ModelConfig as text"):
        read_config(tmp_path / "config.pbtxt")


def test_without_tritonclient_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingPackage, match=r"pip install 'lrd-deploy\[triton\]'"):
        config_of()


def test_describing_a_model_needs_no_pytorch():
    code = "import sys, lrd_deploy.serving.bundle; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
