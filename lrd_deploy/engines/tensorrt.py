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
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.files import move_into_place, write_whole
from lrd_deploy.records import EngineArtifact, InputProfile, TargetGpu

# What TensorRT-RTX compiles for where no target is named: consumer cards from Ampere on.
_DEFAULT_CAPABILITIES = ("8.6",)
_NEEDS_GPU_HERE = "describing its layers loads the engine, which takes a GPU that it is for"


@dataclass(frozen=True)
class TensorRT:
    """Compiles ONNX into a TensorRT plan, and runs plans. Plans are executable code: load only those you built."""

    name: str
    package: str
    extra: str
    find_gpu: Callable[[], TargetGpu | NoGpu] = find_gpu

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
        job = _Job(
            model=model,
            engine=engine,
            settings=settings,
            inputs=input_profiles(read_model(model), settings),
            capabilities=settings.compute_capabilities or (_DEFAULT_CAPABILITIES if self._is_rtx else ()),
            machine=machine if isinstance(machine, TargetGpu) else None,
            cache=self._opened_cache(settings, trt, machine),
        )
        started, done = time.perf_counter(), []

        def compile_to(temporary: Path) -> None:
            plan = job.plan(self.package, temporary)
            try:
                done.append(compile_in_own_process(plan, log_of(engine)))
                job.keep_layers(plan, done[0][0])
            finally:
                if plan.layers:
                    plan.layers.unlink(missing_ok=True)

        write_whole(engine, compile_to)
        return job.artifact(self.describe(), *done[0], seconds=time.perf_counter() - started)

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

    def _check(self, settings: BuildSettings, trt: Any, machine: TargetGpu | NoGpu) -> None:
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

    def _opened_cache(self, settings: BuildSettings, trt: Any, machine: TargetGpu | NoGpu) -> OpenedCache | None:
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


@dataclass(frozen=True)
class _Job:
    """One engine to compile: from what, to where, for what. `machine` is None where there is no GPU."""

    model: Path
    engine: Path
    settings: BuildSettings
    inputs: tuple[InputProfile, ...]
    capabilities: tuple[str, ...]
    machine: TargetGpu | None
    cache: OpenedCache | None

    @property
    def layers(self) -> Path:
        return self.engine.with_name(self.engine.name + ".layers.json")

    def plan(self, package: str, temporary: Path) -> CompilePlan:
        """What the compiling process is told; the engine goes to a temporary file."""
        here = self.machine
        loads_here = here is not None and (not self.capabilities or here.compute_capability in self.capabilities)
        return CompilePlan(
            package=package,
            model=self.model.resolve(),
            engine=temporary.resolve(),
            layers=temporary.with_name(temporary.name + ".layers").resolve() if loads_here else None,
            inputs=self.inputs,
            compute_capabilities=self.capabilities,
            tf32=self.settings.tf32,
            version_compatible=self.settings.version_compatible,
            refittable=self.settings.refittable,
            timing_cache=self.cache,
        )

    def keep_layers(self, plan: CompilePlan, result: CompileResult) -> None:
        """Moves the description of the layers to its place; removes one of an earlier build."""
        if plan.layers and result.no_layers is None:
            move_into_place(plan.layers, self.layers)
        else:
            self.layers.unlink(missing_ok=True)

    def artifact(
        self, builder: BackendStatus, result: CompileResult, warnings: int, *, seconds: float
    ) -> EngineArtifact:
        """The record of the finished engine."""
        named = ", ".join(f"compute capability {text}" for text in self.capabilities)
        here = f"{self.machine.name}, compute capability {self.machine.compute_capability}" if self.machine else ""
        described = self.layers.is_file()
        return artifact_of(
            self.engine,
            self.model,
            builder,
            target=named or here,
            seconds=seconds,
            profile=self.inputs,
            tf32=self.settings.tf32,
            version_compatible=self.settings.version_compatible,
            refittable=self.settings.refittable,
            compute_capabilities=self.capabilities,
            built_on=None if self.capabilities else self.machine,
            timing_cache=result.timing_cache,
            warnings=warnings,
            log=Path(log_of(self.engine).name),
            layers=Path(self.layers.name) if described else None,
            no_layers=None if described else result.no_layers or _NEEDS_GPU_HERE,
        )


def _refused_by_rtx(doing: str, settings: BuildSettings, machine: TargetGpu | NoGpu) -> list[LrdError]:
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
