"""Layers and latencies by formula, for tests of rank choice."""

import numpy as np

from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import macs
from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.records import KeepDense, LayerSignature


def conv(width, *, out=None, kernel=3, name="conv", refusal=None):
    """A convolution with random weights at 8×8."""
    out = out or width
    signature = LayerSignature(
        kind="conv2d",
        in_channels=width,
        out_channels=out,
        kernel=(kernel, kernel),
        padding=(kernel // 2, kernel // 2),
        spatial=(8, 8),
    )
    weight = np.random.default_rng(len(name)).standard_normal((out, width, kernel, kernel))
    return Layer(name, signature, lambda: weight, refusal)


class Scripted:
    """Time follows the arithmetic at a quantum: each rank counts as the next multiple; `overhead_ms` per factor."""

    environment, threads = None, 1

    def __init__(self, quantum=16, *, ms_per_gmac=100.0, overhead_ms=0.001):
        self.quantum, self.ms_per_gmac, self.overhead_ms, self.asked = quantum, ms_per_gmac, overhead_ms, []

    def latencies_ms(self, requests):
        self.asked.append(requests)
        return {
            (signature, choice): self.latency_ms(signature, choice)
            for signature, choices in requests.items()
            for choice in choices
        }

    def latency_ms(self, signature, choice):
        ranks = ranks_of(choice)
        fields = ("rank_in", "rank_out") if len(ranks) == 2 else ("rank",) if ranks else ()
        up = [-(-rank // self.quantum) * self.quantum for rank in ranks]
        stepped = choice.model_copy(update=dict(zip(fields, up, strict=True)))
        return macs(signature, stepped) / 1e9 * self.ms_per_gmac + self.overhead_ms * (len(ranks) + 1)


def latency_of(source, plan):
    """What a plan's layers take by a scripted source."""
    return sum(layer.calls * source.latency_ms(layer.signature, layer.choice) for layer in plan.layers)


def dense_latency_of(source, layers):
    """What the same layers take dense."""
    return sum(layer.calls * source.latency_ms(layer.signature, KeepDense()) for layer in layers)
