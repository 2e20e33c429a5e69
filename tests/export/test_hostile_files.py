"""Files that are no models, or lie about what they hold: each gets a sentence, from the one reader of all verbs."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.engines.verify import verify
from lrd_deploy.errors import LrdError, StorageError
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.pipeline.rewriting import rewrite_model
from lrd_deploy.records import SVD
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.pad_rank import PadRank
from tests.rewrite.beside import write_pairs
from tests.rewrite.graph_text import DOWN, PAIR, UP, model

SECRET = b"nobody may read this"


def pair():
    """Two factors with raw data, as exporters write it."""
    graph = model(DOWN, UP, weights=PAIR)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return graph


def cyclic():
    graph = pair()
    graph.graph.node[0].input[0] = "y"
    return graph


def without_a_weight():
    graph = pair()
    del graph.graph.initializer[0]
    return graph


def declared_otherwise():
    """The type of the initializer is not the one that the graph's inputs say."""
    graph = pair()
    graph.ir_version = 3  # where weights are inputs too
    for tensor in graph.graph.initializer:
        graph.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT16, tensor.dims))
    return graph


def with_tensor(**fields):
    def make():
        graph = pair()
        tensor = graph.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            else:
                setattr(tensor, name, value)
        return graph

    return make


def with_too_few_floats():
    graph = pair()
    graph.graph.initializer[0].ClearField("raw_data")
    graph.graph.initializer[0].float_data.extend([1.0, 2.0])
    return graph


def with_two_weights_of_one_name():
    graph = pair()
    graph.graph.initializer.append(graph.graph.initializer[0])
    return graph


def with_two_values_of_one_name():
    graph = pair()
    graph.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="again"))
    return graph


def with_text_that_is_none():
    return pair().SerializeToString().replace(b"fc.down", b"fc.\xff\xfe\xfdn")


def functions_in_a_circle():
    graph = pair()
    graph.opset_import.append(helper.make_opsetid("own", 1))
    graph.graph.node[0].op_type, graph.graph.node[0].domain = "One", "own"
    del graph.graph.node[0].attribute[:]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for name, other in (("One", "Two"), ("Two", "One")):
        calls = helper.make_node(other, ["p", "q"], ["r"], domain="own")
        graph.functions.append(helper.make_function("own", name, ["p", "q"], ["r"], [calls], opsets))
    return graph


REFUSED = {
    "cyclic": (cyclic, r"topologically sorted"),
    "without a weight": (without_a_weight, r"input 'a' of node"),
    "other type than declared": (declared_otherwise, r"weight 'a' of float that the graph declares to be float16"),
    "other type than its bytes": (
        with_tensor(data_type=TensorProto.DOUBLE),
        "48 bytes where its type and dim.* take 96",
    ),
    "other size than its bytes": (with_tensor(dims=[5, 4]), r"tensor 'a' with 48 bytes where .* take 80"),
    "empty but for its bytes": (with_tensor(dims=[0, 4]), r"48 bytes where its type and dimensions take 0"),
    "negative size": (with_tensor(dims=[-1, 4]), r"tensor 'a' with dimensions \[-1, 4\]"),
    "sizes whose product overflows": (with_tensor(dims=[2**32, 2**32]), r"48 bytes where"),
    "no type": (with_tensor(data_type=0), r"tensor 'a' with type 0, which ONNX does not have"),
    "unknown type": (with_tensor(data_type=99), r"tensor 'a' with type 99, which ONNX does not have"),
    "too few values": (with_too_few_floats, r"tensor 'a' with 2 values where its dimensions take 12"),
    "one name for two weights": (with_two_weights_of_one_name, r"two initializers called 'a'"),
    "one name for two values": (with_two_values_of_one_name, r"must be in single static assignment \(SSA\) form|'y'"),
    "text that is none": (with_text_that_is_none, r"a name or another text that is not UTF-8"),
    "functions in a circle": (functions_in_a_circle, r"call each other in a circle: .*One.*Two|Two.*One"),
    "an empty file": (lambda: b"", r"an empty graph; a graph with nodes"),
    "zeros": (lambda: bytes(4096), r"a valid ONNX model"),
    "another protobuf": (
        lambda: helper.make_tensor("t", TensorProto.FLOAT, [3], [1, 2, 3]).SerializeToString(),
        r"a valid ONNX model|a graph with nodes",
    ),
    "another protobuf that parses": (
        lambda: helper.make_opsetid("x", 7).SerializeToString(),
        r"graph with nodes|a valid",
    ),
}


def saved(made, folder):
    made = made if isinstance(made, bytes) else made.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(made)
    return folder / "m.onnx"


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_model_is_refused_in_a_sentence(tmp_path, make, reason):
    path = saved(make(), tmp_path)
    with pytest.raises(LrdError, match=reason) as refused:
        read_model(path)
    assert str(refused.value).startswith(f"reading the ONNX model '{path}': ")
    assert "\n" not in str(refused.value)


