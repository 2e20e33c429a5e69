"""Damaged ONNX files: bits flipped, ends cut off, parts of two graphs put together, and numbers that lie.

Seed for seed the same. A worker process takes them one by one, so that a crash or a hang of a native library is seen
and has a name.
"""

import multiprocessing
import resource
import shutil
import signal
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.engines.verify import verify
from lrd_deploy.errors import LrdError
from lrd_deploy.export.tensor_data import tensor_fault
from lrd_deploy.pipeline.rewriting import OutputsMayMove, OutputsStay, rewrite_model
from lrd_deploy.records import SVD, ChannelSVD, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.balance_factors import BalanceFactors
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.truncate_rank import TruncateRank
from tests.precision.graphs import network
from tests.tolerances import sum_tolerance

LIMIT_SECONDS = 10
_MEMORY = 8 * 2**30  # of addresses; a mutant that asks for more gets an error, not the machine
_CONV = {"kind": "conv2d", "in_channels": 6, "out_channels": 8, "spatial": (9, 7), "kernel": (3, 3), "padding": (1, 1)}
_BRANCHES = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,4] x, bool flag) => (float[batch,4] y, float[batch,4] z)
    <float[3,4] a = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4,3] b = {1,0,0,0,1,0,0,0,1,1,1,1}> {
    ["fc.down"] h = Gemm <transB=1> (x, a) ["fc.up"] y = Gemm <transB=1> (h, b)
    ["choice"] z = If (flag) <
        then_branch = t () => (float[batch,4] y1) { ["c.down"] h1 = Gemm <transB=1> (x, a)
                                                    ["c.up"] y1 = Gemm <transB=1> (h1, b) },
        else_branch = e () => (float[batch,4] y2) { y2 = Relu (x) }> }"""
RULES = (
    (PadRank(4), OutputsStay()),
    (MergeFactors(), OutputsStay()),
    (BalanceFactors(), OutputsStay()),
    (TruncateRank(2), OutputsMayMove()),
)


def originals():
    """Real graphs of ours with factors in them."""
    return (
        layer_graph(LayerSignature(kind="linear", in_channels=12, out_channels=8, spatial=(5,)), SVD(rank=5)),
        layer_graph(LayerSignature(**_CONV), Tucker2(rank_in=5, rank_out=6)),
        layer_graph(LayerSignature(**_CONV), ChannelSVD(rank=7)),
        layer_graph(LayerSignature(**_CONV), SpatialSVD(rank=5)),
        network(),
        onnx.parser.parse_model(_BRANCHES),
    )


def mutant(seed):
    """The bytes of one damaged file."""
    random = np.random.default_rng(seed)
    models = originals()
    model = models[random.integers(len(models))]
    other = models[random.integers(len(models))]
    kind = (_flipped, _flipped_and_parsed, _cut, _joined, _spliced, _beside_each_other, _lying, _lying)[seed % 8]
    return kind(random, model, other)


def _flipped(random, model, _):
    data = bytearray(model.SerializeToString())
    for _ in range(random.integers(1, 6)):
        data[random.integers(len(data))] ^= 1 << random.integers(8)
    return bytes(data)


def _flipped_and_parsed(random, model, other):
    """Damage that protobuf does not see."""
    for _ in range(100):
        data = _flipped(random, model, other)
        try:
            onnx.load_model_from_string(data)
        except DecodeError:
            continue
        return data
    return data


def _cut(random, model, _):
    data = model.SerializeToString()
    return data[: random.integers(len(data))]


def _joined(random, model, other):
    """The beginning of one file and the end of another."""
    one, two = model.SerializeToString(), other.SerializeToString()
    return one[: random.integers(len(one))] + two[random.integers(len(two)) :]


def _spliced(random, model, other):
    """Nodes and weights of one graph in the other."""
    graph = model.graph
    graph.initializer.extend(tensor for tensor in other.graph.initializer if random.random() < 0.7)
    nodes = [*graph.node, *(node for node in other.graph.node if random.random() < 0.7)]
    if random.random() < 0.5:
        random.shuffle(nodes)
    if random.random() < 0.7:  # else names and values clash
        taken = set()
        for tensor in list(graph.initializer):
            if tensor.name in taken:
                graph.initializer.remove(tensor)
            taken.add(tensor.name)
    values = [*(name for node in nodes for name in node.output), *(value.name for value in graph.input)]
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in values and random.random() < 0.3:
                node.input[place] = values[random.integers(len(values))]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def _beside_each_other(random, model, other):
    """Two whole graphs in one, with a lie or none; names are apart, but for one in a while."""
    apart = onnx.compose.add_prefix(other, "other_")
    for field in ("input", "output", "initializer", "node", "value_info"):
        getattr(model.graph, field).extend(getattr(apart.graph, field))
    if random.random() < 0.3:
        node = _some(random, model.graph.node)
        node.output[0] = _some(random, model.graph.node).output[0]
    return _lying(random, model, other) if random.random() < 0.5 else model.SerializeToString()


def _lying(random, model, _):
    """A number or a name says something else than what is there; sometimes two do."""
    for lie in random.choice(len(_LIES), random.integers(1, 3), replace=False):
        _LIES[lie](random, model)
    return model.SerializeToString()


def _some(random, repeated):
    return repeated[random.integers(len(repeated))] if len(repeated) else None


def _number(random):
    odd = (0, -1, 1, 2, 3, 5, 255, 2**31, -(2**63), 2**63 - 1)
    return odd[random.integers(len(odd))]


def _wrong_dims(random, model):
    tensor = _some(random, model.graph.initializer)
    if tensor is not None and tensor.dims:
        tensor.dims[random.integers(len(tensor.dims))] = _number(random)


def _other_dims(random, model):
    """As many values in another shape: nothing but inference can tell."""
    tensor = _some(random, model.graph.initializer)
    dims = [int(dim) for dim in tensor.dims]
    random.shuffle(dims)
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _wrong_type(random, model):
    _some(random, model.graph.initializer).data_type = int(random.integers(0, 27))


def _other_type(random, model):
    """Values that are cast, so that they are what they say, and other than their readers want."""
    tensor = _some(random, model.graph.initializer)
    if tensor_fault(tensor) or tensor.external_data:
        return
    types = (np.float16, np.float64, np.int32, np.int64, np.int8, np.bool_)
    array = numpy_helper.to_array(tensor).astype(types[random.integers(len(types))])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _wrong_attribute(random, model):
    attribute = _some(random, _some(random, model.graph.node).attribute)
    if attribute is not None and attribute.ints:
        attribute.ints[random.integers(len(attribute.ints))] = _number(random)
    elif attribute is not None and attribute.type == onnx.AttributeProto.INT:
        attribute.i = _number(random)


def _another_attribute(random, model):
    names = ("axis", "group", "transB", "alpha", "pads", "strides", "dilations", "kernel_shape", "auto_pad", "perm")
    name = names[random.integers(len(names))]
    values = (_number(random), [_number(random), 1], 0.5, b"SAME_UPPER", b"\xff")
    _some(random, model.graph.node).attribute.append(helper.make_attribute(name, values[random.integers(len(values))]))


def _other_operator(random, model):
    names = ("MatMul", "Gemm", "Conv", "Add", "Transpose", "Reshape", "Relu", "Nothing", "Identity", "If", "Loop", "")
    _some(random, model.graph.node).op_type = names[random.integers(len(names))]


def _missing_input(random, model):
    node = _some(random, model.graph.node)
    if node.input:
        del node.input[random.integers(len(node.input))]


def _empty_input(random, model):
    node = _some(random, model.graph.node)
    if node.input:
        node.input[random.integers(len(node.input))] = ""


def _missing_weight(random, model):
    del model.graph.initializer[random.integers(len(model.graph.initializer))]


def _wrong_shape(random, model):
    value = _some(random, (*model.graph.input, *model.graph.output, *model.graph.value_info))
    dims = value.type.tensor_type.shape.dim
    if dims:
        dims[random.integers(len(dims))].dim_value = _number(random)


def _wrong_value_type(random, model):
    value = _some(random, (*model.graph.input, *model.graph.output))
    value.type.tensor_type.elem_type = int(random.integers(0, 27))


def _other_opset(random, model):
    model.opset_import[0].version = _number(random) if random.random() < 0.5 else int(random.integers(1, 30))


def _other_ir(random, model):
    model.ir_version = _number(random)


def _another_name(random, model):
    node = _some(random, model.graph.node)
    node.name = ("", "a/b", "\n", "x" * 5000, _some(random, model.graph.node).name)[random.integers(5)]


def _output_from_elsewhere(random, model):
    node, value = _some(random, model.graph.node), _some(random, (*model.graph.input, *model.graph.output))
    if node.output:
        node.output[0] = value.name


def _external(random, model):
    tensor = _some(random, model.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=("mutant.onnx", "/etc/passwd", "../x", "none")[random.integers(4)])
    tensor.external_data.add(key="offset", value=str(_number(random)))


def _nan(random, model):
    tensor = _some(random, model.graph.initializer)
    if tensor_fault(tensor) or tensor.external_data:
        return
    array = numpy_helper.to_array(tensor).copy()
    if array.dtype == np.float32:
        array.flat[random.integers(array.size)] = (np.nan, np.inf, 1e38, 1e-45)[random.integers(4)]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


_LIES = (
    _wrong_dims, _other_dims, _wrong_type, _other_type, _wrong_attribute, _another_attribute, _other_operator,
    _missing_input, _empty_input, _missing_weight, _wrong_shape, _wrong_value_type, _other_opset, _other_ir,
    _another_name, _output_from_elsewhere, _external, _nan,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How one mutant ended: "refused" with the message, "rewritten", or "broken" with what should not have been."""

    seed: int
    ended: str
    said: str = ""


