"""What becomes of every tensor of a checkpoint, decided from names, shapes and dtypes alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from lrd_deploy.decompose.shards import Piece
from lrd_deploy.errors import InputError
from lrd_deploy.models.stored_tensors import StoredTensor
from lrd_deploy.ranks.by_weight import saturation, uniform_choice
from lrd_deploy.recipe.policies import UniformRank
from lrd_deploy.records import SVD, LayerSignature

_WEIGHT, _BIAS = ".weight", ".bias"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_TABLES = re.compile(r"(^|\.)([^.]*embed[^.]*|wte|wpe|shared|relative_attention_bias)$")
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)$")


@dataclass(frozen=True)
class StoredLayer:
    """A matrix called `NAME.weight`, and either its rank or the reason why it stays dense."""

    name: str
    tensor: StoredTensor
    rank: int | None = None
    refusal: str | None = None

    @property
    def signature(self) -> LayerSignature:
        """Its widths; a file says nothing of what runs through the layer."""
        out_channels, in_channels = self.tensor.shape
        return LayerSignature(kind="linear", in_channels=in_channels, out_channels=out_channels)


@dataclass(frozen=True)
class PlannedCheckpoint:
    """Every matrix with its decision, and every tensor as a piece of the output."""

    layers: tuple[StoredLayer, ...]
    pieces: tuple[Piece, ...]

    @cached_property
    def factorised(self) -> tuple[StoredLayer, ...]:
        """The layers that get a rank."""
        return tuple(layer for layer in self.layers if layer.rank is not None)


def plan_checkpoint(
    tensors: Mapping[str, StoredTensor], policy: UniformRank, *, include: Sequence[str], skip: Sequence[str]
) -> PlannedCheckpoint:
    """Returns what becomes of every tensor.

    Args:
        tensors: by name.
        policy: the ranks.
        include: glob patterns of layer names, without '.weight'; a star crosses dots.
        skip: likewise, of those that stay dense all the same.

    Raises:
        InputError: nothing would be factorised, or two tensors would end up under one name.
    """
    transposed = _transposed(tensors)
    layers = tuple(
        _decided(name, tensor, policy, _left_out(name, include, skip) or transposed.get(name))
        for name, tensor in _matrices(tensors).items()
    )
    if all(layer.refusal for layer in layers):
        raise _nothing_to_factorise(layers, include)
    ranks = {layer.name: layer.rank for layer in layers if layer.rank is not None}
    pieces = tuple(_piece(name, tensor, ranks) for name, tensor in tensors.items())
    _check_names(pieces)
    return PlannedCheckpoint(layers, pieces)


def _matrices(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By the name of their layer."""
    return {
        name.removesuffix(_WEIGHT): tensor
        for name, tensor in tensors.items()
        if name.endswith(_WEIGHT) and len(tensor.shape) == 2
    }


def _transposed(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Refusals of the matrices that are stored (in, out), as GPT-2's are: their biases give them away.

    A square one could be either; where another one of the checkpoint is transposed, it is taken for that too.
    """
    refusals, square = {}, {}
    for name, tensor in _matrices(tensors).items():
        bias = tensors.get(f"{name}{_BIAS}")
        if bias is None or bias.shape != (tensor.shape[1],):
            continue
        if tensor.shape[0] == tensor.shape[1]:
            square[name] = "it is square, and other matrices here are stored (in, out)"
        else:
            refusals[name] = "it is stored (in, out), as its bias shows, and not (out, in)"
    return refusals | square if refusals else {}


def _decided(name: str, tensor: StoredTensor, policy: UniformRank, refusal: str | None) -> StoredLayer:
    layer = StoredLayer(name, tensor)
    refusal = refusal or _no_linear_layer(tensor, name)
    if refusal:
        return StoredLayer(name, tensor, refusal=refusal)
    choice = uniform_choice(layer.signature, policy)
    refusal = saturation(layer.signature, choice)
    if refusal or not isinstance(choice, SVD):
        return StoredLayer(name, tensor, refusal=refusal)
    return StoredLayer(name, tensor, rank=choice.rank)


def _left_out(name: str, include: Sequence[str], skip: Sequence[str]) -> str | None:
    pattern = next((pattern for pattern in skip if fnmatchcase(name, pattern)), None)
    if pattern:
        return f"'{pattern}' skips it"
    if not any(fnmatchcase(name, pattern) for pattern in include):
        return "no pattern includes it"
    return None


def _no_linear_layer(tensor: StoredTensor, name: str) -> str | None:
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype}, not a float of 16 bits or more"
    if _HEADS.search(name):
        return "it makes the logits, and is often tied to the embedding"
    if _TABLES.search(name):
        return "it is an embedding: a table of rows, not a layer"
    return None


def _piece(name: str, tensor: StoredTensor, ranks: Mapping[str, int]) -> Piece:
    layer, _, kind = name.rpartition(".")
    if layer in ranks and f".{kind}" == _WEIGHT:
        return Piece(tensor, layer, ranks[layer])
    if layer in ranks and f".{kind}" == _BIAS:
        return Piece(tensor, f"{layer}.up{_BIAS}")
    return Piece(tensor, name)


def _check_names(pieces: Sequence[Piece]) -> None:
    names = Counter(output.name for piece in pieces for output in piece.outputs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(
            "naming the factors",
            found=f"'{twice[0]}' is in the checkpoint already",
            accepted="a checkpoint that has no '.down' or '.up' beside the weight of a layer",
            remedy=f"skip that layer: --skip '{twice[0].rpartition('.')[0].rpartition('.')[0]}'",
        )


def _nothing_to_factorise(layers: Sequence[StoredLayer], include: Sequence[str]) -> InputError:
    refusals = "; ".join(f"'{layer.name}': {layer.refusal}" for layer in layers[:5])
    return InputError(
        f"looking for layers to factorise among those that match {', '.join(map(repr, include))}",
        found=refusals or "no two-dimensional tensor called NAME.weight",
        accepted="at least one matrix of floats that becomes smaller",
        remedy="change --include, --skip, --alpha or --round-to",
    )
