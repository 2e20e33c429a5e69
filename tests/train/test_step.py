"""What one step does: accumulated, clipped, decayed, distilled, in lower precision, compiled."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lrd_deploy.decompose.layers import SVDConv2d, SVDLinear, Tucker2Conv2d
from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.recipe.settings import Distillation, FactorRates, FineTuning, NoFreezing, SequentialFreezing
from lrd_deploy.records import SVD, ChannelSVD, SpatialSVD, Tucker2
from lrd_deploy.train import devices
from lrd_deploy.train.devices import PhaseModels
from lrd_deploy.train.freezing import FreezingSchedule, factor_weights, freeze_
from lrd_deploy.train.optimizer import decay_products_, make_optimizer, squared_product_norm
from lrd_deploy.train.step import TrainingStep, training_loss

FORMS = {
    "svd": lambda: SVDLinear(nn.Linear(6, 8), SVD(rank=3)),
    "channel svd": lambda: SVDConv2d(nn.Conv2d(6, 8, 3), ChannelSVD(rank=5)),
    "mirrored": lambda: SVDConv2d(nn.Conv2d(6, 8, 3), ChannelSVD(rank=5, kernel_on="up")),
    "spatial svd": lambda: SVDConv2d(nn.Conv2d(6, 8, (3, 5)), SpatialSVD(rank=5)),
    "tucker2": lambda: Tucker2Conv2d(nn.Conv2d(6, 8, 3), Tucker2(rank_in=4, rank_out=5)),
}


def settings(**changes):
    defaults = {"epochs": 1, "learning_rate": 0.1, "freezing": NoFreezing(), "channels_last": False}
    return FineTuning(**(defaults | changes))


def model(dtype=torch.float64):
    torch.manual_seed(0)
    layers = (
        Tucker2Conv2d(nn.Conv2d(3, 8, 3), Tucker2(rank_in=2, rank_out=4)),
        nn.ReLU(),
        SVDConv2d(nn.Conv2d(8, 8, 3), SpatialSVD(rank=4)),
        nn.ReLU(),
        nn.Flatten(),
        SVDLinear(nn.Linear(8 * 16, 4), SVD(rank=3)),
    )
    return nn.Sequential(*layers).to(dtype)


def batch(count=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(4, (count,), generator=generator)


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def stepped(net, parts, chosen, steps=3, teacher=None):
    step = TrainingStep(net, make_optimizer(net, chosen), chosen, teacher)
    return [float(step.take(net, parts, chosen.learning_rate)) for _ in range(steps)]


# Accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_count_as_one_whatever_their_sizes(optimizer):
    chosen = settings(optimizer=optimizer, clip_norm=0.5)
    images, labels = batch()
    whole, parts = model(), model()
    losses = stepped(whole, [(images, labels)], chosen)
    cuts = [(images[:5], labels[:5]), (images[5:11], labels[5:11]), (images[11:], labels[11:])]
    assert stepped(parts, cuts, chosen) == pytest.approx(losses, abs=1e-12)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-10)


# Decay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_norm_of_the_product_is_found_without_making_it(form):
    layer = form().double()
    torch.testing.assert_close(squared_product_norm(layer), layer.weight.square().sum())


@pytest.mark.parametrize("frozen", ["none", "A", "B"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_decay_moves_what_learns_against_the_gradient_of_the_products_norm(form, frozen):
    net = nn.Sequential(form()).double()
    chosen, rate = settings(weight_decay=0.3, factor_decay="product", optimizer="adamw"), 0.1
    before = copy.deepcopy(net)
    (before[0].weight.square().sum() / 2).backward()
    freeze_(net, frozen)
    decay_products_(net, chosen, rate)
    for (name, now, group), (_, then, _) in zip(factor_weights(net), factor_weights(before), strict=True):
        expected = then if group == frozen else then - rate * 0.3 * then.grad
        torch.testing.assert_close(now.detach(), expected.detach(), msg=name)


def test_products_shrink_with_decay_and_factors_have_none_of_their_own():
    chosen = settings(weight_decay=0.5, factor_decay="product")
    with_decay, without = model(), model()
    parts = [batch()]
    stepped(with_decay, parts, chosen, steps=10)
    stepped(without, parts, settings(weight_decay=0.0), steps=10)
    for shrunk, other in zip(factorised_layers(with_decay).values(), factorised_layers(without).values(), strict=True):
        assert squared_product_norm(shrunk) < squared_product_norm(other)
    optimizer = make_optimizer(with_decay, chosen)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(weight)] == 0 for _, weight, _ in factor_weights(with_decay))


def test_a_groups_own_rate_scales_its_first_step():
    plain, scaled, before = model(), model(), model()
    stepped(plain, [batch()], settings(weight_decay=0.1), steps=1)
    stepped(scaled, [batch()], settings(weight_decay=0.1, factor_rates=FactorRates(A=0.5, B=2.0)), steps=1)
    for (name, one, group), (_, other, _), (_, start, _) in zip(
        *map(factor_weights, (plain, scaled, before)), strict=True
    ):
        scale = 0.5 if group == "A" else 2.0
        torch.testing.assert_close(other.detach() - start, scale * (one.detach() - start), msg=name)


# Distillation -----------------------------------------------------------------------------------------------------


def test_the_loss_mixes_labels_and_teacher():
    chosen = settings(distillation=Distillation(weight=0.25, temperature=3.0))
    output, taught, labels = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    soft = kl_div(log_softmax(output / 3, -1), log_softmax(taught / 3, -1).exp(), reduction="batchmean")
    expected = 0.75 * cross_entropy(output, labels) + 0.25 * 9 * soft
    torch.testing.assert_close(training_loss(output, labels, chosen, taught), expected)
    torch.testing.assert_close(training_loss(output, labels, chosen), cross_entropy(output, labels))


def test_a_student_of_weight_one_comes_to_answer_as_its_teacher_which_stays_as_it_is():
    teacher, student, parts = model(), model(), [batch(64)]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    kept = weights(teacher)
    chosen = settings(distillation=Distillation(weight=1.0), weight_decay=0.0, learning_rate=0.02)
    losses = stepped(student, parts, chosen, steps=40, teacher=teacher)
    assert losses[-1] < losses[0] / 10
    assert torch.equal(weights(teacher), kept)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


# Precision and compilation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_and_keeps_what_is_frozen(precision):
    freezing = SequentialFreezing(period=2, unit="steps")
    chosen = settings(mixed_precision=precision, optimizer="adamw", learning_rate=0.02, freezing=freezing)
    net = model(torch.float32)
    step = TrainingStep(net, make_optimizer(net, chosen), chosen)
    schedule = FreezingSchedule(net, step.optimizer, chosen.freezing)
    losses = []
    for number in range(60):
        schedule.begin(0, number)
        losses.append(float(step.take(net, [batch(dtype=torch.float32)], chosen.learning_rate)))
    schedule.finish()  # refuses frozen weights that moved
    assert losses[-1] < losses[0] / 2
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def trained_in_phases(net, models, chosen):
    step = TrainingStep(net, make_optimizer(net, chosen), chosen)
    schedule = FreezingSchedule(net, step.optimizer, chosen.freezing)
    for number in range(8):
        schedule.begin(0, number)
        step.take(models.of(schedule.frozen), [batch()], chosen.learning_rate)
        learning = {name for name, _, group in factor_weights(net) if group != schedule.frozen}
        assert {name for name, weight, _ in factor_weights(net) if weight.grad is not None} == learning
    schedule.finish()


def test_a_compiled_model_trains_as_an_eager_one_through_every_phase(monkeypatch):
    """With the compiler's tracing and autograd, which is where a stale phase would show; without its C++."""
    made = []

    def compile_(module, real=torch.compile):
        made.append(real(module, backend="aot_eager"))
        return made[-1]

    monkeypatch.setattr(devices.torch, "compile", compile_)
    chosen = settings(freezing=SequentialFreezing(period=2, unit="steps"), clip_norm=1.0)
    eager, compiled = model(), model()
    trained_in_phases(eager, PhaseModels(eager, compiled=False), chosen)
    trained_in_phases(compiled, PhaseModels(compiled, compiled=True), chosen)
    assert len(made) == 2  # one for each phase, however often it comes round
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_code_from_the_real_compiler_trains_as_an_eager_model():
    chosen = settings(freezing=SequentialFreezing(period=2, unit="steps"))
    eager, compiled = model(), model()
    trained_in_phases(eager, PhaseModels(eager, compiled=False), chosen)
    trained_in_phases(compiled, PhaseModels(compiled, compiled=True), chosen)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=0, atol=1e-8)
