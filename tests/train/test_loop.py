import json
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrd_deploy.decompose.layers import SVDLinear
from lrd_deploy.errors import InputError, TrainingDiverged, UsageError
from lrd_deploy.models.data import Data
from lrd_deploy.recipe.settings import FineTuning, Progress, SequentialFreezing, Training
from lrd_deploy.records import SVD
from lrd_deploy.train.accuracy import accuracy
from lrd_deploy.train.loop import TrainingJob, train
from lrd_deploy.train.optimizer import learning_rate_at, make_optimizer
from lrd_deploy.train.step import TrainingStep


def data(seed=0, classes=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (96,), generator=generator)
    inputs = torch.randn(96, 6, generator=generator) + 3 * labels[:, None]
    dataset = TensorDataset(inputs, labels)
    return Data(DataLoader(dataset, 16, shuffle=True), DataLoader(dataset, 32))


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        SVDLinear(nn.Linear(6, 8), SVD(rank=3)), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def job(folder, epochs=4, **changes):
    settings = FineTuning(epochs=epochs, learning_rate=0.05, freezing=SequentialFreezing(), **changes)
    return TrainingJob(model(), data(), settings, seed=3, checkpoints=folder, what="test")


def test_training_learns_and_records_every_epoch(tmp_path):
    learning = job(tmp_path)
    epochs = train(learning)
    assert [epoch.frozen for epoch in epochs] == [{"B": 6}, {"A": 6}, {"B": 6}, {"A": 6}]
    assert epochs[-1].loss < epochs[0].loss
    assert accuracy(learning.model, learning.data) == epochs[-1].accuracy > 0.9
    assert all(parameter.requires_grad for parameter in learning.model.parameters())


class Killed(BaseException):
    """Stands for kill -9: nothing that the loop could catch and clean up after."""


class KilledAt:
    """An observer that ends the process's life at a step."""

    def __init__(self, step):
        self.left = step

    def progress(self, *_):
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [2, 6, 15])
def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path, step, optimizer):
    whole = job(tmp_path / "whole", optimizer=optimizer)
    train(whole)
    with pytest.raises(Killed):
        train(job(tmp_path / "cut", optimizer=optimizer), KilledAt(step))
    resumed = job(tmp_path / "cut", optimizer=optimizer)
    epochs = train(resumed)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_only_the_newest_checkpoint_stays(tmp_path):
    train(job(tmp_path))
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-00004-00000000"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(job(tmp_path))
    other = TrainingJob(nn.Linear(6, 2), data(), Training(epochs=9, learning_rate=0.1), 0, tmp_path, "test")
    with pytest.raises(InputError, match="is missing"):
        train(other)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    broken = TrainingJob(model(), data(), Training(epochs=3, learning_rate=1e30), 0, tmp_path, "dense training")
    with pytest.raises(TrainingDiverged, match=r"dense training, epoch 1: a loss of nan; .* lower 'learning_rate'"):
        train(broken)


def test_accuracy_on_one_class_is_refused():
    with pytest.raises(InputError, match="labels of 1 class"):
        accuracy(nn.Linear(6, 2), data(classes=1))


def test_the_learning_rate_warms_up_and_ends_near_zero():
    settings = Training(epochs=1, learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_loader_with_its_own_generator_resumes_alike(tmp_path):
    def with_generator(folder):
        made = job(folder)
        loader = DataLoader(made.data.train.dataset, 16, shuffle=True, generator=torch.Generator().manual_seed(9))
        return replace(made, data=Data(loader, made.data.test))

    whole, resumed = with_generator(tmp_path / "whole"), with_generator(tmp_path / "cut")
    train(whole)
    with pytest.raises(Killed):
        train(with_generator(tmp_path / "cut"), KilledAt(15))
    train(resumed)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def one_step(**changes):
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    settings = Training(epochs=1, learning_rate=1.0, weight_decay=0.0, momentum=0.0, **changes)
    before = model.weight.detach().clone()
    batch = (10 * torch.randn(8, 6), torch.randint(2, (8,)))
    loss = TrainingStep(model, make_optimizer(model, settings), settings).take(model, [batch], 1.0)
    return loss.item(), (model.weight.detach() - before).norm().item()


def test_clipping_bounds_the_step_and_smoothing_changes_the_loss():
    loss, moved = one_step()
    assert one_step(clip_norm=0.01)[1] <= 0.01 < moved
    assert one_step(label_smoothing=0.2)[0] != loss


def test_a_checkpoint_within_an_epoch_is_gone_on_from_at_its_very_step(tmp_path):
    hurry = Progress(checkpoint_minutes=1e-9)
    whole = job(tmp_path / "whole")
    epochs = train(whole)
    with pytest.raises(Killed):
        train(replace(job(tmp_path / "cut"), progress=hurry), KilledAt(9))
    assert [path.name for path in (tmp_path / "cut").glob("epoch-*")] == ["epoch-00001-00000002"]  # the third is lost
    resumed = replace(job(tmp_path / "cut"), progress=hurry)
    counted = Counted()
    again = train(resumed, counted)
    assert counted.steps == 4 * 6 - 8
    assert [(epoch.loss, epoch.frozen) for epoch in again] == [(epoch.loss, epoch.frozen) for epoch in epochs]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "cut" / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(24))
    assert [line["frozen"] for line in lines[4:8]] == ["B", "B", "A", "A"]


class Counted:
    """An observer that counts steps."""

    def __init__(self):
        self.steps = 0

    def progress(self, *_):
        self.steps += 1


def test_the_log_goes_to_trackers_too(tmp_path):
    train(replace(job(tmp_path), progress=Progress(trackers=("tensorboard",))))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tracking")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [scalar.value for scalar in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match=r"'nosuch'; installed here: .*tensorboard"):
        train(replace(job(tmp_path), progress=Progress(trackers=("nosuch",))))
    assert not list(tmp_path.glob("epoch-*"))
