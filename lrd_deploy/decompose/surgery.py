"""Applying a plan to a model, and taking it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from lrd_deploy.decompose.layers import FactorisedLayer, SVDConv2d, SVDLinear, Tucker2Conv2d
from lrd_deploy.errors import InputError, raise_all
from lrd_deploy.models.plain_layer import plain_layer
from lrd_deploy.models.source import load_weights_
from lrd_deploy.ranks.metric import Metric
from lrd_deploy.records import SVD, ChannelSVD, Choice, PlannedLayer, RankPlan, SpatialSVD, Tucker2


def decompose_(model: nn.Module, plan: RankPlan, metrics: Mapping[str, Metric] | None = None) -> nn.Module:
    """Replaces, in place, every layer that the plan factorises by its closest approximation; returns the model.

    Nothing is replaced unless every planned layer is there and fits its choice.

    Args:
        model: the dense model that the plan was made for.
        plan: a choice per layer.
        metrics: weighs the error of the layers that it names by their inputs; see `ranks.metric`.

    Raises:
        InputError: a layer is missing, of another shape, or its weight is not finite.
        Problems: several of these.
    """
    metrics = metrics or {}

    def make(form: type[FactorisedLayer], dense: nn.Module, planned: PlannedLayer) -> FactorisedLayer:
        return form.from_dense(dense, planned.choice, metrics.get(planned.name))

    return _replace_planned_(model, plan, make)


def load_lowrank_(model: nn.Module, plan: RankPlan, weights: Path) -> nn.Module:
    """Gives a dense model, in place, the plan's layers and the stored weights of a low-rank one; returns the model.

    Raises:
        InputError: the plan or the weights are of another model.
        StorageError: the weights cannot be read.
    """
    _replace_planned_(model, plan, lambda form, dense, planned: form(dense, planned.choice))
    return load_weights_(model, weights)


def merge_(model: nn.Module) -> nn.Module:
    """Replaces, in place, every factorised layer by the dense layer that it equals; returns the model.

    What was the `Conv1D` of transformers comes back as an `nn.Linear`, whose weight is stored the other way round.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, FactorisedLayer):
            _replace_(model, name, layer.merge())
    return model


def factorised_layers(model: nn.Module) -> dict[str, FactorisedLayer]:
    """Returns the factorised layers by their dotted names."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FactorisedLayer)}


def _replace_planned_(
    model: nn.Module, plan: RankPlan, make: Callable[[type[FactorisedLayer], nn.Module, PlannedLayer], FactorisedLayer]
) -> nn.Module:
    layers = {name: plain_layer(module) for name, module in model.named_modules()}
    replacements, problems = {}, []
    for planned in plan.factorised:
        try:
            dense = layers.get(planned.name)
            form = form_of(dense, planned.choice)
            _check_shape(dense, planned)
            replacements[planned.name] = make(form, dense, planned)
        except InputError as problem:
            problems.append(_told_of_layer(planned, problem))
    if problems:
        raise_all("applying the rank plan to the model", problems)
    for name, layer in replacements.items():
        _replace_(model, name, layer)
    return model


def _told_of_layer(planned: PlannedLayer, problem: InputError) -> InputError:
    return InputError(
        f"factorising the layer '{planned.name}'",
        found=problem.found,
        accepted=problem.accepted,
        remedy=problem.remedy.replace("'skip' in the recipe", f"skip: ['{planned.name}']"),
    )


def form_of(dense: nn.Module | None, choice: Choice) -> type[FactorisedLayer]:
    """Returns the class of the factorised layer that a dense one becomes.

    Raises:
        InputError: the choice is none for this kind of layer.
    """
    match dense, choice:
        case nn.Linear(), SVD():
            return SVDLinear
        case nn.Conv2d(groups=1, kernel_size=(1, 1)), SVD():
            return SVDConv2d
        case nn.Conv2d(groups=1, kernel_size=kernel), ChannelSVD() | SpatialSVD() if kernel != (1, 1):
            return SVDConv2d
        case nn.Conv2d(groups=1), Tucker2():
            return Tucker2Conv2d
    raise InputError(
        "choosing a form",
        found=f"'{choice}' for {'no such layer' if dense is None else type(dense).__name__}",
        accepted="svd for linear and 1×1 layers; channel_svd, spatial_svd or tucker2 for k×k convolutions of one group",
        remedy="make the plan again for this model",
    )


def _check_shape(dense: nn.Linear | nn.Conv2d, planned: PlannedLayer) -> None:
    """Refuses a plan that was made for a layer of another size."""
    signature, shape = planned.signature, tuple(dense.weight.shape)
    if signature is None:
        return
    wanted = (signature.out_channels, signature.in_channels)
    wanted += signature.kernel if isinstance(dense, nn.Conv2d) else ()
    if shape != wanted:
        raise InputError(
            "comparing the plan with the layer",
            found=f"a weight of shape {shape}",
            accepted=f"{wanted}, which the plan was made for",
            remedy="make the plan again for this model",
        )


def _replace_(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
