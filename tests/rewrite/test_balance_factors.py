from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.records import SVD, LayerSignature
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.balance_factors import BalanceFactors
from tests.rewrite.graph_text import DOWN, LOWERED, PAIR, UP, model

forms = pytest.mark.parametrize(
    ("signature", "choice"), [(signature, choice) for signature, choice, _ in LOWERED.values()], ids=LOWERED
)


def scaled(graph, **exponents):
    """A graph with some weights multiplied by powers of two, one per inner channel or one for all."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(graph)
    for tensor in scaled.graph.initializer:
        if tensor.name in exponents:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(2.0 ** exponents[tensor.name]), tensor.name))
    return scaled


def refusals(graph):
    _, applied, skipped = apply_rules(graph, [BalanceFactors()])
    assert applied == ()
    return [entry.reason for entry in skipped]


def in_onnxruntime(graph, x, path):
    write_model(graph, path)
    return next(iter(runtime("onnxruntime").load(path, SessionSettings()).run({"x": x}).values()))


def norms(graph):
    """Per inner value, the norms of what writes and of what reads each of its channels."""
    arrays = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.graph.initializer}
    found = [arrays[node.input[1]] for node in graph.graph.node if node.op_type != "Add"]
    found = [array.T if array.ndim == 2 else array for array in found]  # (out, in) or (out, in, kh, kw)
    for writer, reader in pairwise(found):
        yield (
            np.linalg.norm(writer.reshape(len(writer), -1), axis=1),
            np.linalg.norm(np.moveaxis(reader, 1, 0).reshape(len(writer), -1), axis=1),
        )


@forms
@pytest.mark.parametrize("exponents", [{"w0": 11}, {"w0": -9}, {"w0": 7, "w1": -13}])
def test_outputs_stay_bit_for_bit_and_the_norms_meet(signature, choice, exponents, tmp_path):
    graph = scaled(layer_graph(signature, choice), **exponents)
    after, applied, _ = apply_rules(graph, [BalanceFactors()])
    assert len(applied) == 1
    for written, read in norms(after):
        assert (np.maximum(written, read) <= 2 * np.minimum(written, read)).all()
    x = layer_input(signature, 2)
    one, other = (ReferenceEvaluator(each).run(None, {"x": x})[0] for each in (graph, after))
    np.testing.assert_array_equal(other, one)
    one, other = (in_onnxruntime(each, x, tmp_path / "g.onnx") for each in (graph, after))
    np.testing.assert_array_equal(other, one)


@given(exponents=st.lists(st.integers(-12, 12), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_every_component_has_its_own_power_and_a_second_time_changes_nothing(exponents):
    graph = model(DOWN.replace("(x, a)", "(x, a, c)"), UP, weights=(*PAIR, ("c", (3,))))
    for tensor, shape in zip(graph.graph.initializer, ((3, 1), (1, 3), (3,)), strict=True):
        sign = 0 if tensor.name == "b" else 1
        powers = np.float32(2.0) ** (sign * np.array(exponents, np.float32)).reshape(shape)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * powers, tensor.name))
    after, applied, _ = apply_rules(graph, [BalanceFactors()])
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    one, other = (ReferenceEvaluator(each).run(None, {"x": x})[0] for each in (graph, after))
    np.testing.assert_array_equal(other, one)
    again, more, skipped = apply_rules(after, [BalanceFactors()])
    assert more == ()
    assert again is after
    assert [entry.reason for entry in skipped] == ["its factors are on one scale already"]
    assert len(applied) <= 1


def test_conversion_to_float16_keeps_what_it_would_have_lost():
    graph = scaled(model(DOWN, UP, weights=PAIR), a=18, b=-18)

    def in_float16(graph):
        return [numpy_helper.to_array(tensor).astype(np.float16) for tensor in graph.graph.initializer]

    with np.errstate(over="ignore"):
        assert not np.isfinite(in_float16(graph)[0]).all()
    after, _, _ = apply_rules(graph, [BalanceFactors()])
    assert all(np.isfinite(array).all() for array in in_float16(after))


def test_balanced_factors_are_refused():
    assert refusals(model(DOWN, UP, weights=(("a", (3, 4)), ("b", (4, 3))))) == ["its factors are on one scale already"]


@pytest.mark.parametrize(("empty", "kept"), [(0, 1), (1, 0)], ids=["nothing writes it", "nothing reads it"])
def test_a_component_without_weight_is_left_alone(empty, kept):
    graph = scaled(model(DOWN, UP, weights=PAIR), a=8)
    tensors = graph.graph.initializer
    array = numpy_helper.to_array(tensors[empty]).copy()
    (array if empty == 0 else array.T)[1] = 0
    tensors[empty].CopyFrom(numpy_helper.from_array(array, tensors[empty].name))
    after, (applied,), _ = apply_rules(graph, [BalanceFactors()])
    assert applied.change.startswith("2 of 3 components scaled")
    factor = ("fc.down", "fc.up")[kept]
    (found,) = (numpy_helper.to_array(tensor) for tensor in after.graph.initializer if tensor.name.startswith(factor))
    before = numpy_helper.to_array(tensors[kept])
    np.testing.assert_array_equal(*((found[1], before[1]) if kept == 0 else (found[:, 1], before[:, 1])))


def test_scaling_that_would_lose_digits_is_refused():
    graph = scaled(model(DOWN, UP, weights=PAIR), a=0, b=20)
    array = numpy_helper.to_array(graph.graph.initializer[1]).copy()
    array[0, 0] = np.float32(1.17549449e-38)  # next above the smallest normal number: halved, it loses a digit
    graph.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "b"))
    assert refusals(graph) == ["scaling 'fc.up' would take values out of the range of float32"]


def test_a_bias_that_would_lose_digits_is_refused():
    graph = model(DOWN.replace("(x, a)", "(x, a, c)"), UP, weights=(*PAIR, ("c", (3,))))
    graph = scaled(graph, a=20)
    bias = np.float32([1.17549449e-38, 1, 1])
    graph.graph.initializer[2].CopyFrom(numpy_helper.from_array(bias, "c"))
    assert refusals(graph) == ["scaling 'fc.down' would take values out of the range of float32"]


def test_weights_that_are_not_finite_are_refused():
    graph = model(DOWN, UP, weights=PAIR)
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 4), np.inf, np.float32), "a"))
    assert refusals(graph) == ["'fc.down' has values that are NaN or infinite"]


def test_factors_of_float16_are_balanced_too():
    signature = LayerSignature(kind="linear", in_channels=6, out_channels=8)
    graph = scaled(layer_graph(signature, SVD(rank=4)), w0=6)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    after, applied, _ = apply_rules(graph, [BalanceFactors()])
    assert len(applied) == 1
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
