"""How much of a tensor FP16 loses, measured on its values: what overflows, vanishes or keeps only a few digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.precision.half import rounded

_HEADROOM = 2.0  # calibration shows a part of what will come
_LARGEST = 65504.0
# Within its normal range FP16 loses 2⁻¹¹ of a tensor's norm at most. One that loses more than the 2⁻⁸ of BF16 is not.
_TOLERANCE = 2.0**-8


@dataclass
class HalfRounding:
    """Sums over all values seen: squares, and squared errors of rounding to FP16."""

    squares: float = 0.0
    errors: float = 0.0
    largest: float = 0.0

    def update(self, array: NDArray[np.floating]) -> None:
        """Takes in more values; infinities that stay infinities lose nothing."""
        values = np.asarray(array, dtype=np.float32).ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            return
        self.largest = max(self.largest, float(np.abs(values).max()))
        with np.errstate(over="ignore"):
            nearest = rounded("fp16", values).astype(np.float64)
        self.squares += float(np.square(values, dtype=np.float64).sum())
        self.errors += float(np.square(nearest - values).sum())

    @property
    def relative_error(self) -> float:
        """‖x − fp16(x)‖ / ‖x‖, 0 of zeros."""
        return float(np.sqrt(self.errors / self.squares)) if self.squares else 0.0

    def problem(self) -> str | None:
        """Returns why FP16 does not hold these values, or None."""
        if self.largest * _HEADROOM > _LARGEST:
            return f"reaches {self.largest:.3g}, and FP16 holds {_LARGEST:.0f}"
        if self.relative_error > _TOLERANCE:
            return f"loses {self.relative_error:.1%} to values that FP16 has no digits for"
        return None
