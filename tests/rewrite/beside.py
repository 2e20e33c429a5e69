"""Models whose weights are in a file beside them, of any size: a row of factor pairs, MatMul after MatMul."""

import json

import numpy as np
from onnx import TensorProto, helper

NAME = "model.onnx"


def write_pairs(folder, *, width, rank, pairs, dense=0):
    """Writes `model.onnx` with random weights, one at a time, and returns its path.

    Every pair is width → rank → width, then come `dense` square products that no rule has anything to do with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random, weights, nodes, value = np.random.default_rng(0), [], [], "x"
    shapes = [(f"pair_{number}.{name}", shape) for number in range(pairs)
              for name, shape in (("down", (width, rank)), ("up", (rank, width)))]  # fmt: skip
    shapes += [(f"dense_{number}", (width, width)) for number in range(dense)]
    with (folder / "model.weights").open("wb") as stream:
        for name, shape in shapes:
            tensor = TensorProto(name=f"{name}.weight", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            array = random.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
            for key, entry in (("location", "model.weights"), ("offset", stream.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            stream.write(array)
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, tensor.name], [f"{name}.output"], name=name))
            value = f"{name}.output"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "pairs", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    (folder / NAME).write_bytes(model.SerializeToString())
    return folder / NAME


# Runs the command line and reports, as JSON in a file, its exit code and the most memory that it held.
MEASURED = """
import json, resource, sys
from lrd_deploy.cli.main import exit_code
code = exit_code(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
open(sys.argv[1], "w").write(json.dumps({"code": code, "peak_bytes": peak}))
"""


def measured(path):
    """What `MEASURED` reported."""
    return json.loads(path.read_text())
