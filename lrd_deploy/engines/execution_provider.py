"""ONNX Runtime's execution providers: the one that a device needs, and that a model really runs on it.

ONNX Runtime goes on on the CPU where a GPU cannot be had, and says so in its log alone. Here that is an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrd_deploy.errors import BackendError
from lrd_deploy.records import Execution

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_RECORD_ASSIGNMENT, _NO_FALLBACK = "session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback"
_WEIGHTED = re.compile(r"Conv|Gemm|MatMul|Attention|LSTM|GRU|RNN")
_ABSENT_LIBRARY = re.compile(r"\S+: cannot open shared object file")
Load = Callable[[str], Any]


def providers(execution: Execution) -> list[str | tuple[str, dict[str, str]]]:
    """Returns what `InferenceSession` takes; the CPU comes last, for operators on shapes that belong there."""
    if execution.gpu is None:
        return [CPU]
    chosen = {
        "device_id": str(execution.gpu),
        "enable_cuda_graph": str(int(execution.cuda_graph)),
        "use_tf32": str(int(execution.tf32)),
    }
    return [(CUDA, chosen), CPU]


def demand_placement_(options: Any, execution: Execution, session_type: type) -> None:
    """Has a session on a GPU record which provider gets which node; one too old for it may use the CPU for none."""
    if execution.gpu is not None:
        records = hasattr(session_type, "get_provider_graph_assignment_info")
        options.add_session_config_entry(_RECORD_ASSIGNMENT if records else _NO_FALLBACK, "1")


def operators_on_cpu(session: Any) -> tuple[str, ...]:
    """Returns the operators of the nodes that the CPU was given, where a session recorded it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ()
    subgraphs = session.get_provider_graph_assignment_info()
    return tuple(node.op_type for part in subgraphs if part.ep_name == CPU for node in part.get_nodes())


def check_placement(session: Any, execution: Execution, doing: str) -> None:
    """Raises `BackendError` where a session that should run on a GPU runs on the CPU, or a weighted node of it does."""
    if execution.gpu is None:
        return
    used = session.get_providers()
    if used[0] != CUDA:
        raise BackendError(
            doing,
            found=f"ONNX Runtime fell back to {used[0]}",
            accepted=f"a session on {execution.device}",
            remedy="run 'lrd-deploy doctor', and read ONNX Runtime's own words above",
        )
    weighted = [operator for operator in operators_on_cpu(session) if _WEIGHTED.search(operator)]
    if weighted:
        raise BackendError(
            doing,
            found=f"{len(weighted)} nodes with weights on the CPU ({', '.join(sorted(set(weighted)))})",
            accepted=f"all of them on {execution.device}",
            remedy="use operators and types that ONNX Runtime has CUDA kernels for, or measure with --device cpu",
        )


def check_device(execution: Execution) -> None:
    """Raises `BackendError` with all that this machine lacks to run on a device."""
    if execution.gpu is None:
        return
    lacking = lacking_for_cuda(execution.gpu)
    if lacking:
        raise BackendError(
            f"running on {execution.device}",
            found="; ".join(lacking),
            accepted="an NVIDIA GPU with its driver, and the CUDA and cuDNN libraries of this onnxruntime-gpu",
            remedy="mend what is missing (pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries), "
            "or measure with --device cpu",
        )


def lacking_for_cuda(gpu: int, load: Load = ctypes.CDLL) -> list[str]:
    """Returns what is missing here to run on a GPU, each in words.

    Args:
        gpu: its number.
        load: opens a shared library, or raises OSError.
    """
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return ["this ONNX Runtime was built without CUDA: install onnxruntime-gpu in the place of onnxruntime"]
    return [*_lacking_driver(gpu, load), *_lacking_libraries(onnxruntime, load)]


def _lacking_driver(gpu: int, load: Load) -> list[str]:
    """Asks the CUDA driver itself, which is there before any library of CUDA's."""
    try:
        driver = load("libcuda.so.1")
    except OSError as exc:
        return [f"no NVIDIA driver ({exc})"]
    status = driver.cuInit(0)
    if status:
        return [f"the NVIDIA driver finds no usable GPU (cuInit returned {status})"]
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return [] if gpu < count.value else [f"no GPU {gpu}: there are {count.value}, counted from 0"]


def _lacking_libraries(onnxruntime: Any, load: Load) -> list[str]:
    """Opens ONNX Runtime's CUDA provider, whose first library that cannot be found is told.

    Libraries that pip installed are opened first, from where only `preload_dlls` finds them; it prints what it lacks.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    provider = Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"
    try:
        load(str(provider))
    except OSError as exc:
        absent = _ABSENT_LIBRARY.search(str(exc))  # other complaints are of a library opened out of its order
        return [absent.group()] if absent else []
    return []
