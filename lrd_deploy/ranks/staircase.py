"""How a layer's latency depends on its rank: found with few timings, not by sweeping every rank.

Latency is a staircase over ranks whose step, the *quantum*, the hardware sets. On multiples of the quantum it follows
the arithmetic, which is linear in each rank; so the step is looked for once, and then the line is measured where it
bends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import log

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.ranks.cost import saves_parameters
from lrd_deploy.ranks.forms import largest_ranks, ranks_of
from lrd_deploy.records import SVD, ChannelSVD, Choice, LayerSignature, SpatialSVD, Tucker2

FORMS_OF_KERNELS: tuple[Choice, ...] = (
    ChannelSVD(rank=1),
    ChannelSVD(rank=1, kernel_on="up"),
    SpatialSVD(rank=1),
    Tucker2(rank_in=1, rank_out=1),
)
QUANTA = (64, 32, 16, 8, 4)
_ON_THE_LINE = 0.06  # a point this close to where its neighbours put it needs no closer look
_OFF_THE_STEP = 0.04  # a rank just past a step costs at least this much more
_SAME_STEP = 0.02  # two ranks on one step differ by less than this
_DEPTH = 2
_LEVELS = {1: 128, 2: 24}
_FEWEST = 3  # steps that a narrow layer is given in each form


def forms(signature: LayerSignature) -> tuple[Choice, ...]:
    """Returns the forms that a layer can take, each with a placeholder rank."""
    return (SVD(rank=1),) if signature.pointwise else FORMS_OF_KERNELS


def with_ranks(form: Choice, ranks: Sequence[int]) -> Choice:
    """Returns the same form with these ranks."""
    fields = ("rank_in", "rank_out") if isinstance(form, Tucker2) else ("rank",)
    return form.model_copy(update=dict(zip(fields, ranks, strict=True)))


@lru_cache(maxsize=1024)
def grid(signature: LayerSignature, form: Choice, quantum: int) -> tuple[Choice, ...]:
    """Returns the choices of that form whose ranks are multiples of the quantum and that save weights.

    At most 128 levels of one rank and 24 of each of two: wide layers step by several quanta.
    """
    most = _LEVELS[len(largest_ranks(signature, form))]
    levels = []
    for largest in largest_ranks(signature, form):
        step = quantum * max(-(-largest // (quantum * most)), 1)
        levels.append(range(step, largest + 1, step))
    choices = (with_ranks(form, ranks) for ranks in product(*levels))
    return tuple(choice for choice in choices if saves_parameters(signature, choice))


def in_proportion(signature: LayerSignature, form: Choice, quantum: int) -> list[Choice]:
    """Returns the part of the grid where two ranks keep the proportion of the layer's widths, ascending."""
    choices = grid(signature, form, quantum)
    if not isinstance(form, Tucker2):
        return list(choices)
    share = signature.out_channels / signature.in_channels
    levels = sorted({choice.rank_out for choice in choices})
    saving = {(choice.rank_in, choice.rank_out): choice for choice in choices}
    ranks_in = sorted({choice.rank_in for choice in choices})
    pairs = [(rank, min(levels, key=lambda level, rank=rank: abs(level - share * rank))) for rank in ranks_in]
    return [saving[pair] for pair in pairs if pair in saving]


# The quantum -----------------------------------------------------------------------------------------------------


def quantum_probes(signature: LayerSignature) -> tuple[SVD | ChannelSVD, ...]:
    """Returns the ranks whose latencies tell the quantum of a layer; none where it is too thin to tell."""
    form = SVD(rank=1) if signature.pointwise else ChannelSVD(rank=1)
    if largest_ranks(signature, form)[0] < 2 * QUANTA[0]:
        return ()
    return tuple(with_ranks(form, (QUANTA[0] + offset,)) for offset in (0, *QUANTA, 1))


def quantum_from(probes: Sequence[Choice], latency_ms: Callable[[Choice], float]) -> int:
    """Returns the smallest step between ranks that the hardware rewards, read off the latencies of `probes`.

    A rank belongs to the staircase's grid when it costs no more than the straight line from the first probe to the
    one 64 above, and less than the next larger rank of the grid; 1 where even the rank just above a multiple of 64
    does.
    """
    first, *offsets = probes
    start, above = ranks_of(first)[0], offsets[0]
    rise = (latency_ms(above) - latency_ms(first)) / QUANTA[0]
    for probe in offsets[1:]:
        line = latency_ms(first) + max(rise, 0.0) * (ranks_of(probe)[0] - start)
        if latency_ms(probe) > min(line * (1 + _OFF_THE_STEP), latency_ms(above) * (1 - _SAME_STEP)):
            break
        above = probe
    return ranks_of(above)[0] - start