def test_a_folder_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"Is a directory"):
        read_model(tmp_path)


def with_weights_at(folder, **entries):
    """A model whose first weight says that it is elsewhere; beside it a file that is long enough."""
    path = write_pairs(folder, width=16, rank=4, pairs=1)
    graph = onnx.load(path, load_external_data=False)
    tensor = graph.graph.initializer[0]
    stated = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in stated.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(graph.SerializeToString())
    return path


ELSEWHERE = {
    "past the end": ({"offset": "1000000"}, r"256 bytes from 1000000 on for 'pair_0\.down\.weight'.* of 512 bytes"),
    "partly past the end": ({"offset": "300"}, r"256 bytes from 300 on .* of 512 bytes"),
    "before the beginning": ({"offset": "-4"}, r"256 bytes from -4 on"),
    "of another length": ({"length": "128"}, r"128 bytes from 0 on for .*, which takes 256"),
    "at no number": ({"offset": "many"}, r"256 bytes from many on"),
    "absolute": ({"location": "/etc/passwd"}, r"external data at '/etc/passwd'; a file in the model's own folder"),
    "above": ({"location": "../secret"}, r"external data at '\.\./secret'; a file in the model's own folder"),
    "behind a link": ({"location": "link"}, r"external data at 'link'; a file in the model's own folder"),
    "behind a linked folder": ({"location": "folder/secret"}, r"external data at 'folder/secret'"),
    "a pipe": ({"location": "pipe"}, r"no file 'pipe' beside it"),
    "a folder": ({"location": "inside"}, r"no file 'inside' beside it"),
    "nowhere": ({"location": "none"}, r"no file 'none' beside it; .*copy the weights together with the model"),
    "with a folder of its own": ({"basepath": "/etc", "location": "passwd"}, r"no file 'passwd' beside it"),
}


