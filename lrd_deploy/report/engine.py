"""Built engines, as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from lrd_deploy.records import EngineArtifact, InputProfile
from lrd_deploy.report.terminal import table


def engines_table(engines: Sequence[EngineArtifact]) -> RenderableType:
    """One table per engine: what it is, what it takes, what it was made from and by."""
    return Group(*(table(("engine", str(engine.path)), _rows(engine)) for engine in engines))


def precision_words(engine: EngineArtifact) -> str:
    """Says the types of the graph; a float32 engine that may round to TF32 says so."""
    nodes = ", ".join(f"{share:.0%} {name}" for name, share in engine.node_shares.items())
    rounded = " (TF32 allowed: products may be rounded to 10 bits of mantissa)"
    said = rounded if engine.tf32 and "fp32" in engine.node_shares else ""
    return f"{engine.precision}{said}; nodes: {nodes or 'none'}"


def _rows(engine: EngineArtifact) -> list[tuple[str, str]]:
    rows = [
        ("sha256", engine.sha256),
        ("backend", f"{engine.backend} {engine.backend_version}"),
        ("target", engine.target),
        ("precision", precision_words(engine)),
        *(("takes", _shapes(profile)) for profile in engine.profile),
        ("size", f"{engine.size_bytes:,} bytes"),
        ("built in", f"{engine.build_seconds:.1f} s"),
        ("from", f"sha256 {engine.source_sha256}"),
    ]
    if engine.timing_cache:
        cache = engine.timing_cache
        rows.append(("timing cache", f"{cache.name}{f'; not saved: {cache.not_saved}' if cache.not_saved else ''}"))
    if engine.log:
        rows.append(("log", f"{engine.log}, {engine.warnings} warnings"))
        rows.append(("layers", str(engine.layers or f"none: {engine.no_layers}")))
    return rows


def _shapes(profile: InputProfile) -> str:
    texts = ["×".join(map(str, shape)) for shape in (profile.min, profile.opt, profile.max)]
    return (
        f"{profile.name}: {texts[0]}"
        if len(set(texts)) == 1
        else f"{profile.name}: {' to '.join(texts[::2])}, tuned for {texts[1]}"
    )
