"""What a convolution does along each of its two axes, besides mixing channels: read from a node, and written to one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Placement:
    """Kernel size, stride, dilation and padding (begin, end) along one axis; the defaults do nothing there.

    `pads` is None where auto_pad makes it depend on the size of the input.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pads: tuple[int, int] | None = (0, 0)


NEUTRAL = Placement()
Placements = tuple[Placement, Placement]  # along height and width


def placements(node: gs.Node) -> Placements:
    """Returns what a 2-D convolution with a constant weight does along height and width.

    A kernel of 1 has no dilation, whatever the attribute says: it makes no difference there.
    """
    sizes = node.inputs[1].shape[2:]
    strides = node.attrs.get("strides", (1, 1))
    dilations = (own if size > 1 else 1 for own, size in zip(node.attrs.get("dilations", (1, 1)), sizes, strict=True))
    height, width = (
        Placement(*along, pads=_pads(node, axis, *along))
        for axis, along in enumerate(zip(sizes, strides, dilations, strict=True))
    )
    return height, width


def place_(node: gs.Node, along: Placements) -> None:
    """Gives an ungrouped convolution these kernel sizes, strides, dilations and paddings, whose pads are known."""
    begins, ends = zip(*(axis.pads for axis in along), strict=True)
    node.attrs = {
        "kernel_shape": [axis.kernel for axis in along],
        "strides": [axis.stride for axis in along],
        "dilations": [axis.dilation for axis in along],
        "pads": [*begins, *ends],
        "group": 1,
    }


def auto_pad(node: gs.Node) -> str:
    """Returns the node's auto_pad, NOTSET where it has none."""
    return node.attrs.get("auto_pad", "NOTSET")


def _pads(node: gs.Node, axis: int, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    match auto_pad(node):
        case "NOTSET":
            pads = node.attrs.get("pads", (0, 0, 0, 0))  # (h begin, w begin, h end, w end)
            return pads[axis], pads[axis + 2]
        case "VALID":
            return 0, 0
        case _ if kernel == 1:
            return 0, 0
        case _ if stride > 1:
            return None
        case word:
            less, more = (dilation * (kernel - 1)) // 2, (dilation * (kernel - 1) + 1) // 2
            return (more, less) if word == "SAME_LOWER" else (less, more)
