"""Timing the staircases of a model's layers: each distinct layer once, with as few timings as tell its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Literal

from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import macs
from lrd_deploy.ranks.source import LatencySource
from lrd_deploy.ranks.staircase import Staircase, forms, quantum_from, quantum_probes, ranks_to_time, step_of
from lrd_deploy.records import Choice, KeepDense, LayerSignature

_FINEST = 8  # where no layer is wide enough to tell; finer steps are below what timings can tell apart
_COARSEST = 32  # a larger step would leave wide layers without low ranks
_VOTERS = 3
_DENSE = KeepDense()


@dataclass
class Exploration:
    """What a source of latencies has told so far.

    Attributes:
        source: times layers.
        quantum: the step of the ranks.
        finest: what the step may become in layers too narrow for the quantum.
        known: latencies by layer and choice, in milliseconds per pass.
    """

    source: LatencySource
    quantum: int = _FINEST
    finest: int = _FINEST
    known: dict[LayerSignature, dict[Choice, float]] = field(default_factory=dict)
    _asked: set[tuple[LayerSignature, Choice]] = field(default_factory=set)
    _staircases: dict[tuple[LayerSignature, tuple[str, str]], Staircase] = field(default_factory=dict)
    _predicted: dict[tuple[LayerSignature, Choice], float] = field(default_factory=dict)

    @property
    def timings(self) -> int:
        """How many latencies were asked for."""
        return len(self._asked)

    def step(self, signature: LayerSignature) -> int:
        """Returns what the ranks of this layer are multiples of."""
        return step_of(signature, self.quantum, self.finest)

    def ask(self, requests: Mapping[LayerSignature, Sequence[Choice]]) -> bool:
        """Asks for what was not asked for before; tells whether anything new was learned."""
        fresh = {
            signature: wanted
            for signature, choices in requests.items()
            if (wanted := [choice for choice in choices if (signature, choice) not in self._asked])
        }
        if not fresh:
            return False
        self._asked.update((signature, choice) for signature, choices in fresh.items() for choice in choices)
        self._staircases.clear()
        self._predicted.clear()
        learned = False
        for (signature, choice), latency in self.source.latencies_ms(fresh).items():
            table = self.known.setdefault(signature, {})
            learned |= choice not in table
            table[choice] = latency
        return learned

    def latency_ms(self, signature: LayerSignature, choice: Choice) -> float:
        """Returns the latency told, or the one that those of the same form predict; infinite where there are none."""
        if choice in self.known[signature]:
            return self.known[signature][choice]
        key = signature, choice
        if key not in self._predicted:
            staircase = self._staircase(signature, _form(choice))
            self._predicted[key] = staircase.latency_ms(choice) if staircase.measured else float("inf")
        return self._predicted[key]

    def _staircase(self, signature: LayerSignature, form: tuple[str, str]) -> Staircase:
        if (signature, form) not in self._staircases:
            table = self.known[signature]
            alike = {choice: latency for choice, latency in table.items() if _form(choice) == form}
            self._staircases[signature, form] = Staircase(alike)
        return self._staircases[signature, form]


def explore(layers: Sequence[Layer], source: LatencySource, quantum: int | Literal["auto"]) -> Exploration:
    """Returns the latencies of every distinct layer, dense and along the staircase of every form.

    Args:
        layers: refused ones are timed dense only.
        source: times layers.
        quantum: the step of the ranks; "auto" finds it on the costliest layers, and makes it finer in narrow ones.
    """
    found = Exploration(source)
    found.ask({layer.signature: [_DENSE] for layer in layers if layer.signature})
    free = tuple(dict.fromkeys(layer.signature for layer in layers if layer.may_be_factorised))
    found.quantum, found.finest = (_quantum(found, free), _FINEST) if quantum == "auto" else (quantum, quantum)
    while found.ask({signature: _wanted(found, signature) for signature in free}):
        pass
    return found


def _wanted(found: Exploration, signature: LayerSignature) -> list[Choice]:
    known, step = found.known[signature], found.step(signature)
    return [choice for form in forms(signature) for choice in ranks_to_time(signature, form, step, known)]


def _quantum(found: Exploration, signatures: Sequence[LayerSignature]) -> int:
    """The middle one of the steps that the costliest layers show: the smallest may be noise of a single layer."""
    tellable = [signature for signature in signatures if quantum_probes(signature)]
    costliest = sorted(tellable, key=lambda signature: macs(signature, _DENSE), reverse=True)[:_VOTERS]
    found.ask({signature: quantum_probes(signature) for signature in costliest})
    shown = [
        quantum_from(probes, found.known[signature].__getitem__)
        for signature in costliest
        if found.known[signature].keys() >= set(probes := quantum_probes(signature))
    ]
    return min(max(median_low(shown), _FINEST), _COARSEST) if shown else _FINEST


def _form(choice: Choice) -> tuple[str, str]:
    return choice.form, getattr(choice, "kernel_on", "")
