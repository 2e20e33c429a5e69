"""TensorRT and TensorRT-RTX: one implementation over polygraphy, with the vendor's package as the parameter.

TensorRT-RTX compiles for named GPU generations on a machine that has no GPU, so that a real TensorRT compiler can
accept or refuse what we export anywhere. TensorRT itself needs a GPU and its driver. Both are extras of this package.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from lrd_deploy.engines.artifact import artifact_of
from lrd_deploy.engines.backend import BackendStatus, BuildSettings
from lrd_deploy.errors import BackendError, MissingPackage, UsageError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.files import write_bytes
from lrd_deploy.records import EngineArtifact, TensorInfo

# What TensorRT-RTX 1.7 compiles for where no target is named: consumer cards from Ampere to Blackwell.
_DEFAULT_CAPABILITIES = ("8.6",)


@dataclass(frozen=True)
class TensorRTBuilder:
    """Compiles ONNX into a TensorRT plan. Plans are executable code: load only those you built."""

    name: str
    package: str
    extra: str

    def describe(self) -> BackendStatus:
        """Says whether the package is installed and can compile here."""
        if util.find_spec(self.package) is None:
            detail = f"not installed; run: pip install 'lrd-deploy[{self.extra}]'"
            return BackendStatus(name=self.name, builds=False, runs=False, version=None, detail=detail)
        try:
            version = importlib.import_module(self.package).__version__
        except (ImportError, OSError) as exc:
            detail = f"installed, but does not load: {exc}"
            return BackendStatus(name=self.name, builds=False, runs=False, version=None, detail=detail)
        if self._is_rtx:
            detail = "compiles without a GPU; does not run plans"
            return BackendStatus(name=self.name, builds=True, runs=False, version=version, detail=detail)
        detail = "needs an NVIDIA GPU and its driver"
        return BackendStatus(name=self.name, builds=_has_nvidia_driver(), runs=False, version=version, detail=detail)

    def build(self, model: Path, engine: Path, settings: BuildSettings) -> EngineArtifact:
        """Parses and compiles a model, with one optimization profile over its dynamic batch."""
        trt = self._import()
        capabilities = settings.compute_capabilities or (_DEFAULT_CAPABILITIES if self._is_rtx else ())
        targets = [_capability(text, trt) for text in capabilities]
        started = time.perf_counter()
        write_bytes(engine, self._compile(model, settings, targets))
        target = ", ".join(f"compute capability {text}" for text in capabilities) or "this GPU"
        return artifact_of(engine, model, self.describe(), target=target, seconds=time.perf_counter() - started)

    @property
    def _is_rtx(self) -> bool:
        return self.package == "tensorrt_rtx"

    def _import(self) -> Any:
        try:
            return importlib.import_module(self.package)
        except ImportError as exc:
            raise MissingPackage(self.package, extra=self.extra, purpose=f"building with {self.name}") from exc

    def _compile(self, model: Path, settings: BuildSettings, targets: list[tuple[int, int]]) -> bytes:
        from polygraphy import config as polygraphy_config

        polygraphy_config.USE_TENSORRT_RTX = self._is_rtx  # read when polygraphy first touches TensorRT
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
        from polygraphy.backend.trt import CreateConfig, engine_bytes_from_network, network_from_onnx_path
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        profile = _profile(graph_inputs(read_model(model)), settings)
        try:
            with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
                network = network_from_onnx_path(str(model))
                if self._is_rtx:
                    config = CreateConfigRTX(profiles=[profile], compute_capabilities=targets)
                else:
                    config = CreateConfig(profiles=[profile])
                return bytes(memoryview(engine_bytes_from_network(network, config=config)))
        except PolygraphyException as exc:
            raise BackendError(
                f"building '{model}' with {self.name}",
                found=" ".join(str(exc).split())[:600],
                accepted="a graph whose every node TensorRT's parser and compiler take",
                remedy="look up the node it names; 'lrd-deploy export' writes graphs that pass",
            ) from exc


def _profile(inputs: tuple[TensorInfo, ...], settings: BuildSettings) -> Any:
    """One optimization profile: every symbolic dimension is a batch."""
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for tensor in inputs:
        shapes = (
            tuple(batch if isinstance(dim, str) else dim for dim in tensor.shape)
            for batch in (settings.min_batch, settings.opt_batch, settings.max_batch)
        )
        profile.add(tensor.name, *shapes)
    return profile


def _capability(text: str, trt: Any) -> tuple[int, int]:
    """Reads "8.6", and refuses what this version cannot compile for."""
    names = [name[2:] for name in dir(getattr(trt, "ComputeCapability", object)) if name.startswith("SM")]
    known = {f"{name[:-1]}.{name[-1]}": (int(name[:-1]), int(name[-1])) for name in sorted(names, key=int)}
    if text not in known:
        raise UsageError(
            "choosing the GPU to compile for",
            found=f"compute capability '{text}'",
            accepted=f"one of: {', '.join(known)}" if known else "none: this backend compiles for the GPU at hand",
            remedy="leave --compute-capability out, or name one that is listed",
        )
    return known[text]


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
