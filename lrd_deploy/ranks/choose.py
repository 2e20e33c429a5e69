"""From layers and a policy to a rank plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Protocol

import numpy as np

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import macs, parameters, saves_parameters
from lrd_deploy.ranks.formulas import svd_rank, tucker2_ranks
from lrd_deploy.ranks.latency import Candidate, choose_by_latency, latency_candidates
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.recipe.policies import EnergyRank, LatencyRank, Policy, UniformRank
from lrd_deploy.records import (
    SVD,
    Choice,
    Environment,
    KeepDense,
    LayerSignature,
    PlannedLayer,
    RankPlan,
    Tucker2,
)


class LatencySource(Protocol):
    """Whatever can say how long a layer takes: a measurement, a stored table, a test's script."""

    environment: Environment | None

    def latencies_ms(
        self, requests: Mapping[LayerSignature, Sequence[Choice]]
    ) -> Mapping[tuple[LayerSignature, Choice], float]:
        """Returns a latency for every choice of every signature asked for."""


def plan_ranks(layers: Sequence[Layer], policy: Policy, latency: LatencySource | None = None) -> RankPlan:
    """Returns one choice for every layer, and why.

    Args:
        layers: in any order; refused layers stay dense for their own reason.
        policy: how to choose. `LatencyRank` needs `latency`.
        latency: times layers on the deployment backend.

    Raises:
        InputError: a weight is not finite.
        UsageError: the policy's target cannot be met.
    """
    for layer in layers:
        _check_finite(layer)
    if isinstance(policy, LatencyRank):
        if latency is None:
            raise UsageError(
                "choosing ranks by latency",
                found="no source of latencies",
                accepted="something with latencies_ms(), such as MeasuredLatency",
                remedy="pass it as plan_ranks(layers, policy, latency)",
            )
        planned, speedup = _planned_by_latency(layers, policy, latency)
        return _plan(planned, policy, speedup, latency.environment)
    return _plan([_planned_by_weight(layer, policy) for layer in layers], policy, None, None)


def _check_finite(layer: Layer) -> None:
    bad = int((~np.isfinite(layer.weight())).sum())
    if bad:
        raise InputError(
            f"choosing ranks for the layer '{layer.name}'",
            found=f"{bad} weights that are NaN or infinite",
            accepted="finite weights",
            remedy="repair or retrain the model",
        )


def _plan(
    planned: Sequence[PlannedLayer], policy: Policy, speedup: float | None, environment: Environment | None
) -> RankPlan:
    counted = [layer for layer in planned if layer.signature]
    return RankPlan(
        policy=policy.model_dump(mode="json"),
        layers=tuple(planned),
        dense_macs=sum(layer.calls * macs(layer.signature, KeepDense()) for layer in counted),
        lowrank_macs=sum(layer.calls * macs(layer.signature, layer.choice) for layer in counted),
        dense_parameters=sum(parameters(layer.signature, KeepDense()) for layer in counted),
        lowrank_parameters=sum(parameters(layer.signature, layer.choice) for layer in counted),
        predicted_speedup=speedup,
        measured_on=environment,
    )


# Policies that look at the weights alone ------------------------------------------------------------------------


def _planned_by_weight(layer: Layer, policy: UniformRank | EnergyRank) -> PlannedLayer:
    if layer.refusal or layer.signature is None:
        return _kept(layer, layer.refusal or "its size is not known")
    spectrum = Spectrum(layer.weight())
    match policy:
        case UniformRank():
            choice, reason = _uniform_choice(layer.signature, policy), f"alpha {policy.alpha:g}"
        case EnergyRank():
            choice, reason = (
                _energy_choice(layer.signature, spectrum, policy),
                f"keeps {policy.share:.0%} of the energy",
            )
    if policy.round_to > 1:
        reason += f", rounded to {policy.round_to}"
    refusal = _saturation(layer.signature, choice)
    if refusal:
        return _kept(layer, refusal)
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=choice,
        reason=reason,
        calls=layer.calls,
        predicted_error=spectrum.relative_error(choice),
    )


def _uniform_choice(signature: LayerSignature, policy: UniformRank) -> Choice:
    s = signature
    if s.pointwise:
        return SVD(rank=_floored(svd_rank(s.in_channels, s.out_channels, alpha=policy.alpha), policy.round_to))
    rank_in, rank_out = tucker2_ranks(s.in_channels, s.out_channels, s.kernel[0] * s.kernel[1], alpha=policy.alpha)
    return Tucker2(rank_in=_floored(rank_in, policy.round_to), rank_out=_floored(rank_out, policy.round_to))


