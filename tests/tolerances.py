"""The one place where tolerances come from: the dtype's epsilon times the length of the sums that were rounded."""

import numpy as np


def sum_tolerance(dtype, length: int, scale: float = 1.0, safety: float = 8.0) -> float:
    """Bound on the absolute error of a sum of `length` products of size `scale`, as sequential rounding gives it."""
    return safety * float(np.finfo(np.dtype(dtype)).eps) * max(length, 1) * scale
