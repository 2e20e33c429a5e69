import onnx
import pytest

from lrd_deploy.errors import InputError, StorageError
from lrd_deploy.export.model_files import external_locations, onnx_files
from lrd_deploy.export.onnx_file import read_model
from tests.serving.graphs import graph, save, save_with_weights_beside


def test_weights_of_their_own_are_copied_to_their_place_and_never_read(tmp_path):
    source = save_with_weights_beside(tmp_path / "source" / "big.onnx", "sub/weights.bin")
    model = read_model(source)
    assert not any(tensor.raw_data or tensor.float_data for tensor in model.graph.initializer)
    onnx_files(source, model).copy_to(tmp_path / "copy")
    (weights,) = onnx.load(tmp_path / "copy" / "model.onnx").graph.initializer
    assert onnx.numpy_helper.to_array(weights).ravel().tolist() == list(range(1, 13))
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*.*")) == ["model.onnx", "weights.bin"]


def test_weights_within_a_branch_and_a_constant_are_found():
    def tensor(location):
        found = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        found.external_data.add(key="location", value=location)
        return found

    model = graph("g (bool c) => (float[1] y) { y = If (c) }")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor("b"))], "t", [], [])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", branch))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("more", [tensor("c"), tensor("c")]))
    model.graph.initializer.append(tensor("a"))
    assert sorted(external_locations(model)) == ["a", "b", "c"]


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../w", "", ".", "a\\b"])
def test_weights_elsewhere_are_refused(tmp_path, location):
    path = save_with_weights_beside(tmp_path / "inner" / "m.onnx")
    (tmp_path / "weights.bin").touch()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"external data at '.*'; a file in the model's own folder or below"):
        read_model(path)


def test_weights_that_are_called_as_the_model_will_be_are_refused(tmp_path):
    path = save_with_weights_beside(tmp_path / "m.onnx", "model.onnx")
    with pytest.raises(InputError, match=r"external data at 'model\.onnx'; weights in a file that is not called"):
        onnx_files(path, read_model(path))


def test_weights_behind_a_link_that_leads_out_are_refused(tmp_path):
    path = save_with_weights_beside(tmp_path / "inner" / "m.onnx")
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "outside.bin")
    (tmp_path / "inner" / "weights.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(InputError, match=r"external data at 'weights\.bin'"):
        read_model(path)


def test_weights_that_are_missing_are_told(tmp_path):
    path = save_with_weights_beside(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"no file 'weights\.bin' beside it; .*copy the weights together"):
        read_model(path)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x08\x07"])
def test_what_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"reading the ONNX model '.*m\.onnx'"):
        read_model(tmp_path / "m.onnx")


def test_an_invalid_graph_is_refused(tmp_path):
    path = save(tmp_path / "m.onnx", "g (float[n,1] x) => (float[n,1] y) { y = Relu (nowhere) }")
    with pytest.raises(InputError, match="a valid ONNX model"):
        read_model(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_model(tmp_path / "none.onnx")
