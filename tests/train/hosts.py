"""Real hosts on tiny models, and what they move: for the tests of the callbacks, in one process and in two."""

import copy

import lightning.pytorch as lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from lrd_deploy import UniformRank, decompose_, plan_ranks, survey
from lrd_deploy.train.adapters.lightning import FreezingCallback as LightningFreezing
from lrd_deploy.train.adapters.transformers_trainer import FreezingCallback as TrainerFreezing
from lrd_deploy.train.freezing import factor_weights

SAMPLES, BATCH, ACCUMULATED, EPOCHS = 24, 4, 2, 4
STEPS = SAMPLES // BATCH // ACCUMULATED  # per epoch, in one process


class Images(Dataset):
    """Random 8×8 images of four classes."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": index % 4}


def transformer():
    """A decomposed ViT of one block."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    net = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=4, **shape))
    layers = survey(net, torch.zeros(1, 3, 8, 8))
    return decompose_(net, plan_ranks(layers, UniformRank(alpha=2)))


def convolutional():
    """A decomposed convolution and classifier."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    return decompose_(net, plan_ranks(survey(net, torch.zeros(1, 3, 8, 8)), UniformRank(alpha=2)))


class WithLoss(nn.Module):
    """A module of no library's, as transformers' Trainer calls it: the Trainer stores its weights by their own names.

    Weights of its own models it stores by others, and reads them back wrongly (transformers issue 43701).
    """

    def __init__(self):
        super().__init__()
        self.net = convolutional()

    def forward(self, pixel_values, labels):
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Classifier(lightning.LightningModule):
    """A decomposed convolutional network under Lightning."""

    def __init__(self, make_optimizer=torch.optim.AdamW):
        super().__init__()
        self.net = convolutional()
        self.make_optimizer = make_optimizer

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch["pixel_values"]), batch["labels"])

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters(), lr=0.01, weight_decay=0.1)


class Moves:
    """Which group stood still in each optimizer step, bit for bit, while all of the others moved."""

    def __init__(self):
        self.stood_still = []
        self._before = None

    def begin(self, model):
        if self._before is None:
            self._before = copy.deepcopy({name: weight.detach() for name, weight, _ in factor_weights(model)})

    def end(self, model):
        moved = {"A": set(), "B": set()}
        for name, weight, owner in factor_weights(model):
            moved[owner].add(not torch.equal(weight, self._before[name]))
        still = [group for group, found in moved.items() if found == {False}]
        assert all(found == {True} for group, found in moved.items() if group not in still)
        self.stood_still.append(still[0] if still else "none")
        self._before = None


class TrainerMoves(TrainerCallback, Moves):
    def on_step_begin(self, *_, model, **__):
        self.begin(model)

    def on_step_end(self, *_, model, **__):
        self.end(model)


class LightningMoves(lightning.Callback, Moves):
    def on_train_batch_start(self, trainer, pl_module, *_):
        self.step = trainer.global_step
        self.begin(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.step:
            self.end(pl_module)


def transformers_trainer(model, freezing, folder, *, callbacks=(), optimizers=(None, None), **arguments):
    """A Trainer of AdamW with weight decay, and what it moves."""
    moves = TrainerMoves()
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **(settings | arguments)),
        train_dataset=Images(),
        eval_dataset=Images(),
        callbacks=[TrainerFreezing(freezing), moves, *callbacks],
        optimizers=optimizers,
    )
    return trainer, moves


def lightning_trainer(freezing, package=lightning, callbacks=(), **arguments):
    """A Trainer, and what it moves."""
    moves = LightningMoves()
    settings = {
        "max_epochs": EPOCHS,
        "accumulate_grad_batches": ACCUMULATED,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    callbacks = [LightningFreezing(freezing), moves, *callbacks]
    return package.Trainer(callbacks=callbacks, **(settings | arguments)), moves


def loader():
    return DataLoader(Images(), BATCH)
