"""TensorRT and TensorRT-RTX: one implementation, with the vendor's package as the parameter.

TensorRT-RTX compiles for named GPU generations on a machine that has no GPU, so that a real TensorRT compiler can
accept or refuse what we export anywhere. TensorRT itself needs a GPU and its driver. Both are extras of this package.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from lrd_deploy.engines.artifact import artifact_of, checked_bytes
from lrd_deploy.engines.backend import BackendStatus, BuildSettings, SessionSettings
from lrd_deploy.engines.compile_process import compile_in_own_process, log_of
from lrd_deploy.engines.gpu import NoGpu, find_gpu
from lrd_deploy.engines.profile import input_profiles
from lrd_deploy.engines.tensorrt_compile import CompilePlan, CompileResult
from lrd_deploy.engines.tensorrt_session import TensorRTSession, open_session
from lrd_deploy.engines.timing_cache import OpenedCache, TimingCacheKey, open_cache
from lrd_deploy.errors import LrdError, MissingPackage, UsageError, raise_all
from lrd_deploy.export.model_files import read_graph
from lrd_deploy.files import move_into_place, write_whole
from lrd_deploy.records import EngineArtifact, Gpu, InputProfile

# What TensorRT-RTX compiles for where no target is named: consumer cards from Ampere on.
_DEFAULT_CAPABILITIES = ("8.6",)
_NEEDS_GPU_HERE = "describing its layers loads the engine, which takes a GPU that it is for"


@dataclass(frozen=True)
class TensorRT:
    """Compiles ONNX into a TensorRT plan, and runs plans. Plans are executable code: load only those you built."""

    name: str
    package: str
    extra: str
    find_gpu: Callable[[], Gpu | NoGpu] = find_gpu

    def describe(self) -> BackendStatus:
        """Says what works here, and of package, libraries, driver and GPU each one that is missing."""
        version, lacks = self._installed()
        machine = self.find_gpu()
        missing = (*lacks, *((machine.reason,) if isinstance(machine, NoGpu) else ()))
        runs = not missing
        builds = not lacks and (self._is_rtx or runs)
        if runs:
            detail = f"{machine.name}, compute capability {machine.compute_capability}, driver {machine.driver}"
        else:
            detail = ("compiles without a GPU; to run: " if builds else "") + "; ".join(missing)
        return BackendStatus(name=self.name, builds=builds, runs=runs, version=version, detail=detail, missing=missing)

    def build(self, model: Path, engine: Path, settings: BuildSettings) -> EngineArtifact:
        """Compiles a model, in a process of its own; its log goes beside the engine, also when it fails.

        Raises:
            MissingPackage: the package is not installed.
            UsageError: its libraries do not load, it needs a GPU, or a setting is none for this backend.
            InputError: the model has inputs without a shape.
            BackendError: the parser or the compiler refuses the model.
        """
        trt, machine = self._import(), self.find_gpu()
        self._check(settings, trt, machine)
        capabilities = settings.compute_capabilities or (_DEFAULT_CAPABILITIES if self._is_rtx else ())
        inputs = input_profiles(read_graph(model), settings)
        cache = self._opened_cache(settings, trt, machine)
        loads_here = isinstance(machine, Gpu) and (not capabilities or machine.compute_capability in capabilities)
        layers = engine.with_name(engine.name + ".layers.json")
        started, results = time.perf_counter(), []

        def compile_to(temporary: Path) -> None:
            plan = CompilePlan(
                package=self.package,
                model=model.resolve(),
                engine=temporary.resolve(),
                layers=temporary.with_name(temporary.name + ".layers").resolve() if loads_here else None,
                inputs=inputs,
                compute_capabilities=capabilities,
                tf32=settings.tf32,
                version_compatible=settings.version_compatible,
                refittable=settings.refittable,
                timing_cache=cache,
            )
            try:
                results.append(compile_in_own_process(plan, log_of(engine)))
                _keep_layers(plan, results[0][0], layers)
            finally:
                if plan.layers:
                    plan.layers.unlink(missing_ok=True)

        write_whole(engine, compile_to)
        return self._artifact(model, engine, settings, inputs, capabilities, machine, results[0], started)

    def load(self, model: Path, settings: SessionSettings) -> TensorRTSession:  # noqa: ARG002, a GPU has its own threads
        """Loads an engine that this backend built, after checking that it is that very file and fits this machine.

        Raises:
            MissingPackage: the package is not installed.
            InputError, UsageError, StorageError: see `checked_bytes`.
            BackendError: TensorRT does not take the engine.
        """
        trt = self._import()
        plan, artifact = checked_bytes(model, self.describe(), self.find_gpu())
        from polygraphy import cuda

        logger = trt.Logger(trt.Logger.ERROR)
        return open_session(trt, cuda, logger, plan, host_code=artifact.version_compatible)

    @property
    def _is_rtx(self) -> bool:
        return self.package == "tensorrt_rtx"

    def _installed(self) -> tuple[str | None, tuple[str, ...]]:
        """The version, or what is missing of the package."""
        try:
            return self._import().__version__, ()
        except MissingPackage:
            return None, (f"not installed; run: pip install 'lrd-deploy[{self.extra}]'",)
        except UsageError as problem:
            return None, (f"installed, but {problem.found}; {problem.remedy}",)

    def _import(self) -> Any:
        purpose = f"using {self.name}"
        try:
            if util.find_spec(self.package) is None:
                raise MissingPackage(self.package, extra=self.extra, purpose=purpose)
            return importlib.import_module(self.package)
        except ValueError as exc:  # it is blocked in this process
            raise MissingPackage(self.package, extra=self.extra, purpose=purpose) from exc
        except (ImportError, OSError) as exc:
            raise UsageError(
                purpose,
                found=f"its libraries do not load: {' '.join(str(exc).split())[:300]}",
                accepted="a package whose libraries are there",
                remedy=f"run: pip install --force-reinstall 'lrd-deploy[{self.extra}]'",
            ) from exc

    def _check(self, settings: BuildSettings, trt: Any, machine: Gpu | NoGpu) -> None:
        """Raises what speaks against these settings on this machine, all of it together."""
        doing = f"building with {self.name}"
        problems: list[LrdError] = [
            _unknown_capability(text, _known_capabilities(trt))
            for text in settings.compute_capabilities
            if text not in _known_capabilities(trt)
        ]
        if not self._is_rtx and isinstance(machine, NoGpu):
            problems.append(
                UsageError(
                    doing,
                    found=machine.reason,
                    accepted="an NVIDIA GPU and its driver: TensorRT times its kernels on them",
                    remedy="build on the machine that will serve, or with --backend tensorrt-rtx for named GPUs",
                )
            )
        if self._is_rtx:
            problems += _refused_by_rtx(doing, settings, machine)
        if problems:
            raise_all(doing, problems)

    def _opened_cache(self, settings: BuildSettings, trt: Any, machine: Gpu | NoGpu) -> OpenedCache | None:
        if settings.timing_cache is None or isinstance(machine, NoGpu):
            return None
        key = TimingCacheKey(
            backend=self.name,
            version=trt.__version__,
            gpu=machine.name,
            compute_capability=machine.compute_capability,
            driver=machine.driver,
        )
        return open_cache(settings.timing_cache, key)

    def _artifact(
        self,
        model: Path,
        engine: Path,
        settings: BuildSettings,
        inputs: tuple[InputProfile, ...],
        capabilities: tuple[str, ...],
        machine: Gpu | NoGpu,
        compiled: tuple[CompileResult, int],
        started: float,
    ) -> EngineArtifact:
        result, warnings = compiled
        here = machine if isinstance(machine, Gpu) else None
        target = ", ".join(f"compute capability {text}" for text in capabilities)
        described = here is not None and result.no_layers is None and not _foreign(here, capabilities)
        return artifact_of(
            engine,
            model,
            self.describe(),
            target=target or f"{here.name}, compute capability {here.compute_capability}",
            seconds=time.perf_counter() - started,
            profile=inputs,
            tf32=settings.tf32,
            version_compatible=settings.version_compatible,
            refittable=settings.refittable,
            compute_capabilities=capabilities,
            built_on=None if capabilities else here,
            timing_cache=result.timing_cache,
            warnings=warnings,
            log=Path(log_of(engine).name),
            layers=Path(engine.name + ".layers.json") if described else None,
            no_layers=None if described else result.no_layers or _NEEDS_GPU_HERE,
        )


def _refused_by_rtx(doing: str, settings: BuildSettings, machine: Gpu | NoGpu) -> list[LrdError]:
    """What TensorRT-RTX 1.7 cannot do; each was tried."""
    no_gpu = isinstance(machine, NoGpu)
    reasons = (
        (settings.timing_cache is not None, "--timing-cache", "it does nothing here: kernels are chosen at loading"),
        (settings.version_compatible, "--version-compatible", "it takes libnvinfer_lean, which the package lacks"),
        (settings.refittable and no_gpu, "--refittable", "compiling such an engine takes a GPU, and there is none"),
    )
    return [
        UsageError(doing, found=f"{option}: {reason}", accepted=f"a build without {option}", remedy="leave it out")
        for asked, option, reason in reasons
        if asked
    ]


def _keep_layers(plan: CompilePlan, result: CompileResult, layers: Path) -> None:
    """Moves the description of the layers to its place; removes one of an earlier build."""
    if plan.layers is not None and result.no_layers is None:
        move_into_place(plan.layers, layers)
    else:
        layers.unlink(missing_ok=True)


def _foreign(here: Gpu, capabilities: tuple[str, ...]) -> bool:
    return bool(capabilities) and here.compute_capability not in capabilities


def _known_capabilities(trt: Any) -> tuple[str, ...]:
    """Such as "8.6", those that this version compiles for by name."""
    names = [name[2:] for name in dir(getattr(trt, "ComputeCapability", object)) if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int))


def _unknown_capability(text: str, known: tuple[str, ...]) -> UsageError:
    return UsageError(
        "choosing the GPU to compile for",
        found=f"compute capability '{text}'",
        accepted=f"one of: {', '.join(known)}" if known else "none: this backend compiles for the GPU at hand",
        remedy="leave --compute-capability out, or name one that is listed",
    )
