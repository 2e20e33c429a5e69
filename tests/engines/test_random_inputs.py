"""Random inputs that a model of tokens can be run on."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrd_deploy.engines.inputs import random_batches, random_batches_of
from lrd_deploy.export.embedding_tables import table_rows
from lrd_deploy.export.onnx_file import write_model


@pytest.fixture
def model():
    """Ids read in two tables, of 9 and 5 rows, a mask, and a number that is neither."""
    tables = [numpy_helper.from_array(np.ones((rows, 4), np.float32), f"table_{rows}") for rows in (9, 5)]
    nodes = [
        helper.make_node("Cast", ["ids"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table_9", "cast"], ["wide"]),
        helper.make_node("Gather", ["table_5", "cast"], ["narrow"]),
        helper.make_node("Add", ["wide", "narrow"], ["sum"]),
        helper.make_node("Add", ["attention_mask", "steps"], ["other"]),
    ]
    of_tokens = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, of_tokens),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, of_tokens),
        helper.make_tensor_value_info("steps", TensorProto.INT64, of_tokens),
    ]
    outputs = [
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, [*of_tokens, 4]),
        helper.make_tensor_value_info("other", TensorProto.INT64, of_tokens),
    ]
    graph = helper.make_graph(nodes, "tokens", inputs, outputs, tables)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def test_ids_are_those_of_the_smallest_table_that_they_are_read_in(model):
    assert table_rows(model) == {"ids": 5}


def test_ids_are_drawn_masks_let_through_and_other_integers_are_zero(model, tmp_path):
    path = write_model(model, tmp_path / "m.onnx")
    for batch in (*random_batches(path, (6,)), *random_batches_of(path, 6, 2)):
        assert batch["ids"].dtype == np.int32
        assert set(batch["ids"].ravel()) == set(range(5))
        assert batch["attention_mask"].all()
        assert not batch["steps"].any()


def test_inputs_have_the_shapes_that_are_asked_for(model, tmp_path):
    path = write_model(model, tmp_path / "m.onnx")
    (batch,) = random_batches_of(path, 6, 1, {"ids": (6, 3), "attention_mask": (6, 3)})
    assert {name: array.shape for name, array in batch.items()} == {
        "ids": (6, 3), "attention_mask": (6, 3), "steps": (6, 8),
    }  # fmt: skip
    assert set(batch["ids"].ravel()) <= set(range(5))


def test_the_batch_is_the_one_asked_for_wherever_it_is_named(model, tmp_path):
    model.graph.input[2].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "batch"
    path = write_model(model, tmp_path / "m.onnx")
    (batch,) = random_batches_of(path, 6, 1, {"ids": (3, 5), "attention_mask": (3, 5), "steps": (4, 3)})
    assert {name: array.shape for name, array in batch.items()} == {
        "ids": (6, 5), "attention_mask": (6, 5), "steps": (4, 6),
    }  # fmt: skip


def test_a_table_that_is_read_along_another_axis_says_nothing_of_ids(model):
    for node in model.graph.node:
        if node.op_type == "Gather":
            node.attribute.append(helper.make_attribute("axis", 1))
    assert table_rows(model) == {}
