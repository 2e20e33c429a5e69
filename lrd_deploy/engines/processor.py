"""The processor that this process runs on."""

from __future__ import annotations

import platform
from pathlib import Path

from lrd_deploy.records import Processor

# What ONNX Runtime's CPU kernels, and the layouts it saves in an optimised graph, are chosen by.
_DECIDING = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp",
             "i8mm", "bf16", "sve")  # fmt: skip


def processor() -> Processor:
    """Returns the processor's name, and which of the instruction sets that decide about kernels it has."""
    name, instructions = processor_text()
    here = set(instructions.split())
    return Processor(name=name, instructions=tuple(each for each in _DECIDING if each in here))


def processor_text() -> tuple[str, str]:
    """Returns the processor's name and all its instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ""
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name") or platform.machine(), named.get("flags") or named.get("Features") or ""