def outcomes(seeds, folder):
    """Yields how every mutant ended."""
    worker = None
    try:
        for seed in seeds:
            worker = worker or _Worker(folder)
            outcome = worker.outcome(seed)
            if worker.is_lost:
                worker = worker.end()
            yield outcome
    finally:
        if worker:
            worker.end()


class _Worker:
    """A process that takes one mutant after the other."""

    def __init__(self, folder):
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.is_lost = not (self.ours.poll(60) and self.ours.recv() == "ready")

    def outcome(self, seed):
        """Of one mutant; a worker that died or hangs is lost."""
        try:
            self.ours.send(seed)
            if self.ours.poll(LIMIT_SECONDS):
                return self.ours.recv()
            said = f"no answer within {LIMIT_SECONDS} s"
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            said = f"the process died: {signal.Signals(-code).name if code and code < 0 else code}"
        self.is_lost = True
        return Outcome(seed, "broken", said)

    def end(self):
        """Ends the process, and returns None."""
        self.process.kill()
        self.process.join()
        self.ours.close()


def _work(pipe, folder):
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(seed, folder / str(seed)))


def _outcome(seed, folder):
    folder.mkdir(parents=True)
    source, target = folder / "mutant.onnx", folder / "out.onnx"
    source.write_bytes(mutant(seed))
    rule, allowed = RULES[seed % len(RULES)]
    try:
        batches = random_batches(source, (1, 2))
        rewrite_model(source, [rule], target, batches, allowed)
        agreement = verify(source, target, batches)
        if isinstance(allowed, OutputsStay):
            assert agreement.passed, f"verify says: {agreement.reasons}"
            _check_agreement(source, target, batches)
        return Outcome(seed, "rewritten")
    except LrdError as refusal:
        left = sorted(path.name for path in folder.iterdir())
        said = str(refusal)
        if left != ["mutant.onnx"] or not said or len(said) > 2000:
            return Outcome(seed, "broken", f"{left} is left after: {said[:300]}")
        return Outcome(seed, "refused", said)
    except Exception as fault:
        return Outcome(seed, "broken", f"{type(fault).__module__}.{type(fault).__name__}: {str(fault)[:300]}")
    finally:
        shutil.rmtree(folder)


def _check_agreement(source, target, batches):
    """ONNX Runtime alone, without anything of ours."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    for batch in batches:
        before, after = (
            onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"]).run(None, batch)
            for path in (source, target)
        )
        for one, other in zip(before, after, strict=True):
            if np.isfinite(one).all() and one.dtype.kind == "f":
                scale = float(np.abs(one).max(initial=0.0))
                assert np.allclose(one, other, rtol=0, atol=sum_tolerance(one.dtype, 100, scale)), "outputs differ"
