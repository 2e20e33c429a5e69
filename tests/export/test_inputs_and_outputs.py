"""Modules with several inputs and outputs: names, and which dimensions stay open."""

import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.errors import InputError
from lrd_deploy.export.torch_export import export_onnx
from lrd_deploy.models.source import load_model
from lrd_deploy.recipe.settings import PythonModel
from tests.tolerances import sum_tolerance

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """An image, tokens of two lengths and a vector that has no batch; an output is called like an input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8)
        self.tokens, self.picture = nn.Linear(8, 6), nn.Conv2d(3, 6, 1)

    def forward(self, image, ids, other_ids, scale):
        pooled = self.picture(image).mean((2, 3)) * scale.sum()
        return {"ids": self.tokens(self.table(ids)) + pooled[:, None], "other": self.table(other_ids)}


def mixed_inputs(batch=3, length=5, other=7):
    random = torch.Generator().manual_seed(batch)
    return (
        torch.randn(batch, 3, 8, 8, generator=random),
        torch.randint(20, (batch, length), generator=random),
        torch.randint(20, (batch, other), generator=random),
        torch.randn(4, generator=random),
    )


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def test_tensors_by_position_get_the_names_of_the_parameters(tmp_path):
    net = Mixed().eval()
    record = export_onnx(net, mixed_inputs(), tmp_path / "m.onnx", opset=20)
    assert {value.name: value.shape for value in record.inputs} == {
        "image": ("batch", 3, 8, 8),
        "ids": ("batch", "sequence"),
        "other_ids": ("batch", "other_ids_sequence"),
        "scale": (4,),
    }
    assert [value.name for value in record.outputs] == ["ids_out", "other"]
    session = runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings())
    names = [value.name for value in record.inputs]
    for sizes in ((1, 4, 4), (5, 2, 9)):
        inputs = mixed_inputs(*sizes)
        with torch.no_grad():
            expected = net(*inputs)["ids"].numpy()
        got = session.run(dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))["ids_out"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=sum_tolerance("float32", 64, np.abs(expected).max()))


def test_a_single_sample_is_enough_of_an_example(tmp_path):
    export_onnx(Classifier().eval(), IMAGES[:1], tmp_path / "m.onnx", opset=20)
    session = runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings())
    assert session.run({"images": IMAGES.numpy()})["logits"].shape == (4, 5)


def test_the_caller_decides_what_stays_open(tmp_path):
    axes = {"image": {0: "batch", 2: "height", 3: "width"}, "ids": {0: "batch"}, "other_ids": {0: "batch"}}
    record = export_onnx(Mixed().eval(), mixed_inputs(), tmp_path / "m.onnx", opset=20, dynamic_axes=axes)
    shapes = [value.shape for value in record.inputs]
    assert shapes == [("batch", 3, "height", "width"), ("batch", 5), ("batch", 7), (4,)]
    record = export_onnx(Classifier().eval(), IMAGES, tmp_path / "fixed.onnx", opset=20, dynamic_axes={})
    assert record.inputs[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"picture": {0: "batch"}}, r"an input 'picture'; 'image' of shape \(3, 3, 8, 8\), 'ids' of shape \(3, 5\)"),
        ({"ids": {0: "batch", 2: "width"}}, "axis 2 of 'ids'"),
        ({"ids": {-1: "sequence"}}, "axis -1 of 'ids'"),
    ],
)
def test_axes_that_no_input_has_are_refused(tmp_path, axes, reason):
    with pytest.raises(InputError, match=reason):
        export_onnx(Mixed(), mixed_inputs(), tmp_path / "m.onnx", opset=20, dynamic_axes=axes)


class FixedLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.table = nn.Parameter(torch.zeros(6, 4)), nn.Embedding(9, 4)

    def forward(self, ids):
        return torch.relu(self.table(ids) + self.positions)


def test_a_length_that_the_model_fixes_is_told_and_can_be_closed(tmp_path):
    example = {"ids": torch.zeros(2, 6, dtype=torch.int64)}
    with pytest.raises(InputError, match=r"these dimensions open: batch, sequence; .*dynamic_axes") as refused:
        export_onnx(FixedLength(), example, tmp_path / "m.onnx", opset=20)
    assert "Create an issue" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    record = export_onnx(FixedLength(), example, tmp_path / "m.onnx", opset=20, dynamic_axes={"ids": {0: "batch"}})
    assert record.inputs[0].shape == ("batch", 6)


def test_no_node_is_named_after_what_the_tracer_calls_nowhere(tmp_path):
    class Sized(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], -1) * x.shape[0]

    export_onnx(Sized(), IMAGES, tmp_path / "m.onnx", opset=20)
    names = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "Shape" in names
    assert not [name for name in names if "metadata" in name]


def test_a_layer_that_runs_twice_gets_two_nodes_of_its_name(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    record = export_onnx(Twice().eval(), torch.randn(2, 8), tmp_path / "m.onnx", opset=20)
    assert [(entry.node, entry.module) for entry in record.origins] == [("layer", "layer"), ("layer_2", "layer")]


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_other_libraries_models_come_by_their_own_factory(tmp_path, monkeypatch, package):
    """With a stand-in for the library: its factory and its arguments are all that a recipe needs."""
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{package}.py").write_text(
        "from torch import nn\n"
        "def create_model(name, pretrained, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes))\n"
    )
    arguments = {"name": "small", "pretrained": False, "num_classes": 7}
    model = load_model(PythonModel(python=f"{package}:create_model", arguments=arguments)).module
    del sys.modules[package]
    record = export_onnx(model, IMAGES, tmp_path / "m.onnx", opset=20)
    assert record.outputs[0].shape == ("batch", 7)
