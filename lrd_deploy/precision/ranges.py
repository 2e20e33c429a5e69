"""Ranges for INT8 from magnitudes: the largest one, a percentile of them, or where least information is lost."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_LEVELS = 128  # of a magnitude in INT8
_FEWEST_PER_BIN = 8  # values, on average, for a histogram that tells more than chance
_STRIDE = 8  # bins between two thresholds that entropy compares: 0.4 % of the range


@dataclass
class Magnitudes:
    """A histogram of |x| between 0 and `largest`; batches may come in any order."""

    largest: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, array: NDArray[np.floating]) -> None:
        """Counts more values, none beyond `largest`."""
        found, _ = np.histogram(np.abs(array.astype(np.float64)), BINS, (0.0, self.largest or 1.0))
        self.counts += found

    def percentile(self, percent: float) -> float:
        """Returns the magnitude that so many percent of the values do not exceed, to a bin."""
        cumulated = np.cumsum(self.counts)
        place = int(np.searchsorted(cumulated, percent / 100 * cumulated[-1]))
        return self._edge(min(place, BINS - 1) + 1)

    def least_divergence(self) -> float:
        """Returns the magnitude to clip at for the least Kullback–Leibler divergence from what was seen.

        Zeros, which INT8 has exactly, say nothing of the range and are left out. Where fewer than 16,384 other values
        were seen, bins that hold one or none agree best with a histogram that is clipped hard: nothing is clipped.

        Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
        """
        counts = self.counts.astype(np.float64)
        counts[0] = 0.0
        if counts.sum() < _FEWEST_PER_BIN * BINS:
            return self.largest
        ends = range(_LEVELS, BINS + 1, _STRIDE)
        divergences = [_divergence(counts, end) for end in ends]
        return self._edge(ends[int(np.argmin(divergences))])

    def _edge(self, bins: int) -> float:
        return self.largest * bins / BINS


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Of what clipping to the first `end` bins and 128 levels leaves, from what was seen."""
    inside = counts[:end]
    seen = inside.copy()
    seen[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    filled = inside > 0
    sums = np.bincount(level, inside, _LEVELS)
    widths = np.bincount(level, filled, _LEVELS)
    kept = np.where(filled, sums[level] / np.maximum(widths[level], 1), 0.0)
    if not kept.any():
        return np.inf
    seen, kept = seen / seen.sum(), kept / kept.sum()
    both = seen > 0
    floor = np.finfo(np.float64).tiny
    return float((seen[both] * np.log(seen[both] / np.maximum(kept[both], floor))).sum())