@lru_cache(maxsize=1024)
def step_of(signature: LayerSignature, quantum: int, finest: int) -> int:
    """Returns the step of one layer's ranks: the quantum, halved while one of its forms has fewer than three.

    A step that is small for wide layers leaves a narrow one hardly a choice. It never gets smaller than `finest`.
    """
    step = quantum
    while step % 2 == 0 and step // 2 >= finest:
        if min(len(in_proportion(signature, form, step)) for form in forms(signature)) >= _FEWEST:
            break
        step //= 2
    return step


# The line --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staircase:
    """The latency of one layer in one form, at any rank on the grid.

    Measured ranks give their measured latency; others that of a line through the measured ones (a bilinear surface
    for two ranks), moved by what the nearest measured ranks are off it.
    """

    measured: Mapping[Choice, float]

    def latency_ms(self, choice: Choice) -> float:
        """Returns the measured or predicted latency."""
        if choice in self.measured:
            return self.measured[choice]
        weights = [1 / _distance(known, choice) ** 2 for known in self.measured]
        return self._on_the_line(choice) * float(np.exp(np.average(self._offsets, weights=weights)))

    @cached_property
    def _coefficients(self) -> NDArray[np.float64]:
        rows = np.array([_terms(choice) for choice in self.measured])
        latencies = np.array(list(self.measured.values()))
        # Relative errors are what matters, so each point counts by the inverse of its latency.
        solution, *_ = np.linalg.lstsq(rows / latencies[:, None], np.ones(len(rows)), rcond=None)
        return solution

    @cached_property
    def _offsets(self) -> list[float]:
        """How far each measured rank is off the line, as a logarithm."""
        return [log(latency / self._on_the_line(known)) for known, latency in self.measured.items()]

    def _on_the_line(self, choice: Choice) -> float:
        return max(float(_terms(choice) @ self._coefficients), min(self.measured.values()) / 4)


def _terms(choice: Choice) -> NDArray[np.float64]:
    """What the arithmetic of a form is linear in."""
    ranks = ranks_of(choice)
    return np.array([1.0, *ranks, *([ranks[0] * ranks[1]] if len(ranks) == 2 else [])])


def _distance(one: Choice, other: Choice) -> float:
    return max(sum(log(a / b) ** 2 for a, b in zip(ranks_of(one), ranks_of(other), strict=True)) ** 0.5, 1e-6)


def ranks_to_time(signature: LayerSignature, form: Choice, quantum: int, known: Mapping[Choice, float]) -> list[Choice]:
    """Returns the choices of a form to time next, given the latencies known so far; none when they tell enough.

    The ends and the middle of the proportional ranks come first; then the middle of every half whose own middle was
    off the straight line, to a depth of two. Two ranks are also tried out of proportion, once either way.
    """
    line = in_proportion(signature, form, quantum)
    if not line:
        return []
    wanted = [line[index] for index in sorted({0, (len(line) - 1) // 2, len(line) - 1})]
    if all(choice in known for choice in wanted):
        wanted = _middles(line, (0, len(line) - 1), known, _DEPTH)
        if isinstance(form, Tucker2):
            wanted += _out_of_proportion(line, grid(signature, form, quantum))
    return [choice for choice in dict.fromkeys(wanted) if choice not in known]


def _middles(
    line: Sequence[Choice], interval: tuple[int, int], known: Mapping[Choice, float], depth: int
) -> list[Choice]:
    """The middles of both halves of an interval that bends, and of theirs."""
    low, high = interval
    middle = (low + high) // 2
    if depth == 0 or middle == low or not _bends(line, low, middle, high, known):
        return []
    halves = [(low, middle), (middle, high)]
    return [line[sum(half) // 2] for half in halves] + [
        choice for half in halves for choice in _middles(line, half, known, depth - 1)
    ]


def _bends(line: Sequence[Choice], low: int, middle: int, high: int, known: Mapping[Choice, float]) -> bool:
    latencies = [known.get(line[index]) for index in (low, middle, high)]
    if None in latencies:
        return False
    straight = latencies[0] + (latencies[2] - latencies[0]) * (middle - low) / (high - low)
    return abs(latencies[1] - straight) > _ON_THE_LINE * straight


def _out_of_proportion(line: Sequence[Tucker2], choices: Sequence[Tucker2]) -> list[Choice]:
    """The ranks nearest to a low rank_in with a high rank_out, and the other way round."""
    low, high = line[len(line) // 4], line[3 * len(line) // 4]
    corners = ((low.rank_in, high.rank_out), (high.rank_in, low.rank_out))
    return [min(choices, key=lambda c: abs(c.rank_in - i) + abs(c.rank_out - o)) for i, o in corners]
