"""What machine this is, and what is installed: a number without it means little."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata

from lrd_deploy.bench.gpu import installed_gpus
from lrd_deploy.engines.processor import processor_text
from lrd_deploy.records import Environment, Gpu

_PACKAGES = ("lrd-deploy", "torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "transformers", "accelerate")


def environment() -> Environment:
    """Returns this machine's description.

    The fingerprint covers the processor, its instruction sets, the cores, the inference runtime, and the GPUs with
    their driver and CUDA; not clock frequencies, which differ from boot to boot.
    """
    cpu, instructions = processor_text()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    packages = {name: version for name in _PACKAGES if (version := version_of(name))}
    runtime = packages.get("onnxruntime-gpu") or packages.get("onnxruntime") or "none"
    gpus = installed_gpus()
    stable = "\n".join(
        (cpu, instructions, str(cores), platform.system(), platform.machine(), runtime, *map(_gpu_line, gpus))
    )
    return Environment(
        cpu=cpu,
        cores=cores,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=packages,
        fingerprint=hashlib.sha256(stable.encode()).hexdigest()[:16],
        gpus=gpus,
    )


def _gpu_line(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.memory_mib} MiB, driver {gpu.driver}, CUDA {gpu.cuda}"


def version_of(package: str) -> str | None:
    """Returns the version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
