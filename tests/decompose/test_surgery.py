import pytest
import torch
from torch import nn

from lrd_deploy.decompose.surgery import decompose_, factorised_layers, load_lowrank_, merge_
from lrd_deploy.errors import InputError, Problems
from lrd_deploy.models.source import save_weights
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import EnergyRank, UniformRank
from lrd_deploy.records import SVD, Tucker2


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(32 * 64, 40)
    ).eval()


def plan(net, policy=None):
    return plan_ranks(survey(net, torch.zeros(1, 3, 8, 8)), policy or UniformRank(alpha=2))


def test_a_plan_is_applied_to_every_layer_it_names():
    net = model()
    chosen = plan(net)
    decompose_(net, chosen)
    assert set(factorised_layers(net)) == {layer.name for layer in chosen.factorised}
    assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == chosen.lowrank_parameters


def test_merging_undoes_decomposition_at_an_error_that_the_plan_predicts():
    net = model()
    dense = net[4].weight.clone()
    chosen = plan(net, EnergyRank(share=0.7))
    merged = merge_(decompose_(net, chosen))
    assert not factorised_layers(merged)
    error = ((merged[4].weight - dense).norm() / dense.norm()).item()
    predicted = next(layer.predicted_error for layer in chosen.layers if layer.name == "4")
    assert error == pytest.approx(predicted, rel=1e-4)  # float32 weights against a float64 prediction


def test_a_stored_lowrank_model_loads_from_plan_and_safetensors(tmp_path):
    net = model()
    chosen = plan(net)
    decompose_(net, chosen)
    save_weights(net, tmp_path / "w.safetensors")
    loaded = load_lowrank_(model(), chosen, tmp_path / "w.safetensors").eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), loaded(x))


def changed(chosen, **choices):
    layers = tuple(
        layer.model_copy(update={"choice": choices.get(f"layer{layer.name}", layer.choice)}) for layer in chosen.layers
    )
    return chosen.model_copy(update={"layers": layers})


def test_a_rank_above_the_matrix_is_refused_and_nothing_is_replaced():
    net = model()
    with pytest.raises(InputError, match=r"layer '4': rank 41; 1 to 40; .* skip: \['4'\]"):
        decompose_(net, changed(plan(net), layer4=SVD(rank=41)))
    assert not factorised_layers(net)


def test_all_layers_that_do_not_fit_are_told_together():
    net = model()
    wrong = changed(plan(net), layer2=Tucker2(rank_in=99, rank_out=1), layer4=SVD(rank=41))
    with pytest.raises(Problems, match="2 problems"):
        decompose_(net, wrong)


def test_a_plan_for_another_model_is_refused():
    with pytest.raises(Problems, match="no such layer"):
        decompose_(nn.Sequential(nn.Linear(4, 4)), plan(model()))


def test_a_plan_for_a_layer_of_another_size_is_refused():
    chosen = plan(model())
    other = model()
    other[4] = nn.Linear(32 * 64, 39)
    with pytest.raises(InputError, match=r"layer '4': a weight of shape \(39, 2048\); \(40, 2048\)"):
        decompose_(other, chosen)


def test_a_bfloat16_model_loads_as_one(tmp_path):
    net = model().to(torch.bfloat16)
    chosen = plan(model())
    save_weights(decompose_(net, chosen), tmp_path / "w.safetensors")
    loaded = load_lowrank_(model().to(torch.bfloat16), chosen, tmp_path / "w.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
