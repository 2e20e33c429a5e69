"""A ratio and its interval from independent launches. Pure functions over floats.

The launch, a fresh process, is the unit of replication: calls within one process share its memory layout and its
neighbours, so an interval over calls is far too narrow (Kalibera and Jones, ISMM 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import NamedTuple

from lrd_deploy.records import Ratio

_TRIM_FROM = 6  # fewer launches cannot spare two
_FEWEST_SAMPLES = {0.9: 64, 0.99: 662}


class TrimmedMean(NamedTuple):
    """A mean over launches, its standard error, and the degrees of freedom of its t interval."""

    mean: float
    standard_error: float
    degrees: int


def trimmed_mean(values: Sequence[float]) -> TrimmedMean:
    """Returns the mean without the lowest and the highest from six values on, with its winsorised standard error.

    Args:
        values: one per launch, at least two.

    Source: Yuen, Biometrika 61 (1974), 165.
    """
    ordered = sorted(values)
    n, trim = len(ordered), 1 if len(ordered) >= _TRIM_FROM else 0
    kept = ordered[trim : n - trim]
    winsorised = [min(max(value, kept[0]), kept[-1]) for value in ordered]
    center = sum(winsorised) / n
    squares = sum((value - center) ** 2 for value in winsorised)
    return TrimmedMean(sum(kept) / len(kept), sqrt(squares / (len(kept) * (len(kept) - 1))), len(kept) - 1)


def ratio_with_interval(log_ratios: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Returns the ratio whose logarithm was measured once per launch, with a two-sided interval.

    From six launches on, the lowest and the highest are trimmed and the variance is winsorised, so that one launch with
    a busy neighbour neither moves the estimate nor hides a difference.

    Args:
        log_ratios: natural logarithms, one per launch, at least two.
        confidence: of the two-sided interval.

    Source: Yuen, Biometrika 61 (1974), 165: trimmed mean with a winsorised t interval.
    """
    from scipy.stats import t  # 0.6 s to import

    center, standard_error, degrees = trimmed_mean(log_ratios)
    half = float(t.ppf(0.5 + confidence / 2, degrees)) * standard_error
    low, high = exp(center - half), exp(center + half)
    return Ratio(
        estimate=exp(center),
        low=low,
        high=high,
        confidence=confidence,
        demonstrated=not low <= 1.0 <= high,
        launches=len(log_ratios),
    )


def median(values: Sequence[float]) -> float:
    """Returns the middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def relative_spread(values: Sequence[float]) -> float:
    """Returns the interquartile range over the median: how far apart the middle half of the samples lies."""
    ordered, quarter = sorted(values), len(values) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / median(values)


def percentile_bound(samples: Sequence[float], percentile: float, *, confidence: float = 0.99) -> float | None:
    """Returns an upper bound on a percentile that holds with this confidence; None with too few samples to say.

    Limits: the confidence is that of independent samples; calls of one process are correlated.

    The number of samples below the percentile is binomial, so its upper quantile is the index of an order statistic
    that lies above the percentile with that confidence.

    Args:
        samples: latencies, in any order.
        percentile: 0.9 or 0.99.
        confidence: that the bound is above the true percentile.

    Source: MLPerf inference rules, early stopping, whose least sample counts (64 and 662) are kept too.
    """
    from scipy.stats import binom

    ordered, n = sorted(samples), len(samples)
    if n < _FEWEST_SAMPLES[percentile]:
        return None
    return ordered[int(binom.ppf(confidence, n, percentile))]


def block_log_ratio(numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]) -> float:
    """Returns one launch's log ratio: the median over rounds of the log ratio of the blocks' minima.

    Args:
        numerator: one block of samples per round.
        denominator: the blocks of the other arm, from the same rounds.
    """
    rounds = zip(numerator, denominator, strict=True)
    return median([log(min(above)) - log(min(below)) for above, below in rounds])
