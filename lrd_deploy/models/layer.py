"""One layer of a model as rank choice sees it: free of PyTorch, so that an ONNX file can supply it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import InputError
from lrd_deploy.records import LayerSignature


@dataclass(frozen=True)
class Layer:
    """A weighted layer. `refusal` says why it must stay dense, and is None where it may be factorised.

    `calls` is how often one forward pass runs it. `weight` reads the array when it is wanted, (out, in) or
    (out, in, kh, kw): one layer is in memory at a time.
    """

    name: str
    signature: LayerSignature | None
    weight: Callable[[], NDArray[np.floating]]
    refusal: str | None = None
    calls: int = 1

    @property
    def may_be_factorised(self) -> bool:
        """True where the layer's size is known and nothing refuses it."""
        return self.refusal is None and self.signature is not None


def skip_refusal(name: str, skip: Sequence[str]) -> str | None:
    """Returns the refusal of a layer whose name matches one of the recipe's glob patterns, or None."""
    pattern = next((pattern for pattern in skip if fnmatchcase(name, pattern)), None)
    return f"the recipe skips '{pattern}'" if pattern else None


def nothing_to_factorise(model: str, layers: Sequence[Layer], *, accepted: str, remedy: str) -> InputError:
    """Returns the error for a model of which every layer must stay dense, with the first refusals in it.

    Args:
        model: what to call the model.
        layers: all that were found; all of them refused.
        accepted: what can be factorised, in the words of the model's format.
        remedy: what to do, in those words too.
    """
    refusals = "; ".join(f"'{layer.name}': {layer.refusal}" for layer in layers[:5])
    return InputError(
        f"looking for layers of {model} to factorise",
        found=refusals or "no linear or 2-D convolution layer",
        accepted=accepted,
        remedy=remedy,
    )
