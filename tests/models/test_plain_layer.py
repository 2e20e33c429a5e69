"""GPT-2's Conv1D is a linear layer with its weight the other way round."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrd_deploy.decompose.surgery import decompose_, merge_
from lrd_deploy.models.plain_layer import plain_layer
from lrd_deploy.models.survey import survey
from lrd_deploy.records import SVD, PlannedLayer, RankPlan
from tests.tolerances import sum_tolerance

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


def transposed(outputs=9):
    torch.manual_seed(0)
    layer = Conv1D(outputs, 6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.eval()


def atol(values):
    return sum_tolerance("float32", 9, float(values.detach().abs().max()))


def test_the_view_computes_the_same_and_shares_the_tensors():
    layer = transposed()
    view = plain_layer(layer)
    torch.testing.assert_close(view(X), layer(X), rtol=0, atol=atol(layer(X)))
    with torch.no_grad():
        view.weight.zero_()
    assert not layer.weight.any()
    assert view.bias is layer.bias
    assert not view.training


def test_other_layers_are_what_they_are():
    layer = nn.Linear(3, 4)
    assert plain_layer(layer) is layer


@pytest.mark.parametrize("outputs", [9, 6])  # a square one would hide a weight that is the wrong way round
def test_at_full_rank_nothing_changes_and_merging_gives_a_linear_layer(outputs):
    dense = transposed(outputs)
    model = nn.Sequential(dense, nn.Identity())
    (layer,) = survey(model, X)
    assert layer.signature.out_channels == outputs
    assert layer.weight().shape == (outputs, 6)
    expected = dense(X)
    planned = PlannedLayer(name="0", signature=layer.signature, choice=SVD(rank=6), reason="full rank")
    decompose_(model, plan_of(planned))
    torch.testing.assert_close(model(X), expected, rtol=0, atol=atol(expected))
    merge_(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(X), expected, rtol=0, atol=atol(expected))


def plan_of(planned):
    return RankPlan(
        policy={}, layers=(planned,), dense_macs=0, lowrank_macs=0, dense_parameters=0, lowrank_parameters=0
    )
