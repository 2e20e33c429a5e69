"""Measuring a recipe's layers once, into a table that plans can be made from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrd_deploy.bench.environment import environment
from lrd_deploy.errors import UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.observer import Observer
from lrd_deploy.ranks.exploration import Exploration, explore
from lrd_deploy.ranks.staircase import quantum_probes
from lrd_deploy.recipe import LatencyRank, Recipe
from lrd_deploy.records import CalibratedLatencies, Execution


@dataclass(frozen=True)
class Shard:
    """Every `count`-th distinct layer, from the `number`-th on, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "2/8".

        Raises:
            UsageError: anything else.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise UsageError(
            "reading --shard",
            found=f"'{text}'",
            accepted="I/N with 1 ≤ I ≤ N, such as 2/8",
            remedy="correct the option",
        )

    def of(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Returns the layers of this shard."""
        distinct = list(dict.fromkeys(layer.signature for layer in layers if layer.signature))
        mine = set(distinct[self.number - 1 :: self.count])
        return tuple(layer for layer in layers if layer.signature in mine)


def on_device(recipe: Recipe, device: str) -> Recipe:
    """Returns the recipe with that device in `bench`, and what else of `bench` belongs to a device as it is there.

    Raises:
        UsageError: there is no such device, or the recipe's other settings do not go with it.
    """
    bench = recipe.bench
    beside = {} if device == "cpu" else bench.model_dump(include={"io_binding", "cuda_graph", "tf32"})
    execution = Execution.on(device, **beside)
    return recipe.model_copy(update={"bench": bench.model_copy(update=execution.model_dump())})


def calibrate_latency(
    recipe: Recipe,
    recipe_folder: Path | None,
    table: Path,
    observer: Observer,
    *,
    work: Literal["inference", "training"] = "inference",
    shard: Shard | None = None,
) -> CalibratedLatencies:
    """Times every distinct layer of a recipe's model, dense and along its staircases, into `table`.

    The weights do not matter, so nothing is trained. Rows that the table has already are measured again only where
    they did not settle.

    Args:
        recipe: the model, the data's shapes, `bench`, `fine_tune` and the policy's precision for the conditions.
        recipe_folder: where `python:` factories are looked for first.
        table: is made, or added to.
        observer: hears of progress.
        work: a forward pass on the deployment backend, or a training step in PyTorch.
        shard: the part of the layers to time; all by default.

    Raises:
        UsageError: there are more threads than cores.
    """
    from lrd_deploy.bench.compare import check_threads
    from lrd_deploy.models.data import load_data
    from lrd_deploy.models.example import first_samples
    from lrd_deploy.models.source import load_model, make_importable
    from lrd_deploy.models.survey import survey
    from lrd_deploy.pipeline.planning import measured_inference, measured_training

    if work == "inference":  # a training step has threads of its own
        check_threads(recipe.bench.threads)
    make_importable(recipe_folder)
    data = load_data(recipe.data, seed=recipe.seed)
    layers = survey(load_model(recipe.model).module, first_samples(data.example(), 1), skip=recipe.skip)
    source = (
        measured_inference(recipe, table, observer)
        if work == "inference"
        else measured_training(recipe, data, table, observer)
    )
    source.retry = True
    before = len(source.table.rows)
    wanted = (shard or Shard()).of(layers)
    quantum = recipe.ranks.quantum if isinstance(recipe.ranks, LatencyRank) else "auto"
    found = explore(wanted, source, quantum)
    _probe_all(found, wanted)  # so that a plan made elsewhere can find the quantum itself
    return CalibratedLatencies(
        path=table,
        fingerprint=environment().fingerprint,
        work=work,
        layers=len(found.known),
        rows_written=len(source.table.rows) - before,
        rows=len(source.table.rows),
        quantum=found.quantum,
        notes=source.notes,
    )


def _probe_all(found: Exploration, layers: tuple[Layer, ...]) -> None:
    free = dict.fromkeys(layer.signature for layer in layers if layer.may_be_factorised)
    found.ask({signature: quantum_probes(signature) for signature in free})
