"""What ONNX Runtime's profiler writes, read as kernels that know which nodes of the ONNX file they run.

ONNX Runtime fuses nodes and renames them: a convolution in its blocked layout is called after the value that it gives
(`relu_3_nchwc`), a fused one after what fused it (`fc/MatMulAddFusion`), and nodes of its own appear
(`ReorderOutput`). The graph that it optimised says which values of the file it still computes; a kernel runs the nodes
that lie between those it gives and those that others give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from lrd_deploy.engines.backend import Arrays, Session
from lrd_deploy.engines.profiler import Kernel, KernelTimes, kernel_times
from lrd_deploy.errors import BackendError
from lrd_deploy.files import read_bytes

_EVENT, _BLOCKED = "_kernel_time", "_nchwc"
MOVES = frozenset({"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost"})
TRACE, OPTIMISED, WEIGHTS = "trace", "optimised.onnx", "optimised.weights"


@dataclass
class OnnxRuntimeProfile:
    """A session that was loaded with its profiler on, in a folder that gets its trace and its optimised graph."""

    session: Session
    end: Callable[[], str]
    model: Path
    folder: Path
    calls: int = field(default=0, init=False)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Returns the outputs by name."""
        self.calls += 1
        return self.session.run(inputs)

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call on these inputs."""
        self.calls += 1  # the session's own `bind` tries the inputs
        call = self.session.bind(inputs)

        def counted() -> object:
            self.calls += 1
            return call()

        return counted

    def kernel_times(self) -> KernelTimes:
        """Ends the profiler and reads its trace."""
        calls = trace_calls(read_bytes(Path(self.end())))
        if len(calls) != self.calls:
            raise BackendError(
                f"reading ONNX Runtime's profile of '{self.model}'",
                found=f"{len(calls)} of {self.calls} calls in its trace",
                accepted="a trace of every call; the profiler stops after a million events",
                remedy="profile again when the machine is idle, or with a larger batch: calls then settle sooner",
            )
        graphs = (onnx.load(path, load_external_data=False).graph for path in (self.folder / OPTIMISED, self.model))
        return kernel_times(kernels_of(*graphs), calls)


def trace_calls(trace: bytes) -> list[dict[str, int]]:
    """Returns nanoseconds by kernel of every call in a trace of ONNX Runtime's profiler.

    What ran inside another kernel, as the body of a Loop does, is in that kernel's time. Times are written in whole
    microseconds, rounded down; half of one is added back.

    Raises:
        BackendError: the trace is cut short, or not of that kind.
    """
    try:
        events = json.loads(trace)
        calls, ran = [], []
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(_EVENT):
                ran.append((event["ts"], event["dur"], event["name"].removesuffix(_EVENT)))
            elif event["cat"] == "Session" and event["name"] == "model_run":
                calls.append(_outermost(ran))
                ran = []
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BackendError(
            "reading ONNX Runtime's profile",
            found=f"{type(exc).__name__}: {exc}",
            accepted="a JSON list of events, each with its category, name, start and duration",
            remedy="check that the disk has room; report this with the installed version of ONNX Runtime otherwise",
        ) from exc
    return calls


def _outermost(ran: Sequence[tuple[int, int, str]]) -> dict[str, int]:
    times: dict[str, int] = {}
    busy_until = -1
    for started, duration, name in sorted(ran, key=lambda event: (event[0], -event[1])):
        if started >= busy_until:
            times[name] = times.get(name, 0) + 1000 * duration + 500
            busy_until = started + duration
    return times


def kernels_of(optimised: GraphProto, original: GraphProto) -> tuple[Kernel, ...]:
    """Returns the nodes of an optimised graph, each with the nodes of the original whose work it does.

    Args:
        optimised: as ONNX Runtime saved it, in the order in which it runs.
        original: the graph that was loaded; its nodes have names, each its own.
    """
    values = _Values.of(original)
    gives = [_given(node, values) for node in optimised.node]
    taken = set().union(*gives)
    return tuple(
        Kernel(
            name=node.name,
            operator=node.op_type,
            nodes=_run_nodes(given, taken, values.producers),
            inputs=tuple(filter(None, node.input)),
            outputs=tuple(filter(None, node.output)),
        )
        for node, given in zip(optimised.node, gives, strict=True)
    )


@dataclass(frozen=True)
class _Values:
    """The nodes of a graph by the values that they give and read, and by name."""

    producers: dict[str, NodeProto]
    readers: dict[str, list[NodeProto]]
    named: dict[str, NodeProto]

    @classmethod
    def of(cls, graph: GraphProto) -> _Values:
        """Reads a graph; bodies of its nodes are left out."""
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        producers = {value: node for node in graph.node for value in node.output if value}
        return cls(producers, readers, {node.name: node for node in graph.node})

    def after(self, value: str, operator: str) -> str:
        """Returns what the only reader of a value makes of it, where that is such an operator; else the value."""
        readers = self.readers.get(value, [])
        return readers[0].output[0] if len(readers) == 1 and readers[0].op_type == operator else value


def _given(node: NodeProto, values: _Values) -> set[str]:
    """The original graph's values that a node of the optimised one computes; none of one that moves data."""
    if node.op_type in MOVES:
        return set()
    if node.name.endswith(_BLOCKED) and (value := node.name.removesuffix(_BLOCKED)) in values.producers:
        return {_with_sum(node, value, values)}
    found = {value for value in node.output if value in values.producers}
    if found:
        return found
    source = next((values.named[name] for name in _earlier_names(node.name) if name in values.named), None)
    return {value for value in source.output if value} if source is not None else set()


def _with_sum(node: NodeProto, value: str, values: _Values) -> str:
    """What a blocked convolution gives that adds a fourth input to its product: it is called after the product."""
    if node.op_type != "Conv" or len(node.input) < 4 or not node.input[3]:
        return value
    added = values.after(value, "Add")
    activation = next((entry.s.decode() for entry in node.attribute if entry.name == "activation"), "")
    return values.after(added, activation) if added != value else value


def _earlier_names(name: str) -> Iterator[str]:
    """The name, then what is left of it without the fusions that were appended to it."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def _run_nodes(given: set[str], taken: set[str], producers: Mapping[str, NodeProto]) -> tuple[str, ...]:
    """Names of the nodes from which `given` comes, back to the values that kernels give; in no order of meaning."""
    found: dict[str, None] = {}
    waiting = sorted(given)
    while waiting:
        node = producers[waiting.pop()]
        if node.name in found:
            continue
        found[node.name] = None
        waiting.extend(value for value in node.input if value in producers and value not in taken)
    return tuple(found)


def profile_options(options: Any, folder: Path) -> Any:
    """Turns the profiler on in ONNX Runtime's session options; trace and optimised graph go to `folder`."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / TRACE)
    options.optimized_model_filepath = str(folder / OPTIMISED)
    for key, value in (("file_name", WEIGHTS), ("min_size_in_bytes", "1024")):  # the graph alone is read again
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    return options
