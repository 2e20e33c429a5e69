"""Small graphs from a few words, for tests of rules."""

import onnx

from lrd_deploy.records import SVD, ChannelSVD, LayerSignature, SpatialSVD, Tucker2


def model(*nodes: str, inputs="float[batch,4] x", outputs="float[batch,4] y", weights=()) -> onnx.ModelProto:
    """Parses nodes; `weights` are pairs of a name and a shape, filled with 1, 2, 3, …"""
    constants = ", ".join(f"float[{','.join(map(str, shape))}] {name} = {_count(shape)}" for name, shape in weights)
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) <{constants}> {{ {" ".join(nodes)} }}'
    )
    return onnx.parser.parse_model(text)


def _count(shape) -> str:
    size = 1
    for length in shape:
        size *= length
    return "{" + ",".join(str(1 + n % 5) for n in range(size)) + "}"


DOWN = '["fc.down"] h = Gemm <transB=1> (x, a)'
UP = '["fc.up"] y = Gemm <transB=1> (h, b)'
PAIR = (("a", (3, 4)), ("b", (4, 3)))
_CONV = {"kind": "conv2d", "in_channels": 6, "out_channels": 8, "spatial": (9, 7)}
_KERNEL = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
# A layer, the form of its factors, and the same form with its ranks down on multiples of four.
LOWERED = {
    "linear": (LayerSignature(kind="linear", in_channels=6, out_channels=8), SVD(rank=5), SVD(rank=4)),
    "sequence": (LayerSignature(kind="linear", in_channels=6, out_channels=8, spatial=(5,)), SVD(rank=5), SVD(rank=4)),
    "pointwise": (LayerSignature(**_CONV, stride=(2, 2)), SVD(rank=5), SVD(rank=4)),
    "kernel first": (LayerSignature(**_CONV, **_KERNEL), ChannelSVD(rank=7), ChannelSVD(rank=4)),
    "kernel last": (
        LayerSignature(**_CONV, **_KERNEL),
        ChannelSVD(rank=5, kernel_on="up"),
        ChannelSVD(rank=4, kernel_on="up"),
    ),
    "spatial": (LayerSignature(**_CONV, **_KERNEL), SpatialSVD(rank=11), SpatialSVD(rank=8)),
    "tucker2": (
        LayerSignature(**_CONV, **_KERNEL),
        Tucker2(rank_in=5, rank_out=6),
        Tucker2(rank_in=4, rank_out=4),
    ),
}
