"""The record of a built engine: what it was made from, by what, for what; and whether it may be loaded here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.engines.gpu import NoGpu
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.model_files import external_locations
from lrd_deploy.export.node_precision import node_shares
from lrd_deploy.export.onnx_file import read_model, weight_precision, weight_shares
from lrd_deploy.files import read_bytes, sha256_of
from lrd_deploy.records import EngineArtifact, Processor, TargetGpu

_BUILD_AGAIN = "build the engine again, on the machine and with the version that will run it"


def artifact_of(
    engine: Path, model: Path, builder: BackendStatus, *, target: str, seconds: float, **also: Any
) -> EngineArtifact:
    """Returns the record of an engine file that was just built from a model.

    Args:
        engine: the file.
        model: the ONNX file.
        builder: the backend as it described itself.
        target: what the engine is for, in words.
        seconds: that the build took.
        also: further fields of the record.
    """
    graph = read_model(model)
    return EngineArtifact(
        path=Path(engine.name),
        sha256=sha256_of(engine),
        source_sha256=sha256_of(model),
        backend=builder.name,
        backend_version=builder.version or "unknown",
        precision=weight_precision(graph),
        target=target,
        build_seconds=seconds,
        size_bytes=engine.stat().st_size,
        external_data={place: sha256_of(model.parent / place) for place in external_locations(graph)},
        weight_shares=weight_shares(graph),
        node_shares=node_shares(graph),
        **also,
    )


def manifest_of(engine: Path) -> Path:
    """Returns where the record of an engine file is: beside it."""
    return engine.with_name(engine.name + ".json")


def checked_bytes(engine: Path, here: BackendStatus, machine: TargetGpu | NoGpu) -> tuple[bytes, EngineArtifact]:
    """Returns an engine's bytes and record, after making sure that they may be loaded here.

    An engine is executable code, and fits the version and the GPU that it was built with. Checked in this order: the
    manifest is there and whole, the digest is the manifest's, backend, version, GPU.

    Args:
        engine: the file.
        here: the backend that would load it.
        machine: the GPU that would run it.

    Raises:
        StorageError: the engine or its manifest cannot be read.
        InputError: there is no manifest, it is damaged, or the engine is another file, version or target.
        UsageError: another backend built it, or there is no GPU.
    """
    engine_bytes, place = read_bytes(engine), manifest_of(engine)
    if not place.is_file():
        raise InputError(
            f"loading the engine '{engine}'",
            found=f"no manifest '{place.name}' beside it",
            accepted="an engine with the manifest that its build wrote: an engine is code",
            remedy=f"build it with 'lrd-deploy build MODEL.onnx -o {engine.name} --backend {here.name}'",
        )
    artifact = EngineArtifact.read(place)
    check_engine(engine, artifact, hashlib.sha256(engine_bytes).hexdigest(), here, machine)
    return engine_bytes, artifact


def check_optimised_model(model: Path, here: BackendStatus, machine: Processor) -> None:
    """Refuses an ONNX file that ONNX Runtime optimised for another version or processor; any other file may pass.

    Raises:
        InputError: the manifest beside it is damaged, or the file is not the one, or not for here.
        UsageError: another backend built it.
    """
    place = manifest_of(model)
    if place.is_file() and _is_ours(place):
        check_engine(model, EngineArtifact.read(place), sha256_of(model), here, machine)


def check_engine(
    engine: Path, artifact: EngineArtifact, sha256: str, here: BackendStatus, machine: TargetGpu | NoGpu | Processor
) -> None:
    """Raises the error of the first thing that keeps an engine of this record and digest from being loaded here."""
    doing = f"loading the engine '{engine}'"
    if sha256 != artifact.sha256:
        raise InputError(
            doing,
            found=f"its SHA-256 is {sha256[:16]}…, its manifest says {artifact.sha256[:16]}…",
            accepted="the very file that was built: an engine is code",
            remedy="build it again; it was changed or cut short, or its manifest is of another build",
        )
    if artifact.backend != here.name:
        raise UsageError(
            doing,
            found=f"an engine of {artifact.backend}",
            accepted=f"one of {here.name}",
            remedy=f"load it with {artifact.backend}, or build it again with --backend {here.name}",
        )
    if not _fits_version(artifact, here.version or "unknown"):
        raise InputError(
            doing,
            found=f"{artifact.backend} {artifact.backend_version} built it, and this is {here.version}",
            accepted="this very version"
            + (", or an older one of the same major" if artifact.version_compatible else ""),
            remedy=f"{_BUILD_AGAIN}, or install {artifact.backend} {artifact.backend_version}",
        )
    if isinstance(machine, Processor):
        _check_processor(doing, artifact, machine)
    else:
        _check_gpu(doing, artifact, machine)


def _fits_version(artifact: EngineArtifact, version: str) -> bool:
    if not artifact.version_compatible:
        return artifact.backend_version == version
    built, here = (_numbers(text) for text in (artifact.backend_version, version))
    return bool(built and here) and built[0] == here[0] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdecimal, parts)) else ()


def _check_processor(doing: str, artifact: EngineArtifact, here: Processor) -> None:
    built_on = artifact.built_on
    if not isinstance(built_on, Processor) or built_on.instructions == here.instructions:
        return
    missing = [each for each in built_on.instructions if each not in here.instructions]
    more = [each for each in here.instructions if each not in built_on.instructions]
    raise InputError(
        doing,
        found=f"it was optimised for {built_on.name}; this is {here.name}, "
        + " and ".join(f"{word} {', '.join(names)}" for word, names in (("without", missing), ("with", more)) if names),
        accepted="a processor with the same instruction sets, which the layouts in the file are chosen by",
        remedy=f"{_BUILD_AGAIN}; the ONNX file that it was built from runs anywhere",
    )


def _check_gpu(doing: str, artifact: EngineArtifact, here: TargetGpu | NoGpu) -> None:
    if isinstance(here, NoGpu):
        raise UsageError(
            doing, found=here.reason, accepted="the GPU that the engine is for", remedy="run it on that machine"
        )
    capabilities = artifact.compute_capabilities
    if capabilities and here.compute_capability not in capabilities:
        raise InputError(
            doing,
            found=f"it is for compute capability {', '.join(capabilities)}; {here.name} has {here.compute_capability}",
            accepted="a GPU of a generation that the engine was built for",
            remedy=f"build it again with --compute-capability {here.compute_capability}, if this version knows it",
        )
    built_on = artifact.built_on
    if isinstance(built_on, TargetGpu) and built_on.name != here.name:
        raise InputError(
            doing,
            found=f"it was built on {built_on.name}, and this is {here.name}",
            accepted="the same model of GPU: kernels were timed on it",
            remedy=_BUILD_AGAIN,
        )


def _is_ours(manifest: Path) -> bool:
    """False for a JSON file of somebody else's that happens to lie beside a model."""
    try:
        found = json.loads(read_bytes(manifest))
    except ValueError:
        return True  # cut short, perhaps: reading it as a record tells
    return isinstance(found, dict) and {"backend", "source_sha256"} <= found.keys()
