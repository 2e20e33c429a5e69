"""Sequential freezing in loops that are not ours, each run for real."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from lrd_deploy import FreezingSchedule
from lrd_deploy.decompose.layers import SVDLinear
from lrd_deploy.errors import InputError, MissingPackage, UsageError
from lrd_deploy.recipe.settings import NoFreezing, RegularFreezing, SequentialFreezing
from lrd_deploy.records import SVD
from lrd_deploy.train.freezing import factor_weights, freeze_, frozen_group
from tests.train.hosts import (
    EPOCHS,
    STEPS,
    Classifier,
    Images,
    WithLoss,
    lightning_trainer,
    loader,
    transformer,
    transformers_trainer,
)

BY_EPOCH = SequentialFreezing()
BY_STEP = SequentialFreezing(period=2, unit="steps", first_frozen="A")
RESET = SequentialFreezing(optimizer_state="reset")
SCHEDULES = [NoFreezing(), RegularFreezing(), BY_EPOCH, BY_STEP, RESET]


def expected(freezing, first_step=0):
    return [frozen_group(freezing, step // STEPS, step) for step in range(first_step, EPOCHS * STEPS)]


def everything_learns(model):
    return all(parameter.requires_grad for parameter in model.parameters())


def assert_same_weights(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


class Restless(torch.optim.SGD):
    """An optimizer that decays every weight, frozen ones too."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.99)
        return loss


# Transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freezing", SCHEDULES, ids=str)
def test_transformers_trainer_freezes_by_the_schedule(tmp_path, freezing):
    model = transformer()
    trainer, moves = transformers_trainer(model, freezing, tmp_path)
    trainer.train()
    assert moves.stood_still == expected(freezing)
    assert everything_learns(model)


