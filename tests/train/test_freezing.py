import copy

import pytest
import torch
from torch import nn

from lrd_deploy.decompose.layers import SVDLinear, Tucker2Conv2d
from lrd_deploy.recipe.settings import FineTuning, NoFreezing, RegularFreezing, SequentialFreezing, Training
from lrd_deploy.records import SVD, Tucker2
from lrd_deploy.train.freezing import freeze_, frozen_group, phases
from lrd_deploy.train.optimizer import make_optimizer


def lowrank_model():
    torch.manual_seed(0)
    return nn.Sequential(
        Tucker2Conv2d(nn.Conv2d(3, 8, 3), Tucker2(rank_in=2, rank_out=4)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        SVDLinear(nn.Linear(8, 6), SVD(rank=2)),
    )


def schedule(freezing, epochs=6):
    return [frozen_group(freezing, epoch) for epoch in range(epochs)]


def test_schedules_are_those_of_the_papers():
    assert schedule(NoFreezing()) == ["none"] * 6
    assert schedule(RegularFreezing()) == ["A"] * 6
    assert schedule(SequentialFreezing(period=1, first_frozen="B")) == ["B", "A"] * 3
    assert schedule(SequentialFreezing(period=2, first_frozen="A")) == ["A", "A", "B", "B", "A", "A"]


@pytest.mark.parametrize("freezing", [NoFreezing(), RegularFreezing(), SequentialFreezing()])
def test_phases_are_the_groups_that_a_schedule_freezes(freezing):
    assert set(phases(freezing)) == set(schedule(freezing))


def test_a_period_in_which_one_group_never_learns_is_refused():
    with pytest.raises(ValueError, match="a period of 3 needs at least 4 epochs, or group B would never learn"):
        FineTuning(epochs=3, learning_rate=0.1, freezing=SequentialFreezing(period=3))
    FineTuning(epochs=4, learning_rate=0.1, freezing=SequentialFreezing(period=3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("group", ["A", "B"])
def test_a_frozen_group_stays_bit_identical_and_everything_else_learns(group, optimizer):
    model = lowrank_model()
    settings = Training(epochs=1, learning_rate=0.1, optimizer=optimizer, weight_decay=0.1)
    steps = make_optimizer(model, settings)
    take_steps(model, steps, 2)  # momentum has built up before the group is frozen
    freeze_(model, group)
    before = copy.deepcopy(model.state_dict())
    take_steps(model, steps, 3)
    for name, parameter in model.named_parameters():
        factor = name.rpartition(".weight")[0].rpartition(".")[2]
        owner = {"down": "A", "first": "A", "last": "A", "up": "B", "core": "B"}.get(factor)
        assert torch.equal(parameter, before[name]) == (owner == group), name
        assert (parameter.grad is None) == (owner == group), name


def take_steps(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()


def test_a_frozen_weight_costs_no_weight_gradient():
    model = lowrank_model()
    freeze_(model, "B")
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(model(torch.randn(4, 3, 6, 6)).sum(), wanted)
    assert len(gradients) == len(list(model.parameters())) - 2  # one core, one up


def test_momentum_buffers_from_the_start_step_as_lazy_ones_do():
    ours, theirs = lowrank_model(), lowrank_model()
    settings = Training(epochs=1, learning_rate=0.1, weight_decay=0.01)
    one = make_optimizer(ours, settings)
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    other = torch.optim.SGD(groups, 0.1, 0.9, nesterov=True)
    for seed in range(3):
        for model, optimizer in ((ours, one), (theirs, other)):
            torch.manual_seed(seed)
            take_steps(model, optimizer, 1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_freezing_drops_a_gradient_that_is_there():
    model = lowrank_model()
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    freeze_(model, "B")
    assert model[0].core.weight.grad is None
    assert model[0].first.weight.grad is not None
