import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lrd_deploy.engines.timed_inputs import timed_batch
from lrd_deploy.errors import InputError


def model(path, kind=TensorProto.FLOAT, shape=("batch", 3)):
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_model_of_known_sizes_gets_a_random_batch(tmp_path):
    assert timed_batch(model(tmp_path / "m"), 5, None)["x"].shape == (5, 3)


def test_sizes_that_nobody_stated_are_refused_with_how_to_state_them(tmp_path):
    path = model(tmp_path / "m", shape=("batch", 3, "height", None))
    with pytest.raises(InputError, match=r"'height' of x\[batch, 3, height, .*\].*numpy.savez.*--inputs x.npz"):
        timed_batch(path, 5, None)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    assert timed_batch(path, 5, tmp_path / "x.npz")["x"].shape == (5, 3, 4, 5)


def test_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x \(object\); at least one input, all of numbers"):
        timed_batch(model(tmp_path / "m", TensorProto.STRING), 5, None)


def test_stored_inputs_of_other_names_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", z=np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match="arrays named 'z'; one for each input of the model: 'x'"):
        timed_batch(model(tmp_path / "m"), 5, tmp_path / "x.npz")
