import pytest
import torch
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.models.survey import survey


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.unused = nn.Linear(4, 4)
        self.tied_a, self.tied_b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied_b.weight = self.tied_a.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.up(self.depthwise(self.stem(x))).flatten(2).mT
        x = self.normed(self.tied_b(self.tied_a(x)))
        return self.head(self.attention(x, x, x)[0].mean(1))


REASONS = {
    "stem": None,
    "depthwise": "grouped convolution (8 groups)",
    "up": "ConvTranspose2d has no factorised form here",
    "unused": "the example input does not reach it",
    "tied_a": "its weight is shared with another layer",
    "tied_b": "its weight is shared with another layer",
    "normed": "its weight is parametrised",
    "attention.out_proj": "nn.MultiheadAttention reads this layer's weight directly",
    "head": None,
}


def test_every_layer_is_found_and_every_refusal_has_its_reason():
    layers = survey(Net(), torch.randn(2, 3, 9, 9))
    assert {layer.name: layer.refusal for layer in layers} == REASONS


def test_signatures_hold_what_latency_depends_on():
    stem = next(layer for layer in survey(Net(), torch.randn(2, 3, 9, 9)) if layer.name == "stem")
    signature = stem.signature
    assert (signature.padding, signature.dilation, signature.spatial) == ((2, 2), (2, 2), (9, 9))
    assert stem.weight().shape == (8, 3, 3, 3)


def test_skip_patterns_are_globs_and_are_named_in_the_reason():
    layers = {layer.name: layer for layer in survey(Net(), torch.randn(1, 3, 9, 9), skip=("st*",))}
    assert layers["stem"].refusal == "the recipe skips 'st*'"


def test_the_model_is_left_as_it_was():
    model = Net().train()
    survey(model, torch.randn(1, 3, 9, 9))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, nn.Conv2d))


def test_a_model_with_nothing_to_factorise_is_refused_with_the_reasons():
    with pytest.raises(InputError, match="'0': grouped convolution"):
        survey(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), torch.randn(1, 4, 5, 5))
    with pytest.raises(InputError, match=r"no linear or 2-D convolution layer"):
        survey(nn.Sequential(nn.ReLU()), torch.randn(1, 4))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean()
        return nn.functional.conv2d(x, weight)


def refusal_of(layer, name="0", x=None):
    layers = survey(nn.Sequential(layer, nn.Conv2d(4, 4, 1)), torch.randn(1, 4, 6, 6) if x is None else x)
    return {found.name: found.refusal for found in layers}[name]


def test_a_subclass_with_a_forward_of_its_own_is_refused():
    assert refusal_of(Standardised(4, 4, 3)) == "Standardised may compute something else than its base class"


def test_a_layer_with_hooks_is_refused():
    layer = nn.Conv2d(4, 4, 3)
    layer.register_forward_hook(lambda *_: None)
    assert refusal_of(layer) == "it has forward hooks, which its factors would not have"


def test_uneven_same_padding_is_refused():
    assert refusal_of(nn.Conv2d(4, 4, 2, padding="same")) == "its padding 'same' is uneven"


def test_a_layer_under_two_names_is_refused():
    layer = nn.Conv2d(4, 4, 1)
    layers = survey(nn.Sequential(layer, layer, nn.Conv2d(4, 4, 1)), torch.randn(1, 4, 6, 6))
    assert layers[0].refusal == "the model has it under two names"


def test_layers_that_pytorch_reads_past_their_forward_are_refused():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4))
    found = {layer.name: layer.refusal for layer in survey(model, torch.randn(1, 3, 8))}
    assert found["0.linear1"] == "nn.TransformerEncoderLayer reads this layer's weight directly"
    assert found["1"] is None


def test_calls_are_counted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    assert survey(Twice(), torch.randn(1, 4))[0].calls == 2


def test_data_that_does_not_fit_the_model_is_told():
    with pytest.raises(
        InputError, match=r"an input of shape \(1, 3, 6, 6\), torch.float32: .* data of the shape and type"
    ):
        survey(nn.Sequential(nn.Conv2d(4, 4, 1)), torch.randn(1, 3, 6, 6))
