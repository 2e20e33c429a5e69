"""Policies that look at the weights alone: the closed forms, and the energy kept."""

from __future__ import annotations

from math import ceil

from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import parameters, saves_parameters
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.forms import largest_ranks, ranks_of
from lrd_deploy.ranks.formulas import svd_rank, tucker2_ranks
from lrd_deploy.ranks.planned import kept_dense
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.recipe.policies import EnergyRank, UniformRank
from lrd_deploy.records import SVD, Choice, KeepDense, LayerSignature, PlannedLayer, Tucker2


def planned_by_weight(layer: Layer, policy: UniformRank | EnergyRank, evidence: Evidence) -> PlannedLayer:
    """Returns the policy's choice for one layer; dense, with the reason, where it would be no compression."""
    if layer.refusal or layer.signature is None:
        return kept_dense(layer, layer.refusal or "its size is not known")
    spectrum = Spectrum(layer.weight(), evidence.metrics.get(layer.name))
    match policy:
        case UniformRank():
            choice, reason = uniform_choice(layer.signature, policy), f"alpha {policy.alpha:g}"
        case EnergyRank():
            choice, reason = (
                _energy_choice(layer.signature, spectrum, policy),
                f"keeps {policy.share:.0%} of the energy",
            )
    if policy.round_to > 1:
        reason += f", rounded to {policy.round_to}"
    refusal = saturation(layer.signature, choice)
    if refusal:
        return kept_dense(layer, refusal)
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=choice,
        reason=reason,
        calls=layer.calls,
        predicted_error=spectrum.relative_error(choice),
    )


def uniform_choice(signature: LayerSignature, policy: UniformRank) -> Choice:
    """Returns the closed form's ranks, rounded; SVD for matrices, Tucker-2 for k×k kernels."""
    s = signature
    if s.pointwise:
        return SVD(rank=_rounded(svd_rank(s.in_channels, s.out_channels, alpha=policy.alpha), policy))
    rank_in, rank_out = tucker2_ranks(s.in_channels, s.out_channels, s.kernel[0] * s.kernel[1], alpha=policy.alpha)
    return Tucker2(rank_in=_rounded(rank_in, policy), rank_out=_rounded(rank_out, policy))


def _energy_choice(signature: LayerSignature, spectrum: Spectrum, policy: EnergyRank) -> Choice:
    rank_in, rank_out = (ceil(rank / policy.round_to) * policy.round_to for rank in spectrum.ranks_for(policy.share))
    return SVD(rank=rank_in) if signature.pointwise else Tucker2(rank_in=rank_in, rank_out=rank_out)


def _rounded(rank: int, policy: UniformRank) -> int:
    steps = rank // policy.round_to if policy.rounding == "down" else ceil(rank / policy.round_to)
    return max(steps, 1) * policy.round_to


def saturation(signature: LayerSignature, choice: Choice) -> str | None:
    """Returns why the choice is no compression of this layer, or None."""
    s, ranks = signature, ranks_of(choice)
    match choice:
        case SVD(rank=rank) if rank >= min(s.in_channels, s.out_channels):
            return f"rank {rank} is not below min(in, out) = {min(s.in_channels, s.out_channels)}"
        case Tucker2(rank_in=rank_in, rank_out=rank_out) if rank_in > s.in_channels or rank_out > s.out_channels:
            return f"ranks {rank_in}, {rank_out} exceed the channels {s.in_channels}, {s.out_channels}"
    if any(rank > largest for rank, largest in zip(ranks, largest_ranks(s, choice), strict=True)):
        return f"{choice} is more than the layer has"
    if not saves_parameters(s, choice):
        return f"{choice} has {parameters(s, choice):,} weights, the layer {parameters(s, KeepDense()):,}"
    return None
