"""Compiling ONNX with TensorRT or TensorRT-RTX: parse, set up, build, describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrd_deploy.engines.timing_cache import OpenedCache, attach_, save
from lrd_deploy.errors import BackendError
from lrd_deploy.files import write_bytes, write_text
from lrd_deploy.records import InputProfile, Record, TimingCacheUse

_DOING = "compiling an engine"


class CompilePlan(Record):
    """What to compile, how, and where the engine and the description of its layers go.

    `layers` is None where the engine cannot be loaded on this machine, which describing it takes.
    """

    package: str
    model: Path
    engine: Path
    layers: Path | None
    inputs: tuple[InputProfile, ...]
    compute_capabilities: tuple[str, ...]
    tf32: bool
    version_compatible: bool
    refittable: bool
    timing_cache: OpenedCache | None


class CompileResult(Record):
    """What came of it besides the engine. `no_layers` is why its layers are not described, None where they are."""

    timing_cache: TimingCacheUse | None
    no_layers: str | None


def compile_engine(trt: Any, plan: CompilePlan) -> CompileResult:
    """Parses, compiles and writes an engine.

    Raises:
        PolygraphyException: the parser or the compiler refuses the model.
        BackendError: TensorRT refuses a setting.
    """
    from polygraphy import config as polygraphy_config

    polygraphy_config.USE_TENSORRT_RTX = trt.__name__ == "tensorrt_rtx"  # read when polygraphy first touches TensorRT
    from polygraphy.backend.trt import engine_bytes_from_network, get_trt_logger, network_from_onnx_path
    from polygraphy.logger import G_LOGGER

    G_LOGGER.colors = False
    G_LOGGER.module_severity = G_LOGGER.VERBOSE  # where polygraphy puts what TensorRT calls information
    builder, network, parser = network_from_onnx_path(str(plan.model))
    fix_sizes_(network, plan.inputs)
    config = configured(trt, builder, network, plan)
    timings = attach_(config, plan.timing_cache) if plan.timing_cache else None
    engine = bytes(memoryview(engine_bytes_from_network((builder, network, parser), config=config)))
    write_bytes(plan.engine, engine)
    return CompileResult(
        timing_cache=save(config, plan.timing_cache) if plan.timing_cache and timings is not None else None,
        no_layers=describe_layers(trt, get_trt_logger(), engine, plan.layers) if plan.layers else None,
    )


def fix_sizes_(network: Any, inputs: tuple[InputProfile, ...]) -> None:
    """Builds the dimensions that have one size into the network: a compiler does more with a number than with a range.

    Raises:
        BackendError: the network has an input that the plan knows nothing of, or one whose values are a shape.
    """
    profiles = {profile.name: profile for profile in inputs}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        profile = profiles.get(tensor.name)
        if profile is None or tensor.is_shape_tensor:
            raise BackendError(
                _DOING,
                found=f"the input '{tensor.name}' " + ("holds a shape" if profile else "is none of the graph's"),
                accepted="inputs of data: an engine's shapes follow from those of its inputs",
                remedy="make that input a constant in the graph",
            )
        tensor.shape = tuple(low if low == high else -1 for low, high in zip(profile.min, profile.max, strict=True))


def configured(trt: Any, builder: Any, network: Any, plan: CompilePlan) -> Any:
    """Returns a builder's config for the plan. Precision is the graph's: TensorRT 11 has no flags for it.

    Raises:
        BackendError: TensorRT refuses a target or the shapes.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layers could not be joined with the graph's nodes
    wanted = {"TF32": plan.tf32, "VERSION_COMPATIBLE": plan.version_compatible, "REFIT": plan.refittable}
    if plan.timing_cache:
        wanted["ERROR_ON_TIMING_CACHE_MISS"] = plan.timing_cache.miss_is_error
    for name, on in wanted.items():
        (config.set_flag if on else config.clear_flag)(getattr(trt.BuilderFlag, name))
    _set_targets_(trt, config, plan.compute_capabilities)
    if any(-1 in network.get_input(index).shape for index in range(network.num_inputs)):
        _add_profile_(builder, config, plan.inputs)
    return config


def _set_targets_(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, text in enumerate(capabilities):
        target = getattr(trt.ComputeCapability, "SM" + text.replace(".", ""))
        if not config.set_compute_capability(target, index):
            raise _refused(f"compute capability {text}")


def _add_profile_(builder: Any, config: Any, inputs: tuple[InputProfile, ...]) -> None:
    profile = builder.create_optimization_profile()
    for each in inputs:
        profile.set_shape(each.name, each.min, each.opt, each.max)
    if not profile or config.add_optimization_profile(profile) < 0:
        raise _refused("; ".join(f"{each.name} {each.min} {each.opt} {each.max}" for each in inputs))


def _refused(what: str) -> BackendError:
    return BackendError(
        _DOING,
        found=f"TensorRT refuses {what}",
        accepted="shapes and targets that this version takes",
        remedy="read the log for its reason",
    )


def describe_layers(trt: Any, logger: Any, engine: bytes, target: Path) -> str | None:
    """Writes what the engine inspector says of an engine's layers, as JSON; returns why not where it cannot."""
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        return "the engine does not load on this machine, which describing its layers takes"
    text = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    if not text:
        return "TensorRT's inspector says nothing of it"
    write_text(target, text)
    return None
