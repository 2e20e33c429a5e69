"""Calibration data through a PyTorch model: what each layer's inputs look like, and how much each layer matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.errors import InputError
from lrd_deploy.models.example import Example, call, mapped, named_outputs
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.plain_layer import plain_layer
from lrd_deploy.ranks.evidence import Evidence, metrics_of
from lrd_deploy.ranks.matricisation import as_kernel
from lrd_deploy.ranks.metric import InputMoment, Metric, MomentSum, along_axes

Array = NDArray[np.floating]

_GROUPS = 4  # of consecutive layers, each evaluated once in the whole model
_SHARE = 0.9  # of a layer's energy that an evaluation keeps: an error far from both nothing and everything
_WITHIN = 30.0  # an evaluation may move a group's importance by at most this factor, either way


def gather_evidence(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Example], *, damping: float
) -> Evidence:
    """Returns metrics for the layers' inputs, and what each layer's error adds to that of the model's outputs.

    Importance is a Gauss–Newton estimate from one backward pass per batch, `E ‖∂z/∂y‖² ‖y‖² / (out · ‖z − z̄‖²)` with
    outputs z and the layer's outputs y, which holds for an error that is spread like noise over the layer's channels.
    Consecutive layers are then compressed together in the whole model, and their importance scaled to what came out.

    Args:
        model: the dense model; left as it was.
        layers: as `survey` found them.
        batches: inputs, as the model takes them; all of one shape but for the number of samples.
        damping: see `Metric.of`.

    Raises:
        InputError: the data has NaN or the wrong shape, or the model gives such outputs on it.

    Limits: of a model with several outputs all floats count alike, so that a large one outweighs a small one.
    """
    moments = input_moments(model, layers, batches)
    metrics, unweighted = metrics_of(moments, damping=damping)
    estimated = _importance(model, layers, batches)
    importance = _calibrated(model, layers, batches, metrics, estimated)
    return Evidence(metrics=metrics, importance=importance, unweighted=unweighted)


def input_moments(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Example]) -> dict[str, InputMoment]:
    """Returns the second moments of every factorisable layer's inputs; one batch's activations are in memory at a time.

    Raises:
        InputError: no batch, values that are NaN, or another number of channels than the layer has.
    """
    sums = {layer.name: MomentSum(layer.name, layer.signature, _product) for layer in layers if not layer.refusal}

    def read(name: str, inputs: Tensor, _output: Tensor) -> None:
        sums[name].update(inputs.detach().cpu().to(torch.promote_types(inputs.dtype, torch.float32)).numpy())

    with torch.no_grad(), _watched(model, sums, read):
        for batch in batches:
            call(model, batch)
    return {name: total.moment() for name, total in sums.items()}


def _product(one: Array, other: Array) -> Array:
    """By PyTorch: the idle threads of NumPy's product would keep spinning, and take the cores from the model."""
    return (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()


# How much a layer matters --------------------------------------------------------------------------------------


def _importance(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Example]) -> dict[str, float]:
    """The Gauss–Newton estimate, averaged over the batches."""
    names = [layer.name for layer in layers if not layer.refusal]
    totals = dict.fromkeys(names, 0.0)
    probes = torch.Generator().manual_seed(0)

    def read(name: str, _inputs: Tensor, output: Tensor) -> None:
        bias = model.get_submodule(name).bias
        axis = 1 if output.ndim == 4 else output.ndim - 1
        linear = output.detach() if bias is None else output.detach() - _along(bias.detach(), output, axis)
        energy = linear.square().sum(axis)

        def add(gradient: Tensor) -> None:
            totals[name] += float((gradient.square().sum(axis) * energy).sum()) / output.shape[axis]

        output.register_hook(add)

    variance = 0.0
    with _watched(model, names, read), torch.enable_grad():
        for batch in batches:
            z = _values(model, _with_gradient(batch))
            _check_outputs(z)
            variance += float((z.detach() - z.detach().mean(0)).square().sum())
            (z * torch.randn(z.shape, generator=probes).to(z)).sum().backward()
    model.zero_grad(set_to_none=True)
    return {name: total / (variance or 1.0) for name, total in totals.items()}


