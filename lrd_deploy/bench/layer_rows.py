"""Joining what an engine ran to the layers of its ONNX file, and one model's layers to another's, by node name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lrd_deploy.bench.weighted_layers import WeightedLayer
from lrd_deploy.engines.profiler import Kernel
from lrd_deploy.records import KernelGroup, KernelRole

_MOVES = ("Reorder", "Reformat", "Memcpy", "NoOp")
_ELEMENTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "BiasAdd", "BiasGelu", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp",
    "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "PointWise",
    "PointWiseV2", "Pow", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh", "ThresholdedRelu",
})  # fmt: skip


@dataclass(frozen=True)
class ArmGraph:
    """One model: its layers, from its ONNX file, and what the engine ran of it."""

    layers: tuple[WeightedLayer, ...]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class ArmRow:
    """One model's part of a row: layers, and by kernel number what that kernel does there."""

    layers: tuple[WeightedLayer, ...]
    kernels: Mapping[int, KernelRole]


@dataclass(frozen=True)
class Row:
    """One layer in every model that has it; several where one kernel runs them together."""

    name: str
    arms: Mapping[str, ArmRow]


@dataclass
class _Group:
    members: list[tuple[str, WeightedLayer]] = field(default_factory=list)
    keys: set[Hashable] = field(default_factory=set)


def rows_of(arms: Mapping[str, ArmGraph]) -> list[Row]:
    """Returns the layers of all models side by side, in the order of the first one's graph.

    Layers are one row where they have one name, share a node's name, or share a kernel. A kernel belongs to a layer
    whose weights it runs, or whose factors it stands between and only turns data.
    """
    return [_row(group, arms) for group in _joined(arms)]


def outside_rows(rows: Iterable[Row], arm: str, kernels: Sequence[Kernel]) -> dict[KernelGroup, tuple[int, ...]]:
    """Returns the numbers of the kernels that are in no row, by what they do; every group is there."""
    inside = {number for row in rows if arm in row.arms for number in row.arms[arm].kernels}
    groups: dict[KernelGroup, tuple[int, ...]] = {"reorders": (), "elementwise": (), "other": ()}
    for number, kernel in enumerate(kernels):
        if number not in inside:
            groups[group_of(kernel)] += (number,)
    return groups


def group_of(kernel: Kernel) -> KernelGroup:
    """Returns what a kernel is that runs no weights: does it turn data, work on every element alone, or else."""
    if kernel.operator.startswith(_MOVES):
        return "reorders"
    return "elementwise" if kernel.operator in _ELEMENTWISE else "other"


def lost_fusions(arms: Mapping[str, ArmGraph]) -> list[tuple[str, str, int]]:
    """Returns (arm, node, kernel number) for nodes that run alone in one of two models and not in the other.

    Both have a node of that name.
    """
    if len(arms) < 2:
        return []
    alone = {
        arm: {kernel.nodes[0]: number for number, kernel in enumerate(graph.kernels) if len(kernel.nodes) == 1}
        for arm, graph in arms.items()
    }
    together = {
        arm: {node for kernel in graph.kernels if len(kernel.nodes) > 1 for node in kernel.nodes}
        for arm, graph in arms.items()
    }
    weighted = {node for graph in arms.values() for layer in graph.layers for node in layer.nodes}
    (one, other) = arms
    return [
        (arm, node, number)
        for arm, against in ((one, other), (other, one))
        for node, number in alone[arm].items()
        if node in together[against] and node not in alone[against] and node not in weighted
    ]


def _joined(arms: Mapping[str, ArmGraph]) -> list[_Group]:
    groups: list[_Group] = []
    for arm, graph in arms.items():
        running = _running(graph.kernels)
        for layer in graph.layers:
            keys: set[Hashable] = {("name", layer.name), *(("node", node) for node in layer.nodes)}
            keys |= {(arm, number) for node in layer.nodes for number in running.get(node, ())}
            touched = [group for group in groups if group.keys & keys]
            home = touched[0] if touched else _Group()
            for group in touched[1:]:
                home.members += group.members
                home.keys |= group.keys
                groups.remove(group)
            if not touched:
                groups.append(home)
            home.members.append((arm, layer))
            home.keys |= keys
    return groups


def _running(kernels: Sequence[Kernel]) -> dict[str, list[int]]:
    """The numbers of the kernels that run each node."""
    found: dict[str, list[int]] = {}
    for number, kernel in enumerate(kernels):
        for node in kernel.nodes:
            found.setdefault(node, []).append(number)
    return found


def _row(group: _Group, arms: Mapping[str, ArmGraph]) -> Row:
    parts = {}
    for arm, graph in arms.items():
        layers = tuple(layer for owner, layer in group.members if owner == arm)
        if layers:
            nodes = {node for layer in layers for node in layer.nodes}
            own = {number for number, kernel in enumerate(graph.kernels) if nodes.intersection(kernel.nodes)}
            roles: dict[int, KernelRole] = dict.fromkeys(sorted(own), "layer")
            parts[arm] = ArmRow(layers, roles | dict.fromkeys(_between(own, graph.kernels), "reorder"))
    first = next(iter(parts.values()))
    return Row(" + ".join(layer.name for layer in first.layers), parts)


def _between(own: set[int], kernels: Sequence[Kernel]) -> Iterator[int]:
    """Kernels that only turn data which some of `own` give and none but `own` read."""
    if len(own) < 2:
        return
    links = _links(kernels)
    moves = {number for number, kernel in enumerate(kernels) if not kernel.nodes and group_of(kernel) == "reorders"}
    for number in sorted(moves):
        writers = {writer for writer, reader in links if reader == number}
        readers = {reader for writer, reader in links if writer == number}
        if writers and readers and writers | readers <= own | moves and (writers | readers) & own:
            yield number


def _links(kernels: Sequence[Kernel]) -> set[tuple[int, int]]:
    """Pairs of a kernel and one that reads what it wrote; a name is that of the last kernel that wrote it."""
    written: dict[str, int] = {}
    links = set()
    for number, kernel in enumerate(kernels):
        links |= {(written[value], number) for value in kernel.inputs if value in written}
        written |= dict.fromkeys(kernel.outputs, number)
    return links
