"""Small graphs from a few words, for tests of rules."""

import onnx


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
