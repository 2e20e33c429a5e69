import numpy as np
import onnx
import pytest

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.pipeline.onnx_samples import random_samples, refuse_sizes_beside_data, stored_samples
from lrd_deploy.records import DimensionRange, TensorInfo
from tests.rewrite.graph_text import model


def written(path, count, **others):
    np.savez(path, x=np.arange(count * 4, dtype=np.float32).reshape(count, 4), **others)
    return path


def first(batches):
    return [array for batch in batches for array in batch["x"][:, 0] / 4]


def test_the_last_quarter_is_held_out_and_nothing_is_in_both(tmp_path):
    samples = stored_samples(written(tmp_path / "x.npz", 16), batch=4)
    assert first(samples.calibration) == list(range(12))
    assert first(samples.held_out) == [12, 13, 14, 15]
    assert (samples.calibration_count, samples.held_out_count) == (12, 4)
    assert samples.source == "'x.npz'"


def test_what_fills_no_batch_is_left_out(tmp_path):
    samples = stored_samples(written(tmp_path / "x.npz", 15), batch=4)
    assert [len(batch["x"]) for batch in samples.calibration] == [4, 4, 4]
    assert (samples.calibration_count, samples.held_out_count) == (12, 3)


def test_fewer_samples_than_a_batch_start_over_and_are_counted_once(tmp_path):
    samples = stored_samples(written(tmp_path / "x.npz", 5), batch=8)
    assert first(samples.calibration) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert first(samples.held_out) == [4] * 8
    assert (samples.calibration_count, samples.held_out_count) == (4, 1)


def test_arrays_of_different_lengths_are_cut_to_the_shortest(tmp_path):
    samples = stored_samples(written(tmp_path / "x.npz", 16, z=np.zeros((8, 2))), batch=2)
    assert (samples.calibration_count, samples.held_out_count) == (6, 2)


def test_an_array_that_is_no_input_does_not_shorten_the_samples(tmp_path):
    inputs = [TensorInfo(name="x", dtype="float32", shape=("batch", 4))]
    with pytest.raises(InputError, match=r"the array 'names' of 3 rows, which is no input .* per input \('x'\)"):
        stored_samples(written(tmp_path / "x.npz", 16, names=np.zeros(3)), 4, inputs)
    samples = stored_samples(written(tmp_path / "x.npz", 16, labels=np.zeros(16)), 4, inputs)
    assert (samples.calibration_count, samples.held_out_count) == (12, 4)


def test_one_sample_is_refused(tmp_path):
    with pytest.raises(InputError, match="1 sample; at least 2"):
        stored_samples(written(tmp_path / "x.npz", 1), batch=4)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"an \.npz file with one array per input"):
        stored_samples(tmp_path / "x.npz", batch=4)


@pytest.mark.parametrize(("batch", "size"), [(8, 8), (100, 100)])
def test_random_samples_differ_from_batch_to_batch_and_say_that_they_are_random(tmp_path, batch, size):
    onnx.save(model("y = Relu (x)"), tmp_path / "m.onnx")
    samples = random_samples(tmp_path / "m.onnx", batch)
    batches = [*samples.calibration, *samples.held_out]
    assert {len(each["x"]) for each in batches} == {size}
    assert len({each["x"].tobytes() for each in batches}) == len(batches)
    assert samples.calibration_count >= 64
    assert samples.source.startswith("random inputs, for want of calibration data")


def test_random_samples_have_the_batch_that_a_model_fixes(tmp_path):
    onnx.save(model("y = Relu (x)", inputs="float[3,4] x", outputs="float[3,4] y"), tmp_path / "m.onnx")
    samples = random_samples(tmp_path / "m.onnx", 3)
    assert {len(each["x"]) for each in samples.calibration} == {3}


def test_random_samples_have_the_sizes_that_are_asked_for_and_take_none_by_chance(tmp_path):
    graph = model("y = Relu (x)", inputs="float[batch,sequence,4] x", outputs="float[batch,sequence,4] y")
    onnx.save(graph, tmp_path / "m.onnx")
    samples = random_samples(tmp_path / "m.onnx", 3, {"sequence": DimensionRange(min=5, opt=5, max=5)})
    assert {each["x"].shape for each in (*samples.calibration, *samples.held_out)} == {(3, 5, 4)}
    with pytest.raises(UsageError, match=r"the dimension 'sequence' of the input 'x' \(axis 1\) may have any size"):
        random_samples(tmp_path / "m.onnx", 3)


def test_sizes_beside_stored_samples_are_refused(tmp_path):
    sizes = {"sequence": DimensionRange(min=5, opt=5, max=5)}
    refuse_sizes_beside_data(sizes, None)
    refuse_sizes_beside_data({}, tmp_path / "x.npz")
    with pytest.raises(UsageError, match="--dim for 'sequence' beside it; one of the two"):
        refuse_sizes_beside_data(sizes, tmp_path / "x.npz")
