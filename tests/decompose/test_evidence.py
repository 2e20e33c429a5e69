import pytest
import torch
from torch import nn

from benchmarks.architectures import ARCHITECTURES
from lrd_deploy.decompose.evidence import gather_evidence, input_moments
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.errors import InputError
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.evidence import metrics_of
from lrd_deploy.recipe import UniformRank
from tests.tolerances import sum_tolerance


def network(seed=0, width=16):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def images(count=4, batch=16):
    """Smooth images, whose neighbouring pixels and channels are alike."""
    torch.manual_seed(1)
    noise = torch.randn(count, batch, 1, 12, 12).cumsum(-1).cumsum(-2) / 12
    return list(noise * torch.tensor([1.0, 0.9, 0.1]).reshape(3, 1, 1))


def layers_of(model):
    return survey(model, images()[0][:1])


def test_moments_are_the_averages_of_outer_products():
    model, data = network(), [batch.double() for batch in images()]
    layers = layers_of(model)
    moments = input_moments(model.double(), layers, data)
    with torch.no_grad():
        inputs = torch.cat([model.eval()[:3](batch) for batch in data])  # what the 1×1 reads
    vectors = inputs.permute(1, 0, 2, 3).reshape(16, -1)
    expected = vectors @ vectors.T / vectors.shape[1]
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        torch.from_numpy(moments["3"].channels),
        expected,
        rtol=0,
        atol=sum_tolerance("float64", vectors.shape[1], scale),
    )
    assert moments["3"].positions == 4 * 16 * 144


def test_neighbouring_pixels_of_smooth_images_are_correlated():
    moment = input_moments(network(), layers_of(network()), images())["0"]
    assert moment.height.shape == (3, 3)
    assert moment.height[0, 1] > 0.5


def test_gathering_leaves_the_model_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gather_evidence(model, layers_of(model), images(), damping=0.01)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def output_error(model, plan, metrics):
    data = images()
    lowrank = decompose_(network(), plan, metrics)
    with torch.no_grad():
        exact = torch.cat([model.eval()(batch) for batch in data])
        return ((torch.cat([lowrank.eval()(batch) for batch in data]) - exact).norm() / exact.norm()).item()


def test_weighted_factors_keep_the_outputs_better():
    model = network()
    layers = layers_of(model)
    plan = plan_ranks(layers, UniformRank(alpha=2.5))
    metrics, _ = metrics_of(input_moments(model, layers, images()), damping=0.01)
    assert plan.factorised
    assert output_error(model, plan, metrics) < output_error(model, plan, {})


def test_a_layer_that_the_output_does_not_hear_has_no_importance():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.heard, self.ignored = network(), nn.Conv2d(3, 16, 1)

        def forward(self, x):
            return self.heard(x) + 0.0 * self.ignored(x).mean()

    deaf = Deaf()
    evidence = gather_evidence(deaf, survey(deaf, images()[0][:1]), images(), damping=0.01)
    assert evidence.importance["ignored"] == 0.0
    assert evidence.importance["heard.3"] > 0.0


def test_the_predicted_error_of_a_plan_is_that_of_the_model_to_within_a_factor():
    model = network()
    layers = layers_of(model)
    evidence = gather_evidence(model, layers, images(), damping=0.01)
    plan = plan_ranks(layers, UniformRank(alpha=2.5), evidence=evidence)
    predicted = sum(evidence.importance[layer.name] * layer.predicted_error**2 for layer in plan.factorised) ** 0.5
    data = images()
    lowrank = decompose_(network(), plan, evidence.metrics)
    with torch.no_grad():
        exact = torch.cat([model.eval()(batch) for batch in data])
        found = torch.cat([lowrank.eval()(batch) for batch in data])
    actual = ((found - exact).norm() / (exact - exact.mean(0)).norm()).item()
    assert actual / 3 < predicted < actual * 3


def test_too_few_inputs_leave_a_layer_plain_with_the_reason():
    model = network(width=64)
    moments = input_moments(model, survey(model, images()[0][:1]), [images()[0]])
    metrics, unweighted = metrics_of(moments, damping=0.01)
    assert unweighted == {"8": "plain: 16 calibration inputs cannot tell 64 channels apart"}
    assert "8" not in metrics
    assert "5" in metrics


def test_calibration_data_that_is_not_finite_is_refused():
    spoilt = images()[0].index_fill(0, torch.tensor([1]), float("nan"))
    with pytest.raises(InputError, match="the layer '0': 432 values that are NaN or infinite"):
        gather_evidence(network(), layers_of(network()), [spoilt], damping=0.01)


def test_no_calibration_data_is_refused():
    with pytest.raises(InputError, match="no calibration data"):
        input_moments(network(), layers_of(network()), [])


def test_several_inputs_weigh_errors_as_one_does():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, image, scale):
            return {"scores": self.body(image * scale)}

    data = images()
    named = [{"image": batch * 2, "scale": torch.full((len(batch), 1, 1, 1), 0.5)} for batch in data]
    model = Scored()
    several = gather_evidence(model, survey(model, named[0]), named, damping=0.01)
    one = gather_evidence(network(), layers_of(network()), data, damping=0.01)
    assert {name.removeprefix("body."): value for name, value in several.importance.items()} == pytest.approx(
        one.importance, rel=sum_tolerance("float32", 144)
    )
    assert {name.removeprefix("body.") for name in several.metrics} == one.metrics.keys()


def test_tokens_weigh_the_layers_of_a_language_model():
    model, tokens = ARCHITECTURES["GPT-2"].build(), ARCHITECTURES["GPT-2"].inputs
    before = [parameter.clone() for parameter in model.parameters()]
    data = [tokens(16, 6), tokens(12, 6)]
    layers = survey(model, data[0])
    evidence = gather_evidence(model, layers, data, damping=0.01)
    assert evidence.importance.keys() == {layer.name for layer in layers if not layer.refusal}
    assert all(importance > 0 for importance in evidence.importance.values())
    assert all(map(torch.equal, before, model.parameters()))


def test_batches_of_different_lengths_are_refused():
    model, tokens = ARCHITECTURES["GPT-2"].build(), ARCHITECTURES["GPT-2"].inputs
    with pytest.raises(InputError, match="between 540 and 720 outputs per sample"):
        gather_evidence(model, survey(model, tokens(2, 6)), [tokens(16, 6), tokens(16, 8)], damping=0.01)
