"""A model source in, a module out: from a transformers config, folder or hub name, or from the user's own code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrd_deploy.errors import InputError, LrdError, UsageError, raise_all
from lrd_deploy.models.example import Example, call
from lrd_deploy.models.stored_tensors import stored_tensors
from lrd_deploy.recipe.settings import ModelSource, PythonModel, TransformersConfig, TransformersPretrained


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode; `trained` when its weights are meant to be used as they are."""

    module: nn.Module
    trained: bool


def load_model(source: ModelSource) -> LoadedModel:
    """Builds or loads a model.

    Raises:
        UsageError: the source names something that does not exist.
        InputError: weights do not fit, or are not finite.
    """
    match source:
        case TransformersConfig():
            module, trained = _from_config(source.transformers), False
        case TransformersPretrained():
            module, trained = _from_pretrained(source.transformers), True
        case PythonModel():
            module, trained = _from_python(source), False
    weights = getattr(source, "weights", None)
    if weights is not None:
        load_weights_(module, weights)
        trained = True
    check_finite(module)
    return LoadedModel(module.eval(), trained)


def logits(model: nn.Module, inputs: Example) -> Tensor:
    """Returns the model's logits, (batch, classes), whether it returns them bare or in an object."""
    return logits_of(call(model, inputs), model)


def logits_of(output: Any, model: nn.Module) -> Tensor:
    """Returns the logits in what a model returned.

    Raises:
        InputError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None:
        raise InputError(
            f"running {type(model).__name__}",
            found=f"an output of type {type(output).__name__} without logits",
            accepted="a tensor of logits, or an object with '.logits'",
            remedy="wrap the model so that it returns logits",
        )
    return found


def load_weights_(module: nn.Module, path: Path) -> nn.Module:
    """Loads a safetensors file, or the shards of an index or a folder, in place; every tensor must fit.

    A tensor that the model has under several names need be stored under one of them only. One file is in memory at a
    time, and none before all names and shapes were compared.

    Raises:
        StorageError: a file cannot be read.
        InputError: names or shapes differ (all of them in one message), or a file is no safetensors file.
    """
    stored = stored_tensors(path)
    own = module.state_dict()
    problems = _misfits({name: tensor.shape for name, tensor in stored.items()}, own)
    if problems:
        raise InputError(
            f"loading weights from '{path}'",
            found="; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""),
            accepted=f"the {len(own)} tensors of {type(module).__name__}",
            remedy="use weights of this architecture, or correct the model section of the recipe",
        )
    for file in sorted({tensor.file for tensor in stored.values()}):
        state = {name: tensor.read() for name, tensor in stored.items() if tensor.file == file}
        module.load_state_dict(state, strict=False)
    return module


def save_weights(module: nn.Module, path: Path) -> None:
    """Saves a module's tensors as safetensors under their state-dict names; tied ones are stored once each name."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    try:
        save_file(state, path)
    except SafetensorError as exc:  # a full disk, told in a class of its own
        raise OSError(str(exc)) from exc


def check_finite(module: nn.Module) -> None:
    """Raises `InputError` naming every floating-point tensor that holds NaN or infinity."""
    problems: list[LrdError] = [
        InputError(
            f"checking the weights of {type(module).__name__}",
            found=f"{int((~torch.isfinite(tensor)).sum())} values of '{name}' are NaN or infinite",
            accepted="finite weights",
            remedy="repair or retrain the model",
        )
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if problems:
        raise_all("checking the model's weights", problems)


def call_factory(reference: str, arguments: Mapping[str, Any]) -> Any:
    """Calls `package.module:factory` with `arguments`.

    Raises:
        UsageError: the module or the factory does not exist, or does not take these arguments.
    """
    module_name, _, name = reference.partition(":")
    factory = _import_factory(module_name, name)
    try:
        return factory(**arguments)
    except LrdError:
        raise
    except Exception as exc:  # whatever the user's code raises
        raise UsageError(
            f"calling 'python:{reference}'",
            found=f"{type(exc).__name__}: {_first_line(exc)}",
            accepted=f"a call that fits {factory.__name__}{inspect.signature(factory)} and returns",
            remedy="correct 'arguments' in the recipe, or the factory",
        ) from exc


def _import_factory(module_name: str, name: str) -> Callable[..., Any]:
    doing = f"importing 'python:{module_name}:{name}'"
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:  # whatever the user's module raises when it is imported
        raise UsageError(
            doing,
            found=f"{type(exc).__name__}: {_first_line(exc)}",
            accepted="a module beside the recipe, in the current folder, or installed",
            remedy="check the name, or install what it imports",
        ) from exc
    factory = getattr(module, name, None)
    if not callable(factory):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            doing,
            found=f"no function '{name}' in '{module.__file__}'",
            accepted=f"one of: {', '.join(offered[:8])}" if offered else "a function defined there",
            remedy="correct the name after the colon",
        )
    return factory


