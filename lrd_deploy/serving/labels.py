"""Names of the classes, as Triton's classification extension prints them: one a line, in the order of the logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes
from lrd_deploy.serving.tensors import ServedGraph

LABELS_NAME = "labels.txt"
_INVENTED = re.compile(r"^LABEL_\d+$")  # what transformers calls classes that nobody named


@dataclass(frozen=True)
class Labels:
    """The classes of the output that they belong to."""

    output: str
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """The content of the file of labels."""
        return "".join(f"{name}\n" for name in self.names)


def read_labels(path: Path) -> tuple[str, ...]:
    """Returns the lines of a file of labels.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is not UTF-8, is empty, or a line is empty or holds control characters.
    """
    try:
        lines = read_bytes(path).decode().replace("\r\n", "\n").removesuffix("\n").split("\n")  # as Triton splits
    except UnicodeDecodeError as exc:
        raise _bad_labels(path, f"the byte {exc.object[exc.start]:#04x}") from exc
    bad = [number for number, name in enumerate(lines, 1) if not _is_label(name)]
    if bad:
        raise _bad_labels(path, f"line {bad[0]} without printable text")
    return tuple(lines)


def named_classes(id2label: object) -> tuple[str, ...]:
    """Returns the names in a transformers config's `id2label`; none where nobody gave any."""
    if not isinstance(id2label, dict) or set(id2label) != set(range(len(id2label))):
        return ()
    names = tuple(str(id2label[number]) for number in range(len(id2label)))
    return () if all(map(_INVENTED.match, names)) or not all(map(_is_label, names)) else names


def labels_for(graph: ServedGraph, names: Sequence[str]) -> Labels | None:
    """Returns the names with the output that has as many classes; None where there are no names, or no such output.

    Limits: two outputs with as many classes are ambiguous, and get none.
    """
    fitting = [tensor.info.name for tensor in graph.outputs if tensor.dims[-1] == len(names) and not tensor.lone_batch]
    return Labels(fitting[0], tuple(names)) if names and len(fitting) == 1 else None


def demanded_labels(graph: ServedGraph, path: Path) -> Labels:
    """Returns the labels of a file that the user named.

    Raises:
        StorageError, InputError: see `read_labels`; or no output, or more than one, has as many classes.
    """
    names = read_labels(path)
    labels = labels_for(graph, names)
    if labels is None:
        sizes = ", ".join(f"'{tensor.info.name}' {tensor.dims[-1]}" for tensor in graph.outputs)
        raise InputError(
            f"matching the labels in '{path}' to an output",
            found=f"{len(names)} labels; the last dimensions of the outputs are {sizes}",
            accepted="one output with as many classes as there are labels",
            remedy="give one label a line, in the order of the logits",
        )
    return labels


def _is_label(name: str) -> bool:
    return bool(name.strip()) and name.isprintable()


def _bad_labels(path: Path, found: str) -> InputError:
    return InputError(
        f"reading the labels '{path}'",
        found=found,
        accepted="UTF-8 text with one label a line",
        remedy="correct the file, or leave --labels out",
    )