def _energy_choice(signature: LayerSignature, spectrum: Spectrum, policy: EnergyRank) -> Choice:
    rank_in, rank_out = (ceil(rank / policy.round_to) * policy.round_to for rank in spectrum.ranks_for(policy.share))
    return SVD(rank=rank_in) if signature.pointwise else Tucker2(rank_in=rank_in, rank_out=rank_out)


def _floored(rank: int, multiple: int) -> int:
    return max(rank // multiple, 1) * multiple


def _saturation(signature: LayerSignature, choice: Choice) -> str | None:
    """Why the choice is no compression of this layer, or None."""
    s = signature
    match choice:
        case SVD(rank=rank) if rank >= min(s.in_channels, s.out_channels):
            return f"rank {rank} is not below min(in, out) = {min(s.in_channels, s.out_channels)}"
        case Tucker2(rank_in=rank_in, rank_out=rank_out) if rank_in > s.in_channels or rank_out > s.out_channels:
            return f"ranks {rank_in}, {rank_out} exceed the channels {s.in_channels}, {s.out_channels}"
    if not saves_parameters(s, choice):
        return f"{choice} has {parameters(s, choice):,} weights, the layer {parameters(s, KeepDense()):,}"
    return None


def _kept(layer: Layer, reason: str, latency_ms: float | None = None) -> PlannedLayer:
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=KeepDense(),
        reason=reason,
        calls=layer.calls,
        dense_latency_ms=latency_ms,
        predicted_latency_ms=latency_ms,
    )


# The policy that measures ---------------------------------------------------------------------------------------


def _planned_by_latency(
    layers: Sequence[Layer], policy: LatencyRank, latency: LatencySource
) -> tuple[list[PlannedLayer], float]:
    """Plans every layer, and predicts the speedup of all of them together."""
    requests = {
        layer.signature: () if layer.refusal else latency_candidates(layer.signature, policy)
        for layer in sorted(layers, key=lambda layer: layer.refusal is None)  # a refusal never hides candidates
        if layer.signature
    }
    asked = {signature: (KeepDense(), *choices) for signature, choices in requests.items()}
    measured = latency.latencies_ms(asked)
    options = [_options(layer, requests, measured) for layer in layers]
    chosen = choose_by_latency(options, policy)
    planned = [
        _explained(layer, choices, candidate) for layer, choices, candidate in zip(layers, options, chosen, strict=True)
    ]
    dense = sum(choices[0].latency_ms for choices in options)
    return planned, dense / sum(candidate.latency_ms for candidate in chosen)


def _options(
    layer: Layer,
    requests: Mapping[LayerSignature, Sequence[Choice]],
    measured: Mapping[tuple[LayerSignature, Choice], float],
) -> list[Candidate]:
    """Dense first, then the choices this layer has."""
    if layer.signature is None:
        return [Candidate(KeepDense(), 0.0, 0.0, 0)]
    choices = () if layer.refusal else requests[layer.signature]
    spectrum = Spectrum(layer.weight()) if choices else None
    return [
        Candidate(
            choice=choice,
            latency_ms=layer.calls * measured[layer.signature, choice],
            squared_error=spectrum.relative_error(choice) ** 2 if spectrum else 0.0,
            parameters=parameters(layer.signature, choice),
        )
        for choice in (KeepDense(), *choices)
    ]


def _explained(layer: Layer, options: Sequence[Candidate], chosen: Candidate) -> PlannedLayer:
    dense = options[0]
    fastest = min(options[1:], key=lambda option: option.latency_ms, default=None)
    if layer.refusal or layer.signature is None:
        return _kept(layer, layer.refusal or "its size is not known", dense.latency_ms or None)
    if fastest is None:
        return _kept(layer, "no multiple of the quantum saves parameters", dense.latency_ms)
    if isinstance(chosen.choice, KeepDense):
        faster = fastest.latency_ms < dense.latency_ms
        reason = "its error buys more time elsewhere" if faster else "no candidate is faster than dense"
        return _kept(layer, reason, dense.latency_ms)
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=chosen.choice,
        reason=f"{dense.latency_ms / chosen.latency_ms:.1f}× faster than dense",
        calls=layer.calls,
        predicted_error=chosen.squared_error**0.5,
        dense_latency_ms=dense.latency_ms,
        predicted_latency_ms=chosen.latency_ms,
    )
