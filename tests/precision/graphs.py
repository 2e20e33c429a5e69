"""Small float32 graphs to convert, and what a graph computes, in numpy as ONNX defines it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

RANDOM = np.random.default_rng(0)


def normal(*shape):
    """Weights that keep the scale of what they multiply."""
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def graph_of(nodes, weights, inputs, outputs, opset=20):
    """Nodes are (operator, reads, gives, attributes), named after what they give; values are float32."""
    made = [
        helper.make_node(kind, list(reads), list(gives), name=gives[0], **attributes)
        for kind, reads, gives, attributes in nodes
    ]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in some.items()]
        for some in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(made, "net", *ports, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def network(opset=20):
    """A convolution with bias, a factor pair of convolutions, a residual sum, a pool, and a Gemm."""
    return graph_of(
        [
            ("Conv", ("x", "w1", "b1"), ("stem",), {"pads": [1, 1, 1, 1]}),
            ("Relu", ("stem",), ("stem_relu",), {}),
            ("Conv", ("stem_relu", "w2"), ("down",), {}),
            ("Conv", ("down", "w3", "b1"), ("up",), {}),
            ("Add", ("up", "stem_relu"), ("sum",), {}),
            ("Relu", ("sum",), ("relu",), {}),
            ("GlobalAveragePool", ("relu",), ("pool",), {}),
            ("Flatten", ("pool",), ("flat",), {}),
            ("Gemm", ("flat", "w4", "b4"), ("y",), {"transB": 1}),
        ],
        {
            "w1": normal(8, 3, 3, 3),
            "b1": np.linspace(-0.5, 0.5, 8, dtype=np.float32),
            "w2": normal(4, 8, 1, 1),
            "w3": normal(8, 4, 1, 1),
            "w4": normal(5, 8),
            "b4": np.linspace(0, 1, 5, dtype=np.float32),
        },
        {"x": ("batch", 3, 6, 6)},
        {"y": ("batch", 5)},
        opset,
    )


def images(samples=4, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((samples, 3, 6, 6)).astype(np.float32)}


def computed(model, inputs, names=None):
    """What a graph computes, by onnx's own reference implementation."""
    return ReferenceEvaluator(model).run(names, inputs)


def checked(model):
    """The model, after onnx's full check."""
    onnx.checker.check_model(model, full_check=True)
    return model


def relative(reference, candidate):
    reference, candidate = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    return float(np.linalg.norm(candidate - reference) / np.linalg.norm(reference))


def constant(model, name):
    """An initializer's values."""
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def nodes_by_name(model):
    return {node.name: node for node in model.graph.node}


def maker(model, value):
    """The node that gives a value out."""
    return next(node for node in model.graph.node if value in node.output)