def make_importable(folder: Path | None) -> None:
    """Puts the recipe's folder and the current one in front of the import path, as `python script.py` does."""
    for entry in (Path.cwd(), folder):
        if entry is not None and str(entry.resolve()) not in sys.path:
            sys.path.insert(0, str(entry.resolve()))


def _from_python(source: PythonModel) -> nn.Module:
    module = call_factory(source.python, source.arguments)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"building the model with 'python:{source.python}'",
            found=f"an object of type {type(module).__name__}",
            accepted="a torch.nn.Module",
            remedy="return the module from the factory",
        )
    return module


def _from_config(config: Mapping[str, Any]) -> nn.Module:
    _quiet_transformers()
    import transformers

    options = dict(config)
    model_type = str(options.pop("model_type", ""))
    try:
        built = transformers.AutoConfig.for_model(model_type, **options)
        return _classifier_of(built).from_config(built)
    except (ValueError, TypeError, KeyError) as exc:
        raise UsageError(
            f"building a transformers model of type '{model_type}'",
            found=_first_line(exc),
            accepted="a 'model_type' for image or sequence classification, and that config's own keys",
            remedy="see the config's page in the transformers documentation",
        ) from exc


def _classifier_of(config: Any) -> Any:
    """transformers' class that makes a classifier of this config: of images where it has one, else of sequences."""
    import transformers

    kind = type(config)
    if kind in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForImageClassification
    if kind in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForSequenceClassification
    raise UsageError(
        f"choosing a classifier for a transformers model of type '{config.model_type}'",
        found=f"{kind.__name__} has no model for image or sequence classification",
        accepted="a type that transformers has such a model for",
        remedy="choose another model, or make this one in a factory of your own with 'python:'",
    )


def _from_pretrained(name: str) -> nn.Module:
    _quiet_transformers()
    from transformers import AutoConfig

    doing = f"loading the transformers model '{name}'"
    folder = Path(name)
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise UsageError(
            doing,
            found="no such folder",
            accepted="a folder made by save_pretrained, or a name on the hub such as org/model",
            remedy="check the path; a relative path starts from the recipe's folder",
        )
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise InputError(
            doing,
            found="a folder without a .safetensors file",
            accepted="config.json and model.safetensors",
            remedy="save the model with save_pretrained(folder)",
        )
    try:
        return _classifier_of(AutoConfig.from_pretrained(name)).from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as exc:
        raise UsageError(
            doing,
            found=_first_line(exc),
            accepted="a local folder made by save_pretrained, or a model on the hub that can be reached",
            remedy="check the path or the name; a relative path starts from the recipe's folder",
        ) from exc


def _quiet_transformers() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__


def _misfits(shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor]) -> list[str]:
    stored = {own[name].data_ptr() for name in shapes if name in own}
    missing = [f"'{name}' is missing" for name in own if name not in shapes and not _is_one_of(own[name], stored)]
    foreign = [f"'{name}' is not in the model" for name in shapes if name not in own]
    differing = [
        f"'{name}' is {tuple(shapes[name])} where the model has {tuple(own[name].shape)}"
        for name in own
        if name in shapes and tuple(shapes[name]) != tuple(own[name].shape)
    ]
    return missing + foreign + differing


def _is_one_of(tensor: Tensor, addresses: set[int]) -> bool:
    """True for a tied tensor; those without elements or on the meta device have no address."""
    return tensor.data_ptr() != 0 and tensor.data_ptr() in addresses
