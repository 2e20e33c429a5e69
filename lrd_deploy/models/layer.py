"""One layer of a model as rank choice sees it: free of PyTorch, so that an ONNX file can supply it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
