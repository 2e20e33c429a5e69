"""A profile as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from rich.console import Group, RenderableType
from rich.markup import escape

from lrd_deploy.records import LayerTime, ModelProfile
from lrd_deploy.report.profile_wording import NO_LAYER, kernels, ratio, sentences, verdict
from lrd_deploy.report.terminal import table
from lrd_deploy.report.wording import aligned_milliseconds


def profile_table(profile: ModelProfile, base: Path, candidate: Path | None, record: Path | None) -> RenderableType:
    """Every layer, what is in no layer, and what follows; files as the caller named them."""
    lines = [*sentences(profile), *_next_step(profile, base, candidate, record)]
    return Group(_layers(profile), "", _outside(profile), *(escape(line) for line in lines))


def _layers(profile: ModelProfile) -> RenderableType:
    base, candidate = (
        aligned_milliseconds([_ms(getattr(layer, arm)) for layer in profile.layers]) for arm in ("base", "candidate")
    )
    names = [layer.name for layer in profile.layers]
    if profile.candidate is None:
        counts = [kernels(layer) for layer in profile.layers]
        return table(("layer", "base ms", "kernels"), list(zip(names, base, counts, strict=True)))
    rows = [
        (name, dense, lowrank, kernels(layer), ratio(layer), verdict(layer))
        for name, dense, lowrank, layer in zip(names, base, candidate, profile.layers, strict=True)
    ]
    return table(("layer", "base ms", "candidate ms", "kernels", "speedup", ""), rows)


def _ms(time: LayerTime | None) -> float | None:
    return None if time is None else time.ms


def _outside(profile: ModelProfile) -> RenderableType:
    rows = []
    for group, words in NO_LAYER.items():
        base = profile.base.outside_layers[group]
        row = [words, f"{base.ms:.4f}", str(base.kernels)]
        if profile.candidate is not None:
            candidate = profile.candidate.outside_layers[group]
            row[1:] = [
                f"{base.ms:.4f}",
                f"{candidate.ms:.4f}",
                " → ".join(dict.fromkeys((str(base.kernels), str(candidate.kernels)))),
                f"{candidate.ms - base.ms:+.4f}",
            ]
        rows.append(row)
    columns = ("in no layer", "base ms", "candidate ms", "kernels", "difference ms")
    return table(columns if profile.candidate is not None else (*columns[:2], columns[3]), rows)


def _next_step(profile: ModelProfile, base: Path, candidate: Path | None, record: Path | None) -> Sequence[str]:
    if candidate is None or not profile.losing_chains:
        return ()
    dense, lowrank = quote(str(base)), quote(str(candidate))
    merged = quote(str(candidate.with_name(f"{candidate.stem}-merged{candidate.suffix}")))
    if record is None:
        return (f"merge them: lrd-deploy profile {dense} {lowrank} -o PROFILE.json, and then as it says",)
    return (f"merge them: lrd-deploy rewrite {lowrank} -o {merged} --mode merge --layers-from {quote(str(record))}",)
