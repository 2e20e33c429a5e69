"""The papers' rank search, to the letter: what `LatencyRank` is measured against.

Every rank from the closed form's down is timed. The one just below the largest single drop is taken, which on a flat
curve is the largest piece of noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.by_weight import saturation, uniform_choice
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.ranks.planned import kept_dense
from lrd_deploy.ranks.source import Latencies, LatencySource
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.ranks.staircase import with_ranks
from lrd_deploy.recipe.policies import PaperRank, UniformRank
from lrd_deploy.records import Choice, KeepDense, LayerSignature, PlannedLayer, Tucker2


def planned_by_paper(
    layers: Sequence[Layer], policy: PaperRank, source: LatencySource, evidence: Evidence
) -> list[PlannedLayer]:
    """Returns the choice of algorithm 1 for every layer.

    Source: arXiv 2407.20266, section 2.1, algorithm 1. Both ranks of a Tucker-2 move together, in the proportion that
    the closed form gives them.
    """
    sweeps = {
        layer.signature: _sweep(layer.signature, policy) for layer in layers if layer.signature and not layer.refusal
    }
    latencies = source.latencies_ms({signature: (KeepDense(), *sweep) for signature, sweep in sweeps.items()})
    return [_planned(layer, sweeps.get(layer.signature, []), latencies, evidence) for layer in layers]


def _sweep(signature: LayerSignature, policy: PaperRank) -> list[Choice]:
    """Every rank from the closed form's down to the lowest; none where the closed form is no compression."""
    start = uniform_choice(signature, UniformRank(alpha=policy.alpha))
    if saturation(signature, start):
        return []
    ranks = ranks_of(start)
    share = ranks[-1] / ranks[0]
    lowest = max(round(policy.lowest * ranks[0]), 1)
    swept = [(rank, max(round(share * rank), 1)) for rank in range(ranks[0], lowest - 1, -1)]
    return [with_ranks(start, pair if isinstance(start, Tucker2) else pair[:1]) for pair in swept]


def _planned(layer: Layer, sweep: Sequence[Choice], latencies: Latencies, evidence: Evidence) -> PlannedLayer:
    if layer.refusal or layer.signature is None:
        return kept_dense(layer, layer.refusal or "its size is not known")
    timed = [(choice, latencies[layer.signature, choice]) for choice in sweep if (layer.signature, choice) in latencies]
    dense_ms = latencies.get((layer.signature, KeepDense()), 0.0)
    if len(timed) < 2:
        return kept_dense(layer, "the closed form gives no ranks to search", layer.calls * dense_ms)
    drops = [above - below for (_, above), (_, below) in itertools.pairwise(timed)]
    choice, latency = timed[1 + max(range(len(drops)), key=drops.__getitem__)]
    if latency >= dense_ms:
        return kept_dense(layer, f"{choice}, below the largest drop, is not faster than dense", layer.calls * dense_ms)
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=choice,
        reason=f"below the largest drop of {len(timed)} ranks timed",
        calls=layer.calls,
        predicted_error=Spectrum(layer.weight(), evidence.metrics.get(layer.name)).relative_error(choice),
        dense_latency_ms=layer.calls * dense_ms,
        predicted_latency_ms=layer.calls * latency,
    )
