"""What a convolution does along each spatial axis, read from a node and written to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from lrd_deploy.rewrite.weighted_node import kernel_size

AutoPad = Literal["SAME_UPPER", "SAME_LOWER"]
_ATTRIBUTES = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True)
class Window:
    """One axis of a convolution's window; the default one lets every pixel through as it is.

    `pads` are (begin, end), or the word by which the runtime finds them from the input's size.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pads: tuple[int, int] | AutoPad = (0, 0)


Windows = tuple[Window, Window]  # height, width


def windows(node: gs.Node) -> Windows:
    """Returns the node's window along (height, width); a matrix product has none to speak of."""
    if node.op != "Conv":
        return Window(), Window()
    return _window(node, 0), _window(node, 1)


def set_windows(node: gs.Node, placed: Windows) -> None:
    """Gives a convolution these windows, which share the word where they pad by one; defaults are left out."""
    for attribute in _ATTRIBUTES:
        node.attrs.pop(attribute, None)
    node.attrs["kernel_shape"] = [window.kernel for window in placed]
    strides, dilations = [window.stride for window in placed], [window.dilation for window in placed]
    if strides != [1, 1]:
        node.attrs["strides"] = strides
    word = padding_word(placed)
    if word is not None:
        node.attrs["auto_pad"] = word
    elif any(window.pads != (0, 0) for window in placed):
        begins, ends = zip(*(window.pads for window in placed), strict=True)
        node.attrs["pads"] = [*begins, *ends]
    if dilations != [1, 1]:
        node.attrs["dilations"] = dilations


def padding_word(placed: Windows) -> AutoPad | None:
    """Returns the word that these windows pad by, or None where they pad by numbers."""
    return next((window.pads for window in placed if isinstance(window.pads, str)), None)


def pads_in_one_way(placed: Windows) -> bool:
    """True where one node can pad like this: by numbers along both axes, or by one word.

    A window of one pixel that has no padding by numbers has none by a word either.
    """
    ways = {window.pads for window in placed if window.kernel > 1 or window.pads != (0, 0)}
    return len(ways) < 2 or padding_word(placed) is None


def _window(node: gs.Node, axis: int) -> Window:
    kernel = kernel_size(node)[axis]
    stride, dilation = (node.attrs.get(name, (1, 1))[axis] for name in ("strides", "dilations"))
    return Window(kernel, stride, dilation if kernel > 1 else 1, _pads(node, axis, kernel))


def _pads(node: gs.Node, axis: int, kernel: int) -> tuple[int, int] | AutoPad:
    word = node.attrs.get("auto_pad", "NOTSET")
    if word == "NOTSET":
        pads = node.attrs.get("pads", (0, 0, 0, 0))  # begin of height and width, then their ends
        return pads[axis], pads[2 + axis]
    return word if word != "VALID" and kernel > 1 else (0, 0)
