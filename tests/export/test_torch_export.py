from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lrd_deploy.decompose.layers import SVDConv2d, Tucker2Conv2d
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.difference import compare_outputs, rounding_tolerance
from lrd_deploy.errors import InputError, StorageError
from lrd_deploy.export.names import refreshed_origins
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.export.torch_export import export_onnx
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import UniformRank
from lrd_deploy.records import ChannelSVD, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank

EXAMPLE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every weighted node the exporter writes: Conv with BatchNorm, 1×1, Linear on vectors and on sequences."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.tokens = nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.pointwise(torch.relu(self.norm(self.conv(x)))).flatten(2).mT
        return self.head(torch.relu(self.tokens(x)).mean(1))


def lowrank():
    net = Net().eval()
    return decompose_(net, plan_ranks(survey(net, EXAMPLE), UniformRank(alpha=1.5)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "lowrank.onnx"
    net = lowrank()
    return net, path, export_onnx(net, EXAMPLE, path, opset=20)


def test_the_file_computes_what_the_module_does_at_any_batch(exported):
    net, path, _ = exported
    session = runtime("onnxruntime").load(path, SessionSettings())

    @torch.no_grad()
    def in_torch(inputs):
        return {"logits": net(torch.from_numpy(inputs["images"])).numpy()}

    batches = [{"images": np.resize(EXAMPLE.numpy(), (size, 3, 8, 8))} for size in (1, 2, 7)]
    difference = compare_outputs(in_torch, session.run, batches, rounding_tolerance(read_model(path)))
    assert difference.passed, difference


def test_every_factor_node_is_named_after_its_module(exported):
    _, path, record = exported
    named = {(origin.module, origin.factor): origin for origin in record.origins}
    assert set(named) == {
        ("conv", "first"), ("conv", "core"), ("conv", "last"),
        ("pointwise", "down"), ("pointwise", "up"),
        ("tokens", "down"), ("tokens", "up"),
        ("head", "down"), ("head", "up"),
    }  # fmt: skip
    assert named["conv", "core"].node == "conv.core"
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_exporting_twice_gives_the_same_names(exported, tmp_path):
    net, path, _ = exported
    export_onnx(net, EXAMPLE, tmp_path / "again.onnx", opset=20)
    names = [[node.name for node in onnx.load(file).graph.node] for file in (path, tmp_path / "again.onnx")]
    assert names[0] == names[1]


def test_the_record_says_what_the_file_holds(exported):
    _, _, record = exported
    assert record.opset == 20
    assert record.inputs[0].shape == ("batch", 3, 8, 8)
    assert record.outputs[0].name == "logits"


def test_every_chain_that_was_decomposed_is_found_again_in_the_graph(exported):
    _, path, _ = exported
    _, applied, skipped = apply_rules(read_model(path), [PadRank(1000)])
    assert {entry.node for entry in (*applied, *skipped)} == {"conv", "pointwise", "tokens", "head"}


FORMS = {
    "kernel_first": ChannelSVD(rank=5),
    "kernel_last": ChannelSVD(rank=5, kernel_on="up"),
    "spatial": SpatialSVD(rank=5),
    "tucker": Tucker2(rank_in=5, rank_out=6),
}


@pytest.fixture(scope="module")
def exported_forms(tmp_path_factory):
    """One layer of each form for convolutions; no activation keeps neighbours apart."""
    torch.manual_seed(0)
    dense = {name: nn.Conv2d(8, 8, (3, 5), stride=(1 + (name == "spatial"), 1), padding=(1, 2)) for name in FORMS}
    stem = nn.Conv2d(3, 8, 1)
    layers = {
        name: (Tucker2Conv2d if name == "tucker" else SVDConv2d).from_dense(layer, FORMS[name])
        for name, layer in dense.items()
    }
    net = nn.Sequential(OrderedDict(stem=stem, **layers)).eval()
    path = tmp_path_factory.mktemp("forms") / "forms.onnx"
    return net, path, export_onnx(net, EXAMPLE, path, opset=20)


def test_factors_of_every_form_are_named_after_their_module(exported_forms):
    _, _, record = exported_forms
    factors = {name: ("first", "core", "last") if name == "tucker" else ("down", "up") for name in FORMS}
    assert [(origin.node, origin.module, origin.factor) for origin in record.origins] == [
        ("stem", "stem", "dense"),
        *((f"{name}.{factor}", name, factor) for name in FORMS for factor in factors[name]),
    ]


@pytest.mark.parametrize(("rule", "nodes"), [(PadRank(4), 10), (MergeFactors(), 5)], ids=["padded", "merged"])
def test_every_form_can_be_padded_and_merged_after_export(exported_forms, tmp_path, rule, nodes):
    net, path, record = exported_forms
    model, applied, skipped = apply_rules(read_model(path), [rule])
    assert {entry.node for entry in applied} == set(FORMS)
    assert skipped == ()
    weighted = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert len(weighted) == nodes
    assert [origin.node for origin in refreshed_origins(model, record.origins)] == [
        origin.node for origin in record.origins if origin.node in weighted
    ]
    write_model(model, tmp_path / "rewritten.onnx")
    session = runtime("onnxruntime").load(tmp_path / "rewritten.onnx", SessionSettings())

    @torch.no_grad()
    def in_torch(inputs):
        return {"logits": net(torch.from_numpy(inputs["images"])).numpy()}

    tolerance = rounding_tolerance(read_model(path))
    assert compare_outputs(in_torch, session.run, [{"images": EXAMPLE.numpy()}], tolerance).passed


@pytest.mark.parametrize(
    ("pool", "operator"),
    [
        (nn.AvgPool2d(640, ceil_mode=True), "GlobalAveragePool"),  # as EfficientNet of transformers has it
        (nn.AvgPool2d((9, 3), stride=(9, 3), ceil_mode=True), "AveragePool"),
        (nn.AvgPool2d(8), "AveragePool"),
    ],
    ids=["wider than the map", "wider one way", "as wide as the map"],
)
def test_a_window_wider_than_the_map_is_a_global_pool(tmp_path, pool, operator):
    net, example = nn.Sequential(nn.Conv2d(3, 5, 1), pool).eval(), torch.randn(2, 3, 8, 8)
    export_onnx(net, example, tmp_path / "m.onnx", opset=20)
    model = read_model(tmp_path / "m.onnx")
    assert [node.op_type for node in model.graph.node] == ["Conv", operator]
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = {"logits": net(images).numpy()}
    run = runtime("onnxruntime").load(tmp_path / "m.onnx", SessionSettings()).run
    tolerance = rounding_tolerance(model)
    assert compare_outputs(lambda _: expected, run, [{"images": images.numpy()}], tolerance).passed


def test_the_model_is_left_in_its_mode(tmp_path):
    net = Net().train()
    export_onnx(net, EXAMPLE, tmp_path / "m.onnx", opset=20)
    assert net.training


def test_a_model_that_cannot_be_traced_is_told_and_leaves_no_file(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="exporting Branches to ONNX"):
        export_onnx(Branches(), EXAMPLE, tmp_path / "m.onnx", opset=20)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_got_fixed_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.flatten(1) * (2 if x.shape[0] == 2 else 3)

    with pytest.raises(InputError, match=r"a dynamic batch|Fixed"):
        export_onnx(Fixed(), EXAMPLE, tmp_path / "m.onnx", opset=20)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("damage", [b"", b"not onnx", None])
def test_a_file_that_is_no_model_is_refused(exported, tmp_path, damage):
    _, path, _ = exported
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(InputError, match=r"reading the ONNX model .* export it again"):
        read_model(broken)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_model(tmp_path / "none.onnx")


def test_a_parameter_may_be_called_like_the_output(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.ones(192))
            self.modules_a = nn.Linear(192, 4)

        def forward(self, x):
            return torch.relu(self.modules_a(x.flatten(1) * self.logits))

    export_onnx(Named(), EXAMPLE, tmp_path / "m.onnx", opset=20)
    assert "modules_a" in {node.name for node in read_model(tmp_path / "m.onnx").graph.node}
