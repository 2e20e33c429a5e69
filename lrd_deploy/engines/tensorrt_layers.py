"""TensorRT's layer information and per-layer times, read as kernels that know which nodes of the ONNX file they run.

Pure functions over what a machine with TensorRT gives: the JSON of its engine inspector (or of
`trtexec --exportLayerInfo`), and what its profiler reports after each call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lrd_deploy.engines.profiler import Kernel, KernelTimes, kernel_times
from lrd_deploy.errors import InputError

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[\s+]|$)", re.DOTALL)
_WRAPPED = re.compile(r"^\w+\((.*)\)$", re.DOTALL)


def layer_kernels(text: str) -> tuple[Kernel, ...]:
    """Returns the layers of an engine in the order in which they run.

    Which ONNX nodes a layer runs is in its metadata, where the engine was built with detailed verbosity; else it is
    guessed from its name, which joins theirs with `+`.

    Args:
        text: JSON of TensorRT 8 to 10, whose inputs and outputs are `Bindings`, or of 11, whose are `I/O Tensors`.

    Raises:
        InputError: it is no such JSON.
    """
    try:
        engine = json.loads(text)
        if not isinstance(engine, dict) or not ({"Bindings", "I/O Tensors"} & engine.keys()):
            raise ValueError("an object with neither 'Bindings' nor 'I/O Tensors'")
        return tuple(_kernel(layer) for layer in engine["Layers"])
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputError(
            "reading TensorRT's layer information",
            found=f"{type(exc).__name__}: {exc}",
            accepted="the engine inspector's JSON: an object with 'Layers', and 'Bindings' or 'I/O Tensors'",
            remedy="write it with LayerInformationFormat.JSON, for the whole engine",
        ) from exc


def engine_tensors(text: str) -> tuple[str, ...]:
    """Returns the names of an engine's inputs and outputs, from the JSON that `layer_kernels` reads."""
    engine = json.loads(text)
    return tuple(
        tensor if isinstance(tensor, str) else tensor["Name"]
        for tensor in engine.get("I/O Tensors", engine.get("Bindings", ()))
    )


def reported_times(kernels: Sequence[Kernel], calls: Iterable[Iterable[tuple[str, float]]]) -> KernelTimes:
    """Returns the kernels that ran, with their times.

    Args:
        kernels: from `layer_kernels`.
        calls: for every call what an `IProfiler` was told: a layer's name, and its milliseconds.
    """
    summed = []
    for reports in calls:
        times: dict[str, int] = {}
        for name, milliseconds in reports:
            times[name] = times.get(name, 0) + round(milliseconds * 1e6)
        summed.append(times)
    return kernel_times(kernels, summed)


def _kernel(layer: Any) -> Kernel:
    if isinstance(layer, str):  # an engine that was built for names only
        return Kernel(name=layer, operator="unknown", nodes=_named_nodes(layer))
    nodes = tuple(dict.fromkeys(_NODE.findall(layer.get("Metadata") or "")))
    operator = layer.get("LayerType") or "unknown"
    return Kernel(
        name=layer["Name"],
        operator=operator,
        nodes=() if operator == "Reformat" else nodes or _named_nodes(layer["Name"]),
        inputs=_tensors(layer.get("Inputs")),
        outputs=_tensors(layer.get("Outputs")),
    )


def _named_nodes(name: str) -> tuple[str, ...]:
    """Parts of a layer's name, without what stands around some, as in `PWN(relu)`."""
    return tuple(_WRAPPED.sub(r"\1", part.strip()) for part in name.split(" + "))


def _tensors(listed: Any) -> tuple[str, ...]:
    return tuple(tensor if isinstance(tensor, str) else tensor["Name"] for tensor in listed or ())