@pytest.mark.parametrize("freezing", [BY_EPOCH, BY_STEP, RESET], ids=str)
@pytest.mark.parametrize("step", [4, 6])
def test_transformers_trainer_resumes_in_its_phase_to_the_very_same_weights(tmp_path, freezing, step):
    whole, resumed = WithLoss(), WithLoss()
    trainer, _ = transformers_trainer(whole, freezing, tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer, moves = transformers_trainer(resumed, freezing, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert moves.stood_still == expected(freezing, step)
    assert_same_weights(whole, resumed)


class EndsEpochsEarly(TrainerCallback):
    def on_step_end(self, _args, _state, control, **_):
        control.should_epoch_stop = True


def test_transformers_epochs_that_end_early_still_count(tmp_path):
    trainer, moves = transformers_trainer(transformer(), BY_EPOCH, tmp_path, callbacks=[EndsEpochsEarly()])
    trainer.train()
    assert moves.stood_still == ["B", "A", "B", "A"]


def test_transformers_best_checkpoint_may_be_loaded_over_frozen_weights(tmp_path):
    model = WithLoss()
    trainer, _ = transformers_trainer(
        model,
        BY_EPOCH,
        tmp_path,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first is the best
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint != str(tmp_path / f"checkpoint-{EPOCHS * STEPS}")
    assert everything_learns(model)


def test_transformers_optimizer_that_moves_frozen_weights_is_found_out(tmp_path):
    model = transformer()
    restless = Restless(model.parameters(), lr=0.01)
    trainer, _ = transformers_trainer(model, BY_EPOCH, tmp_path, optimizers=(restless, None))
    trainer.remove_callback(type(trainer.callback_handler.callbacks[-1]))  # what moves is asserted there too
    with pytest.raises(InputError, match=r"frozen weights have moved, .*; use one that skips grad=None"):
        trainer.train()


def test_transformers_compilation_is_refused(tmp_path):
    trainer, _ = transformers_trainer(transformer(), BY_EPOCH, tmp_path, torch_compile=True)
    with pytest.raises(InputError, match="torch_compile, whose code for one phase may run in another"):
        trainer.train()


def test_transformers_run_that_ends_in_the_first_period_is_refused(tmp_path):
    trainer, _ = transformers_trainer(transformer(), SequentialFreezing(period=4), tmp_path)
    with pytest.raises(UsageError, match="a period of 4 epochs in a run of 4; fewer than 4, or group B would never"):
        trainer.train()


# Lightning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("freezing", SCHEDULES, ids=str)
def test_lightning_freezes_by_the_schedule(freezing, package):
    module = Classifier()
    if package is pytorch_lightning:
        module = in_the_old_package(module)
    trainer, moves = lightning_trainer(freezing, package)
    trainer.fit(module, loader())
    assert moves.stood_still == expected(freezing)
    assert everything_learns(module)


def in_the_old_package(module):
    class Old(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Classifier.training_step, Classifier.configure_optimizers

    old = Old()
    old.net, old.make_optimizer = module.net, module.make_optimizer
    return old


@pytest.mark.parametrize("freezing", [BY_EPOCH, BY_STEP, RESET], ids=str)
@pytest.mark.parametrize("epochs", [1, 2])
def test_lightning_resumes_in_its_phase_to_the_very_same_weights(tmp_path, freezing, epochs):
    whole, resumed = Classifier(), Classifier()
    saves = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer, _ = lightning_trainer(freezing, callbacks=[saves], enable_checkpointing=True)
    trainer.fit(whole, loader())
    trainer, moves = lightning_trainer(freezing)
    trainer.fit(resumed, loader(), ckpt_path=tmp_path / f"epoch={epochs - 1}.ckpt")
    assert moves.stood_still == expected(freezing, epochs * STEPS)
    assert_same_weights(whole, resumed)


def test_lightning_resumes_in_its_phase_inside_an_epoch(tmp_path):
    trainer, _ = lightning_trainer(BY_STEP, max_steps=4)
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    trainer, moves = lightning_trainer(BY_STEP)
    trainer.fit(Classifier(), loader(), ckpt_path=tmp_path / "cut.ckpt")
    assert moves.stood_still == expected(BY_STEP, 4)[: 2 * STEPS]  # to Lightning the epoch that was cut is over


def test_lightning_optimizer_that_moves_frozen_weights_is_found_out():
    module = Classifier(make_optimizer=Restless)
    trainer, _ = lightning_trainer(BY_EPOCH)
    trainer.callbacks.pop()  # what moves is asserted there too
    with pytest.raises(InputError, match="frozen weights have moved"):
        trainer.fit(module, loader())
    assert everything_learns(module)


def test_lightning_several_optimizers_are_refused():
    module = Classifier()
    module.automatic_optimization = False
    module.configure_optimizers = lambda: [torch.optim.SGD(module.parameters(), 0.1) for _ in range(2)]
    with pytest.raises(InputError, match="2 optimizers, each of which counts in global_step"):
        lightning_trainer(BY_EPOCH, accumulate_grad_batches=1)[0].fit(module, loader())


def test_lightning_compiled_module_is_refused():
    with pytest.raises(InputError, match="a compiled module, whose code for one phase may run in another"):
        lightning_trainer(BY_EPOCH)[0].fit(torch.compile(Classifier()), loader())


def test_lightning_run_that_ends_in_the_first_period_is_refused():
    freezing = SequentialFreezing(period=EPOCHS * STEPS, unit="steps")
    with pytest.raises(UsageError, match="a period of 12 steps in a run of 12"):
        lightning_trainer(freezing)[0].fit(Classifier(), loader())


class Unsized(IterableDataset):
    def __iter__(self):
        return iter([Images()[index] for index in range(8)])


def test_lightning_data_of_unknown_length_freeze_by_the_schedule():
    trainer, moves = lightning_trainer(BY_STEP, accumulate_grad_batches=1)
    trainer.fit(Classifier(), DataLoader(Unsized(), batch_size=4))
    assert moves.stood_still == [frozen_group(BY_STEP, 0, step) for step in range(2 * EPOCHS)]


def test_lightning_exception_outside_training_changes_nothing():
    module = Classifier()
    freeze_(module, "B")
    trainer, _ = lightning_trainer(BY_EPOCH)
    with pytest.raises(Exception, match="validation_step"):
        trainer.validate(module, loader())
    assert not everything_learns(module)


def test_without_lightning_its_callback_names_the_extra():
    script = (
        "import sys; sys.modules |= dict.fromkeys(('lightning', 'pytorch_lightning'));"
        "import lrd_deploy.train.adapters.lightning"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert MissingPackage.__name__ in done.stderr
    assert "pip install 'lrd-deploy[lightning]'" in done.stderr


# Two processes ----------------------------------------------------------------------------------------------------


def in_two_processes(host, folder):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.train.two_processes"]
    done = subprocess.run(
        [sys.executable, *command, host, folder],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["lightning", "transformers"])
def test_two_processes_freeze_alike_and_end_with_the_same_weights(tmp_path, host):
    one, other = in_two_processes(host, tmp_path)
    assert one == other
    assert one["still"][:6] == ["B", "B", "A", "A", "B", "B"]


@pytest.mark.slow
def test_transformers_wrapper_that_looks_once_is_refused(tmp_path):
    for line in in_two_processes("transformers-looks-once", tmp_path):
        assert "DistributedDataParallel, which looks at requires_grad once" in line["refused"]
        assert "set TrainingArguments(ddp_find_unused_parameters=True)" in line["refused"]


# A plain loop -----------------------------------------------------------------------------------------------------


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(SVDLinear(nn.Linear(6, 8), SVD(rank=3)), nn.ReLU(), nn.Linear(8, 2))


def take_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("freezing", SCHEDULES, ids=str)
def test_a_plain_loop_freezes_by_the_schedule(freezing):
    model = small()
    optimizer = adamw(model)
    schedule = FreezingSchedule(model, optimizer, freezing)
    for step in range(8):
        schedule.begin(step // 2, step)
        before = copy.deepcopy(model.state_dict())
        take_step(model, optimizer)
        for name, weight, owner in factor_weights(model):
            assert torch.equal(weight, before[f"{name}.weight"]) == (owner == frozen_group(freezing, step // 2, step))
    schedule.finish()
    assert everything_learns(model)


def test_a_loop_whose_optimizer_knows_no_factor_is_told_at_the_end():
    model = small()
    stranger = nn.Linear(4, 4)
    schedule = FreezingSchedule(model)
    for epoch in range(2):
        schedule.begin(epoch)
        take_step(model, adamw(stranger))
    with pytest.raises(InputError, match=r"no factor that has moved .* make it after decompose_"):
        schedule.finish()
    assert everything_learns(model)


@pytest.mark.parametrize("state", ["kept", "reset"])
def test_the_optimizer_state_of_a_factor_that_learns_again_is_kept_or_reset(state):
    model = small()
    optimizer = adamw(model)
    schedule = FreezingSchedule(model, optimizer, SequentialFreezing(optimizer_state=state))
    for epoch in range(2):
        schedule.begin(epoch)
        take_step(model, optimizer)
    schedule.begin(2)  # A froze in epoch 1, and learns now
    down = model[0].down.weight
    assert down.requires_grad
    assert all(bool(value.any()) == (state == "kept") for value in optimizer.state[down].values())


def test_an_optimizer_that_moves_frozen_weights_is_found_out():
    model = small()
    optimizer = Restless(model.parameters(), lr=0.01)
    schedule = FreezingSchedule(model, optimizer)
    schedule.begin(0)
    take_step(model, optimizer)
    for found_out in (schedule.check, schedule.finish, lambda: schedule.begin(1)):
        with pytest.raises(InputError, match=r"1 frozen weights have moved, '0\.up\.weight' first"):
            found_out()


def test_an_optimizer_without_the_frozen_factors_is_refused():
    model = small()
    freeze_(model, "B")
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    with pytest.raises(InputError, match=r"an optimizer without 1 factors, '0\.up\.weight' first"):
        FreezingSchedule(model, optimizer)


def test_resetting_needs_the_optimizer():
    with pytest.raises(InputError, match="no optimizer; one, to reset its state"):
        FreezingSchedule(small(), freezing=RESET)


def test_shared_weights_are_refused():
    model = nn.Sequential(small()[0], SVDLinear(nn.Linear(6, 8), SVD(rank=3)))
    model[1].down.weight = model[0].down.weight
    with pytest.raises(InputError, match=r"the weight of '0\.down' is shared with another layer"):
        FreezingSchedule(model)


def test_a_model_without_factors_is_refused():
    with pytest.raises(InputError, match="no factorised layer, so both groups are empty; a decomposed model"):
        FreezingSchedule(nn.Linear(4, 4))


def test_a_wrapped_model_is_refused():
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)  # the real one needs a process group
    nn.Module.__init__(wrapped)
    wrapped.module = small()
    with pytest.raises(InputError, match=r"looks at requires_grad only once; .* pass model\.module"):
        FreezingSchedule(wrapped)


@pytest.mark.parametrize("compiled", [torch.compile, lambda model: (model.compile(), model)[1]])
def test_a_compiled_model_is_refused(compiled):
    with pytest.raises(InputError, match="a compiled model, whose code for one phase may run in another"):
        FreezingSchedule(compiled(small()))
