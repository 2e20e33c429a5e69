"""Building engines with their manifests: one for a range of batches, or one for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrd_deploy.engines.artifact import manifest_of
from lrd_deploy.engines.backend import BuildSettings
from lrd_deploy.engines.catalogue import builder
from lrd_deploy.errors import UsageError
from lrd_deploy.export.model_files import external_locations
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.files import sha256_of
from lrd_deploy.records import EngineArtifact, PrecisionReport

_OPTIONS = {
    "dimensions": "--dim",
    "compute_capabilities": "--compute-capability",
    "version_compatible": "--version-compatible",
    "refittable": "--refittable",
    "timing_cache": "--timing-cache",
}


class Converted(NamedTuple):
    """Where a graph in another precision came from: the file that the user has, and what was converted of it."""

    model: Path
    report: PrecisionReport


def build_engine(
    backend: str, model: Path, engine: Path, settings: BuildSettings, converted: Converted | None = None
) -> EngineArtifact:
    """Builds an engine and writes its manifest beside it, last: what was killed in between has none that fits.

    With `converted` the manifest names the file that `model` was converted from.

    Raises:
        UsageError: there is no such backend, or the engine would replace its model.
        LrdError: see the backend's `build`.
    """
    able = builder(backend)
    own = converted.model if converted else model
    if engine.resolve() == own.resolve():
        raise UsageError(
            f"building '{own}'",
            found="the engine would replace it",
            accepted="another place for the engine",
            remedy="correct -o",
        )
    read_model(model)  # no engine gets to see a file that is not valid, or weights outside its folder
    artifact = able.build(model, engine, settings)
    if converted:
        artifact = artifact.model_copy(update=_origin(converted))
    artifact.write(manifest_of(engine))
    return artifact


def build_per_batch(
    backend: str,
    model: Path,
    engine: Path,
    settings: BuildSettings,
    batches: Sequence[int],
    converted: Converted | None = None,
) -> tuple[EngineArtifact, ...]:
    """Builds one engine for each batch, that size built in; batch 8 of `m.engine` is `m.b8.engine`.

    One engine each, not one with several profiles: a size that is a constant lets the compiler fold shapes and choose
    kernels for it alone, one batch can be built again, measured or served without the others, and no call pays for a
    change of profile. The price is that the weights are stored once for each.
    """
    return tuple(
        build_engine(backend, model, engine_for(engine, batch), settings.model_copy(update=_only(batch)), converted)
        for batch in batches
    )


def engine_for(engine: Path, batch: int) -> Path:
    """Returns the place of the engine for one batch."""
    return engine.with_name(f"{engine.stem}.b{batch}{engine.suffix}")


def refuse_unused(settings: BuildSettings, batches: Sequence[int]) -> None:
    """Raises `UsageError` where ONNX Runtime is given settings that only TensorRT has a use for."""
    default = BuildSettings()
    unused = [option for name, option in _OPTIONS.items() if getattr(settings, name) != getattr(default, name)]
    unused += [] if settings.tf32 else ["--no-tf32"]
    unused += ["--per-batch"] if batches else []
    if unused:
        raise UsageError(
            "building with onnxruntime",
            found=", ".join(unused),
            accepted="a build without them: its engine takes any shape, and runs on this processor in float32",
            remedy="leave them out, or choose --backend tensorrt or tensorrt-rtx",
        )


def _only(batch: int) -> dict[str, int]:
    return {"min_batch": batch, "opt_batch": batch, "max_batch": batch}


def _origin(converted: Converted) -> dict[str, object]:
    model, report = converted
    places = external_locations(read_model(model))
    return {
        "source_sha256": report.source_sha256,
        "external_data": {place: sha256_of(model.parent / place) for place in places},
        "precision": report.policy.precision,
        "converted": report.share,
    }
