"""The record of a built engine: what it was made from, by what, for what."""

from __future__ import annotations

from pathlib import Path

from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.export.onnx_file import read_model, weight_precision
from lrd_deploy.files import sha256_of
from lrd_deploy.records import EngineArtifact


def artifact_of(engine: Path, model: Path, builder: BackendStatus, *, target: str, seconds: float) -> EngineArtifact:
    """Returns the record of an engine file that was just built from a model."""
    return EngineArtifact(
        path=Path(engine.name),
        sha256=sha256_of(engine),
        source_sha256=sha256_of(model),
        backend=builder.name,
        backend_version=builder.version or "unknown",
        precision=weight_precision(read_model(model)),
        target=target,
        build_seconds=seconds,
        size_bytes=engine.stat().st_size,
    )
