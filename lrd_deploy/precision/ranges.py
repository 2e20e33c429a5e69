"""Ranges for INT8 from magnitudes: the largest one, a percentile of them, or where least information is lost."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_LEVELS = 128  # of a magnitude in INT8
_FEWEST_PER_BIN = 8  # values, on average, for a histogram that tells more than chance
_STRIDE = 8  # bins between two thresholds that entropy compares: 0.4 % of the range
_ZOOM, _ZOOMS = 16, 8  # each histogram covers a 16th of the one before, in as many bins
_OUTLIERS = 1e-4  # of the values other than zero: more of them are no outliers


@dataclass
class Magnitudes:
    """Histograms of |x| between 0 and `largest`; batches may come in any order.

    Attributes:
        largest: of all batches, which are seen twice.
        counts: per histogram and bin; the first is of all values, each further one of those up to a 16th.
        nonzero: how many values are not zero.
    """

    largest: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((_ZOOMS, BINS), np.int64))
    nonzero: int = 0

    def update(self, array: NDArray[np.floating]) -> None:
        """Counts more values, none beyond `largest`."""
        values = np.abs(array.astype(np.float64)).ravel()
        self.nonzero += int(np.count_nonzero(values))
        for zoom, counts in enumerate(self.counts):
            edge = self._edge(zoom, BINS) or 1.0
            values = values[values <= edge]
            counts += np.histogram(values, BINS, (0.0, edge))[0]

    def percentile(self, percent: float) -> float:
        """Returns the magnitude that so many percent of the values do not exceed, to a bin."""
        cumulated = np.cumsum(self.counts[0])
        place = int(np.searchsorted(cumulated, percent / 100 * cumulated[-1]))
        return self._edge(0, min(place, BINS - 1) + 1)

    def least_divergence(self) -> float | None:
        """Returns the magnitude to clip at for the least Kullback–Leibler divergence from what was seen.

        A few outliers may be so large that all else lies in the lowest of 2,048 bins. So the range is first cut to a
        16th, again and again, for as long as at most 0.01 % of the values other than zero lie beyond, which then count
        as clipped. What is in the lowest bin of that range, zeros among it, INT8 holds as well at any threshold: it is
        left out. None where fewer than 16,384 values remain: bins that hold one or none agree best with a histogram
        that is clipped hard.

        Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
        """
        zoom, beyond = self._without_outliers()
        counts = np.append(self.counts[zoom], beyond).astype(np.float64)
        counts[0] = 0.0
        if counts.sum() < _FEWEST_PER_BIN * BINS:
            return None
        ends = range(_LEVELS, BINS + 1, _STRIDE)
        divergences = [_divergence(counts, end) for end in ends]
        return self._edge(zoom, ends[int(np.argmin(divergences))])

    def _without_outliers(self) -> tuple[int, int]:
        """The narrowest histogram that lacks no more values than may be outliers, and how many it lacks."""
        beyond = self.counts[0].sum() - self.counts.sum(axis=1)
        zoom = int(np.flatnonzero(beyond <= _OUTLIERS * self.nonzero)[-1]) if self.nonzero else 0
        return zoom, int(beyond[zoom])

    def _edge(self, zoom: int, bins: int) -> float:
        return self.largest / _ZOOM**zoom * bins / BINS


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