@pytest.fixture
def elsewhere(tmp_path):
    """The folder above the model's, with something in it that no model may read."""
    (tmp_path / "secret").write_bytes(SECRET * 100)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "inside").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(("entries", "reason"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_weights_that_are_not_where_they_may_be_are_refused(elsewhere, entries, reason):
    with pytest.raises(LrdError, match=reason):
        read_model(with_weights_at(elsewhere, **entries))


VERBS = {
    "rewrite": ["rewrite", "M", "-o", "OUT"],
    "rewrite auto": ["rewrite", "M", "-o", "OUT", "--mode", "auto"],
    "rewrite with inputs": ["rewrite", "M", "-o", "OUT", "--inputs", "X"],
    "compress": ["compress", "M", "-o", "OUT"],
    "convert": ["convert", "M", "-o", "OUT", "--precision", "fp16"],
    "verify": ["verify", "M", "GOOD"],
    "verify the other": ["verify", "GOOD", "M", "--inputs", "X"],
    "bench": ["bench", "M", "GOOD"],
    "bench the other": ["bench", "GOOD", "M", "--inputs", "X"],
    "profile": ["profile", "M", "GOOD"],
    "profile with inputs": ["profile", "GOOD", "M", "--inputs", "X"],
    "plan": ["plan", "M"],
    "build": ["build", "M", "-o", "OUT"],
    "build in fp16": ["build", "M", "-o", "OUT", "--precision", "fp16"],
    "package": ["package", "M", "--triton", "OUT"],
    "calibrate": ["calibrate", "ranges", "M", "--data", "X"],
    "gate": ["gate", "--baseline", "GOOD", "--candidate", "M"],
    "promote": ["baseline", "promote", "OUT", "--candidate", "M", "--inputs", "X"],
}


@pytest.mark.parametrize("case", ["cyclic", "link"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_gives_the_readers_own_error(elsewhere, tmp_path, capfd, monkeypatch, verb, case):
    from lrd_deploy.cli.main import exit_code

    monkeypatch.chdir(tmp_path)
    bad = with_weights_at(elsewhere, location="link") if case == "link" else saved(cyclic(), tmp_path / "bad")
    good = saved(pair(), tmp_path / "good")
    width = 16 if case == "link" else 4
    np.savez(tmp_path / "x.npz", x=np.ones((8, width), np.float32))
    before = sorted(tmp_path.rglob("*"))
    places = {"M": bad, "GOOD": good, "X": tmp_path / "x.npz", "OUT": tmp_path / "out.onnx"}
    assert exit_code([str(places.get(word, word)) for word in verb]) == 2
    with pytest.raises(LrdError) as refused:
        read_model(bad)
    problem = refused.value
    told = f"lrd-deploy: {problem.doing}: {problem.found}; {problem.accepted}\n  → {problem.remedy}\n"
    assert capfd.readouterr().err.endswith(told)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path not in before] == []


def rewritten(graph, tmp_path):
    """The report of rewriting a file, whose outputs stay as ONNX Runtime computes them."""
    source = saved(graph, tmp_path)
    report = rewrite_model(source, [PadRank(4)], tmp_path / "out.onnx", random_batches(source, (1, 2))).report
    assert verify(source, tmp_path / "out.onnx", random_batches(source, (3,))).passed
    return report


def test_nodes_of_one_name_get_their_own_and_the_engine_refuses_the_file(tmp_path):
    graph = pair()
    for node in graph.graph.node:
        node.name = "same"
    source = saved(graph, tmp_path)
    _, applied, _ = apply_rules(read_model(source), [PadRank(4)])
    assert [entry.node for entry in applied] == ["same + same_1"]
    with pytest.raises(LrdError, match=r"two nodes with same node name \(same\)"):
        rewrite_model(source, [PadRank(4)], tmp_path / "out.onnx", random_batches(source, (1,)))


def test_opset_7_is_rewritten(tmp_path):
    graph = pair()
    graph.opset_import[0].version, graph.ir_version = 7, 4
    for tensor in pair().graph.initializer:
        bias = numpy_helper.from_array(np.zeros(tensor.dims[0], np.float32), f"{tensor.name}.bias")
        graph.graph.initializer.append(bias)  # which Gemm must have before opset 11
    for node, weight in zip(graph.graph.node, ("a", "b"), strict=True):
        node.input.append(f"{weight}.bias")
    assert len(rewritten(graph, tmp_path).applied) == 1
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 7


def test_an_opset_of_the_future_is_refused_and_nothing_written(tmp_path):
    graph = pair()
    graph.opset_import[0].version = 999
    source = saved(graph, tmp_path)
    with pytest.raises(LrdError, match=r"failed: ?ONNX Runtime only \*guarantees\* support for models"):
        rewrite_model(source, [PadRank(4)], tmp_path / "out.onnx", [{"x": np.ones((1, 4), np.float32)}])
    assert not (tmp_path / "out.onnx").exists()


def test_an_operator_that_nobody_knows_is_refused_by_the_engine(tmp_path):
    graph = pair()
    graph.opset_import.append(helper.make_opsetid("acme", 1))
    graph.graph.node.append(helper.make_node("Rocket", ["y"], ["z"], name="rocket", domain="acme"))
    graph.graph.output[0].name = "z"
    source = saved(graph, tmp_path)
    with pytest.raises(LrdError, match=r"with ONNX Runtime: .*Rocket"):
        rewrite_model(source, [PadRank(4)], tmp_path / "out.onnx", random_batches(source, (1,)))
    after, applied, _ = apply_rules(read_model(source), [PadRank(4)])  # which engines with a plugin for it can use
    assert len(applied) == 1
    assert [node.domain for node in after.graph.node] == ["", "", "acme"]


def test_a_batch_of_minus_one_is_any_batch(tmp_path):
    graph = pair()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    assert len(rewritten(graph, tmp_path).applied) == 1


def test_a_batch_of_none_has_nothing_to_compare(tmp_path):
    graph = pair()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 0
    source = saved(graph, tmp_path)
    with pytest.raises(LrdError, match="outputs without a value"):
        rewrite_model(source, [PadRank(4)], tmp_path / "out.onnx", random_batches(source, (1,)))


def test_an_input_larger_than_memory_is_not_made_up(tmp_path):
    graph = pair()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(LrdError, match=r"a shape of 1099511627776 × 4; at most"):
        random_batches(saved(graph, tmp_path), (1,))


def test_factors_without_a_rank_stay(tmp_path):
    graph = pair()
    for tensor, dims in zip(graph.graph.initializer, ((0, 4), (4, 0)), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(dims, np.float32), tensor.name))
    report = rewritten(graph, tmp_path)
    assert not report.modified


def chain(length):
    """x ─ Relu ─ … ─ Relu ─ pair ─ y: as deep as it is long."""
    graph = pair()
    nodes = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"], name=f"relu_{n}") for n in range(length)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "deep"
    graph.graph.node[0].input[0] = "deep"
    nodes += list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


@pytest.mark.timeout(60)
def test_ten_thousand_nodes_in_a_row_are_rewritten(tmp_path):
    assert len(rewritten(chain(10_000), tmp_path).applied) == 1


def test_a_thousand_layers_in_a_row_are_decomposed():
    nodes = [helper.make_node("MatMul", [f"v{n}", "w"], [f"v{n + 1}"], name=f"fc_{n}") for n in range(1000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    graph = model("y = MatMul (x, w)", weights=(("w", (4, 4)),))
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    after, applied, _ = apply_rules(graph, [DecomposeNode({node.name: SVD(rank=1) for node in nodes})])
    assert len(applied) == 1000
    onnx.checker.check_model(after, full_check=True)