def _calibrated(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Example],
    metrics: Mapping[str, Metric],
    estimated: Mapping[str, float],
) -> dict[str, float]:
    """Scales the estimates, group by group, to what compressing the group does to the model's outputs."""
    free = [layer for layer in layers if not layer.refusal]
    trial = copy.deepcopy(model).eval()
    reestimate_batchnorm_(trial, batches)
    reference = _outputs(trial, batches)
    spread = float((reference - reference.mean(0)).square().sum()) or 1.0
    importance = dict(estimated)
    for group in _groups(free):
        predicted = 0.0
        for layer in group:
            kernel, squared_error = _truncated(layer.weight(), metrics.get(layer.name))
            _set_weight_(trial, layer.name, kernel)
            predicted += estimated[layer.name] * squared_error
        reestimate_batchnorm_(trial, batches)
        found = float((_outputs(trial, batches) - reference).square().sum()) / spread
        scale = float(np.clip(found / predicted, 1 / _WITHIN, _WITHIN)) if predicted and np.isfinite(found) else 1.0
        for layer in group:
            importance[layer.name] *= scale
            _set_weight_(trial, layer.name, layer.weight())
    return importance


def _groups(layers: Sequence[Layer]) -> list[Sequence[Layer]]:
    bounds = np.linspace(0, len(layers), _GROUPS + 1).round().astype(int)
    return [layers[low:high] for low, high in pairwise(bounds) if high > low]


def _truncated(weight: Array, metric: Metric | None) -> tuple[Array, float]:
    """The weight without its weakest output directions, and the squared relative error of that, both in the metric."""
    kernel = as_kernel(weight.astype(np.float64))
    whitened = kernel if metric is None else metric.whiten(kernel)
    matrix = whitened.reshape(len(kernel), -1)  # (out, in·kh·kw)
    wide = matrix.shape[0] <= matrix.shape[1]
    energies, directions = np.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)  # ascending
    shares = np.maximum(energies, 0.0).cumsum() / (max(energies.sum(), np.finfo(float).tiny))
    dropped = min(int((shares <= 1 - _SHARE).sum()), len(shares) - 1)
    kept = directions[:, dropped:]
    truncated = kept @ (kept.T @ matrix) if wide else (matrix @ kept) @ kept.T
    approximation = truncated.reshape(whitened.shape)
    if metric is not None:
        approximation = along_axes(approximation, metric.inverses)
    return approximation.reshape(weight.shape), float(shares[dropped - 1]) if dropped else 0.0


def _set_weight_(model: nn.Module, name: str, weight: Array) -> None:
    with torch.no_grad():
        plain_layer(model.get_submodule(name)).weight.copy_(torch.from_numpy(weight))


def _with_gradient(example: Example) -> Example:
    """A copy whose floats ask for their gradient, so that a model of frozen weights has one to pass back."""
    return mapped(example, lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))


def _values(model: nn.Module, example: Example) -> Tensor:
    """(batch, values): a classifier's logits, or every float that the model returns."""
    outputs = named_outputs(call(model, example), example).values()
    return torch.cat([output.flatten(1) for output in outputs if output.is_floating_point()], 1)


@torch.no_grad()
def _outputs(model: nn.Module, batches: Sequence[Example]) -> Tensor:
    found = [_values(model, batch) for batch in batches]
    widths = sorted({values.shape[1] for values in found})
    if len(widths) > 1:
        raise InputError(
            "running the dense model on the calibration data",
            found=f"between {widths[0]} and {widths[-1]} outputs per sample",
            accepted="batches of one shape but for the number of samples",
            remedy="cut or pad the samples to one length",
        )
    return torch.cat(found)


def _check_outputs(z: Tensor) -> None:
    bad = int((~torch.isfinite(z)).sum())
    if bad:
        raise InputError(
            "running the dense model on the calibration data",
            found=f"{bad} outputs that are NaN or infinite",
            accepted="finite outputs",
            remedy="check the calibration data and the dense model",
        )


def _along(bias: Tensor, output: Tensor, axis: int) -> Tensor:
    """The bias, shaped so that it broadcasts along the channel axis."""
    return bias.reshape([-1 if dim == axis else 1 for dim in range(output.ndim)])


def _first(args: tuple[Tensor, ...], keywords: Mapping[str, Tensor]) -> Tensor:
    return args[0] if args else next(iter(keywords.values()))


@contextmanager
def _watched(
    model: nn.Module, names: Sequence[str] | Mapping[str, object], read: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls `read(name, input, output)` whenever one of these layers runs; the model is in eval mode meanwhile."""
    modes = {module: module.training for module in model.modules()}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, args, keywords, output, name=name: read(name, _first(args, keywords), output),
            with_kwargs=True,
        )
        for name in names
    ]
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
