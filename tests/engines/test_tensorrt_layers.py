"""TensorRT's JSON, as small literals of both schemas."""

import json

import pytest

from lrd_deploy.engines.tensorrt_layers import engine_tensors, layer_kernels, reported_times
from lrd_deploy.errors import InputError


def layer(name, kind, reads, gives, metadata="", **form):
    tensors = [[{"Name": value, "Dimensions": [8, 64, 14, 14], **form} for value in side] for side in (reads, gives)]
    return {"Name": name, "LayerType": kind, "Inputs": tensors[0], "Outputs": tensors[1], "Metadata": metadata}


def layers(**form):
    fused = "[ONNX Layer: net.conv.up]\x1f[ONNX Layer: net.relu]"
    return [
        layer("Reformatting CopyNode for Input Tensor 0 to net.conv.down", "Reformat", ["x"], ["r"],
              "[ONNX Layer: net.conv.down]", **form),
        layer("net.conv.down", "CaskConvolution", ["r"], ["h"], "[ONNX Layer: net.conv.down]", **form),
        layer("net.conv.up + net.relu", "CaskConvolution", ["h"], ["y"], fused, **form),
    ]  # fmt: skip


OLD = json.dumps({"Layers": layers(**{"Format/Datatype": "Half NHWC8"}), "Bindings": ["x", "y"]})
NEW = json.dumps(
    {
        "Layers": layers(Format="Channel major FP16 format", DataType="Half"),
        "I/O Tensors": [
            {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [8, 64, 14, 14]},
            {"Name": "y", "IOMode": "Output", "DataType": "Float", "Dimensions": [8, 64, 14, 14]},
        ],
        "Engine Metadata": {},
    }
)


def test_both_schemas_give_the_same_kernels():
    assert layer_kernels(OLD) == layer_kernels(NEW)
    assert engine_tensors(OLD) == engine_tensors(NEW) == ("x", "y")


def test_a_layer_knows_its_nodes_and_a_reformat_has_none():
    reformat, down, up = layer_kernels(NEW)
    assert (reformat.operator, reformat.nodes) == ("Reformat", ())
    assert down.nodes == ("net.conv.down",)
    assert up.nodes == ("net.conv.up", "net.relu")
    assert (down.inputs, down.outputs, up.inputs) == (("r",), ("h",), ("h",))


@pytest.mark.parametrize("between", ["", "\x1e", "\x1f", " + "])
def test_nodes_are_told_apart_whatever_stands_between_them(between):
    metadata = between.join(f"[ONNX Layer: {name}]" for name in ("a[0]", "b", "a[0]"))
    (kernel,) = layer_kernels(json.dumps({"Layers": [layer("k", "gemm", [], [], metadata)], "I/O Tensors": []}))
    assert kernel.nodes == ("a[0]", "b")


def test_an_engine_of_names_only_has_nodes_by_its_names():
    kernels = layer_kernels(json.dumps({"Layers": ["fc.down", "fc.up + PWN(relu)"], "Bindings": ["x"]}))
    assert [kernel.nodes for kernel in kernels] == [("fc.down",), ("fc.up", "relu")]


def test_reported_times_are_by_call_and_kernel_in_nanoseconds():
    call = [("net.conv.down", 0.25), ("net.conv.up + net.relu", 0.5), ("myelin glue", 0.125)]
    times = reported_times(layer_kernels(OLD), [call, [*call[:2], ("net.conv.down", 0.25)]])
    assert [kernel.name for kernel in times.kernels] == ["net.conv.down", "net.conv.up + net.relu", "myelin glue"]
    assert times.kernels[-1].nodes == ()
    assert times.calls_ns == ((250_000, 500_000, 125_000), (500_000, 500_000, 0))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": []}', '{"Bindings": []}', '{"Layers": [{}], "Bindings": []}']
)
def test_what_is_no_layer_information_is_refused(text):
    with pytest.raises(InputError, match=r"reading TensorRT's layer information: .*; the engine inspector's JSON"):
        layer_kernels(text)
