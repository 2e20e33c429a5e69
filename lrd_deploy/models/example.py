"""What a module is called with and what it returns, as tensors by name: one of each or many."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lrd_deploy.errors import InputError

# One tensor, tensors by position, or tensors by keyword.
Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

INPUT, OUTPUT = "images", "logits"


def mapped(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    """Returns an example of the same form, every tensor changed."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {name: change(tensor) for name, tensor in example.items()}
    return [change(tensor) for tensor in example]


def first_samples(example: Example, count: int) -> Example:
    """Returns the first samples of every tensor."""
    return mapped(example, lambda tensor: tensor[:count])


def in_form_of(example: Example, tensors: Sequence[Tensor]) -> Example:
    """Returns these tensors, which come in the example's order, in its form."""
    if isinstance(example, Tensor):
        return tensors[0]
    return dict(zip(example, tensors, strict=True)) if isinstance(example, Mapping) else list(tensors)


def call(model: nn.Module, example: Example) -> Any:
    """Returns what the model returns: a mapping is passed by keyword, a sequence by position."""
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)


def named_inputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """Returns the tensors by name: a mapping's own names, those of `forward`'s parameters, "images" for a bare tensor.

    Raises:
        InputError: there is none, or something is no tensor, or more are given than `forward` takes.
    """
    if isinstance(example, Tensor):
        return {INPUT: example}
    if isinstance(example, Mapping):
        named = dict(example)
    else:
        names = tuple(_positional(model, len(example)))
        if len(names) < len(example):
            raise _no_inputs(model, f"{len(example)} tensors", f"at most {len(names)}, as its forward takes")
        named = dict(zip(names, example, strict=False))
    foreign = [f"'{name}' of type {type(value).__name__}" for name, value in named.items() if not is_tensor(value)]
    if foreign or not named:
        raise _no_inputs(model, ", ".join(foreign) or "no tensor", "a tensor, or tensors by position or by name")
    return named


def named_outputs(output: Any, example: Example) -> dict[str, Tensor]:
    """Returns a model's outputs by name, in its own order; None is left out.

    A model that takes a single tensor is a classifier where it returns a tensor or an object with `.logits`: these
    alone come out, as "logits". Any other output is taken apart: mappings and named tuples give names, sequences
    numbers.

    Raises:
        InputError: something in it is no tensor, or there is none.
    """
    if isinstance(example, Tensor):
        found = output if isinstance(output, Tensor) else getattr(output, OUTPUT, None)
        if isinstance(found, Tensor):
            return {OUTPUT: found}
    named = {"_".join(path) or "output": value for path, value in _leaves(output, ())}
    foreign = [f"'{name}' of type {type(value).__name__}" for name, value in named.items() if not is_tensor(value)]
    if foreign or not named:
        raise InputError(
            "reading a model's outputs",
            found=", ".join(foreign) or "no tensor",
            accepted="tensors, or sequences and mappings of tensors",
            remedy="wrap the model so that it returns tensors; a cache goes with model.config.use_cache = False",
        )
    return named


def described(example: Example) -> str:
    """Returns shapes and dtypes in words, for messages."""
    if isinstance(example, Tensor):
        return f"an input of shape {tuple(example.shape)}, {example.dtype}"
    pairs = example.items() if isinstance(example, Mapping) else enumerate(example)
    told = (
        f"{name} {tuple(value.shape)} {value.dtype}" if is_tensor(value) else f"{name} ({type(value).__name__})"
        for name, value in pairs
    )
    return f"the inputs {', '.join(told)}"


def is_tensor(value: object) -> bool:
    """True for a tensor."""
    return isinstance(value, Tensor)


def _positional(model: nn.Module, count: int) -> Iterator[str]:
    """Names for so many arguments by position, fewer where `forward` takes fewer."""
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from (f"{parameter.name}_{position}" for position in range(count))
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            yield parameter.name


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything in nested mappings and sequences that is neither, with the way to it."""
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, (*path, str(name)))
    elif isinstance(value, (tuple, list)):
        for position, entry in enumerate(value):
            yield from _leaves(entry, (*(path or ("output",)), str(position)))
    elif value is not None:
        yield path, value


def _no_inputs(model: nn.Module, found: str, accepted: str) -> InputError:
    return InputError(
        f"reading the example inputs of {type(model).__name__}",
        found=found,
        accepted=accepted,
        remedy="pass the example as the model's forward takes it",
    )
