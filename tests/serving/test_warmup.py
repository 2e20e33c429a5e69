import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrd_deploy.errors import InputError, Problems
from lrd_deploy.serving.tensors import served_graph
from lrd_deploy.serving.warmup import store_inputs, stored_batch
from tests.serving.graphs import graph

DTYPES = {"bool": bool, "uint8": "u1", "int64": "i8", "float16": "f2", "float": "f4", "double": "f8"}


def of_type(dtype, shape="n,2"):
    return served_graph(graph(f"g ({dtype}[{shape}] x) => (float[n,2] y) {{ y = Foo (x) }}"))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_stored_inputs_come_back_to_the_bit(tmp_path_factory, dtype, data):
    finite = {"allow_nan": False, "allow_infinity": False} if dtype in {"float16", "float", "double"} else {}
    array = data.draw(hnp.arrays(DTYPES[dtype], st.tuples(st.integers(1, 5), st.just(2)), elements=finite or None))
    folder = tmp_path_factory.mktemp("m")
    stored = store_inputs({"x": array}, of_type(dtype), len(array), folder)
    again = stored_batch(folder, stored, len(array))["x"]
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


@given(texts=st.lists(st.text().filter(lambda text: not text.endswith("\0")), min_size=2, max_size=2))
def test_texts_come_back_and_every_one_has_its_length_before_it(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("m")
    (stored,) = store_inputs({"x": np.array([texts, texts])}, of_type("string"), 2, folder)
    assert stored_batch(folder, (stored,), 3)["x"].tolist() == [texts] * 3
    data = (folder / "warmup" / stored.file).read_bytes()
    assert struct.unpack_from("<I", data)[0] == len(texts[0].encode())
    assert len(data) == sum(4 + len(text.encode()) for text in texts)  # one sample: Triton reads a file of text whole


def test_a_file_begins_with_the_sample_that_triton_feeds(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    (stored,) = store_inputs({"x": array}, of_type("float"), 8, tmp_path)
    data = (tmp_path / "warmup" / stored.file).read_bytes()
    assert data.startswith(array[0].tobytes())
    assert len(data) == 8 * array[0].nbytes
    assert (stored.shape, stored.samples) == ((2,), 8)


def test_a_model_without_batches_keeps_its_whole_input(tmp_path):
    served = served_graph(graph("g (float[2,2] x) => (float[2,2] y) { y = Relu (x) }"))
    array = np.ones((2, 2), np.float32)
    (stored,) = store_inputs({"x": array}, served, 1, tmp_path)
    assert (stored.shape, stored.samples) == ((2, 2), None)
    assert stored_batch(tmp_path, (stored,), 1)["x"].shape == (2, 2)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[1, np.nan]], np.float32), "1 of 2 values NaN or infinite; finite values"),
        (np.array([[np.inf, np.inf]], np.float32), "2 of 2 values NaN or infinite"),
        (np.zeros((1, 2)), r"values of type float64; float32 of shape \(n, 2\)"),
        (np.zeros((1, 3), np.float32), r"shape \(1, 3\); float32 of shape \(n, 2\)"),
        (np.zeros(2, np.float32), r"shape \(2,\)"),
        (np.zeros((0, 2), np.float32), r"shape \(0, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, array, reason):
    with pytest.raises(InputError, match=reason):
        store_inputs({"x": array}, of_type("float"), 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_inputs_under_wrong_names_are_refused(tmp_path):
    with pytest.raises(Problems, match=r"(?s)'z': an array that is no input.*'x': no array for it"):
        store_inputs({"z": np.zeros((1, 2), np.float32)}, of_type("float"), 1, tmp_path)


def test_a_file_of_another_length_is_refused(tmp_path):
    (stored,) = store_inputs({"x": np.zeros((1, 2), np.float32)}, of_type("float"), 1, tmp_path)
    (tmp_path / "warmup" / stored.file).write_bytes(b"123")
    with pytest.raises(InputError, match="3 bytes"):
        stored_batch(tmp_path, (stored,), 1)
