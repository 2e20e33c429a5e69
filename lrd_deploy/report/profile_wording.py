"""What a profile says, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrd_deploy.records import ArmProfile, ModelProfile, ProfiledKernel, ProfiledLayer
from lrd_deploy.report.wording import milliseconds, speedup

_MOST_NAMED = 6
NO_LAYER = {"reorders": "layout reorders", "elementwise": "activations, additions", "other": "everything else"}


def verdict(layer: ProfiledLayer) -> str:
    """Returns what a layer's factors do, or "" where it has none to judge."""
    return {"pays": "pays", "loses": "LOSES", "undecided": "cannot tell", None: ""}[layer.verdict]


def ratio(layer: ProfiledLayer) -> str:
    """Returns "2.31× (2.25 to 2.38)", or a dash."""
    found = layer.speedup
    return "–" if found is None else f"{found.estimate:.2f}× ({found.low:.2f} to {found.high:.2f})"


def kernels(layer: ProfiledLayer) -> str:
    """Returns what runs the layer: "1", or "1 → 2 + 1 reorder"."""
    arms = [_counted(time.kernels) for time in (layer.base, layer.candidate) if time is not None]
    return " → ".join(dict.fromkeys(arms)) if arms else "–"


def _counted(found: Sequence[ProfiledKernel]) -> str:
    reorders = sum(kernel.role == "reorder" for kernel in found)
    return f"{len(found) - reorders}" + (f" + {reorders} reorder" if reorders else "")


def sentences(profile: ModelProfile) -> Iterator[str]:
    """Yields what to know of the whole: shares explained, speedup, what fusions were lost, which factors lose."""
    for name, arm in (("base", profile.base), ("candidate", profile.candidate)):
        if arm is not None:
            yield _explained(name, arm)
    yield (
        f"timing a kernel added {profile.timing_overhead_us:.2f} µs to it, which is taken off; {profile.launches} "
        f"launches, {profile.backend}, batch {profile.batch}, threads {profile.threads}, on {profile.environment.cpu}"
    )
    if profile.speedup is not None:
        yield f"speedup of the whole, without the profiler, {speedup(profile.speedup)}"
    yield from _fusions(profile)
    yield from _judged(profile)
    yield from (f"warning: {text}" for text in profile.warnings)


def _explained(name: str, arm: ArmProfile) -> str:
    share = arm.explained
    return (
        f"{name}: all kernels take {milliseconds(arm.kernels_ms)} ms, {share.estimate:.0%} ({share.low:.0%} to "
        f"{share.high:.0%}) of the {milliseconds(arm.whole_ms)} ms of a call without the profiler"
    )


def _fusions(profile: ModelProfile) -> Iterator[str]:
    lost = [fusion for fusion in profile.lost_fusions if fusion.alone_in == "candidate"]
    if not lost:
        return
    total = sum(fusion.ms for fusion in lost)
    named = _some([f"{fusion.node} {milliseconds(fusion.ms)} ms" for fusion in lost])
    yield f"run alone in the candidate, fused in the base: {named}; {milliseconds(total)} ms together"


def _judged(profile: ModelProfile) -> Iterator[str]:
    judged = [layer for layer in profile.layers if layer.verdict]
    if not judged:
        return
    counts = {word: sum(layer.verdict == word for layer in judged) for word in ("pays", "loses", "undecided")}
    yield (
        f"of {len(judged)} layers with factors {counts['pays']} pay, {counts['loses']} lose, of {counts['undecided']} "
        "the interval holds 1"
    )
    if profile.losing:
        saved = sum(layer.candidate.ms - layer.base.ms for layer in profile.losing)
        yield (
            f"merging what loses would save about {milliseconds(saved)} of {milliseconds(profile.candidate.whole_ms)} "
            f"ms: {_some([layer.name for layer in profile.losing])}"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
