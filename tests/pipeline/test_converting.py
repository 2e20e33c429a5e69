import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from lrd_deploy.errors import InputError, LrdError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.pipeline.converting import convert_model
from lrd_deploy.pipeline.onnx_samples import samples_of
from lrd_deploy.pipeline.precision_evidence import Evidence, evidence_for, measure_ranges
from lrd_deploy.precision.mark import mark_of
from lrd_deploy.records import ActivationRanges, PrecisionPolicy
from tests.precision.graphs import computed, graph_of, images, network, nodes_by_name, normal
from tests.tolerances import sum_tolerance

FP16, BF16 = PrecisionPolicy(precision="fp16"), PrecisionPolicy(precision="bf16")
INT8 = PrecisionPolicy(precision="int8", method="minmax", activation_type="int8")
POLICIES = {"fp16": FP16, "bf16": BF16, "int8": INT8}
every = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def samples(model, tmp_path):
    return stored(tmp_path / "x.npz", model, **images(32), labels=np.zeros(32))


def stored(path, model, **arrays):
    np.savez(path, **arrays)
    return samples_of(model, path)


def converted(model, policy, samples, target=None):
    target = target or model.with_name("converted.onnx")
    return convert_model(model, target, policy, evidence_for(model, policy, samples, None)), target


@every
def test_a_model_is_converted_marked_and_compared(model, samples, policy):
    report, target = converted(model, policy, samples)
    written = onnx.load(target)
    onnx.checker.check_model(written, full_check=True)
    assert (report.sha256, report.source_sha256) == (sha256_of(target), sha256_of(model))
    assert mark_of(written).policy == policy
    assert mark_of(written).share == report.share
    assert (report.share.macs, report.share.weights, report.kept) == (1.0, 1.0, ())
    if policy is BF16:
        assert report.notes[0] == "the opset was raised from 20 to 22"
        assert "outputs were not compared: " in report.notes[1]  # ONNX Runtime has no such convolution on CPUs
    else:
        assert report.difference.passed


@every
def test_converting_twice_is_converting_once(model, samples, policy):
    _, once = converted(model, policy, samples)
    report, twice = converted(once, policy, samples, once.with_name("twice.onnx"))
    assert not report.modified
    assert twice.read_bytes() == once.read_bytes()


def test_a_file_may_be_converted_in_its_place(model, samples):
    before = sha256_of(model)
    report, _ = converted(model, FP16, samples, target=model)
    assert (report.source_sha256, report.sha256) == (before, sha256_of(model))


def test_converting_to_something_else_afterwards_is_refused_and_leaves_the_target(model, samples):
    _, target = converted(model, FP16, samples)
    before = target.read_bytes()
    with pytest.raises(InputError, match="a model in FP16; the float32 model; start from the file"):
        converted(target, INT8, samples, target)
    assert target.read_bytes() == before


def test_normalisations_are_folded_first(tmp_path, samples):
    nodes = [
        ("Conv", ("x", "w"), ("h",), {}),
        ("BatchNormalization", ("h", "one", "zero", "zero", "one"), ("y",), {}),
    ]
    weights = {"w": normal(4, 3, 1, 1), "one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    onnx.save(graph_of(nodes, weights, {"x": ("batch", 3, 6, 6)}, {"y": ("batch", 4, 6, 6)}), tmp_path / "bn.onnx")
    report, target = converted(tmp_path / "bn.onnx", INT8, samples)
    assert report.folded == ("y",)
    assert report.share.nodes == report.share.converted == 1
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(target).graph.node}


def overflowing(path, opset=20):
    """A convolution whose output no FP16 number reaches, brought back by the next node."""
    nodes = [
        ("Conv", ("x", "w"), ("huge",), {}),
        ("Mul", ("huge", "small"), ("mild",), {}),
        ("Conv", ("mild", "v"), ("y",), {}),
    ]
    weights = {"w": np.float32(2.0**17) * normal(4, 3, 1, 1), "small": np.float32(2.0**-17), "v": normal(2, 4, 1, 1)}
    graph = graph_of(nodes, weights, {"x": ("batch", 3, 6, 6)}, {"y": ("batch", 2, 6, 6)}, opset)
    onnx.save(graph, path)
    return path


def test_what_overflows_on_the_data_stays_in_float32_by_name(tmp_path, samples):
    path = overflowing(tmp_path / "huge.onnx")
    report, target = converted(path, FP16, samples)
    assert {entry.node for entry in report.kept} == {"huge", "mild"}
    assert "the value 'huge' reaches " in next(entry.reason for entry in report.kept if entry.node == "mild")
    assert report.difference.passed
    assert report.share.macs == pytest.approx(8 / 20)
    assert nodes_by_name(onnx.load(target))["huge"].input[1] == "w"


def test_without_samples_weights_are_looked_at_and_the_report_says_that_no_more_was(tmp_path):
    report, _ = converted(overflowing(tmp_path / "huge.onnx"), FP16, None)
    assert [entry.node for entry in report.kept] == ["huge"]
    assert "the value 'w' reaches" in report.kept[0].reason
    assert report.notes == ("no samples: outputs were not compared; of overflow only weights were looked at",)
    assert report.difference is None


def test_bf16_holds_what_fp16_does_not(tmp_path, samples):
    report, _ = converted(overflowing(tmp_path / "huge.onnx"), BF16, samples)
    assert report.kept == ()


def test_nodes_kept_by_pattern_stay_and_a_pattern_for_nothing_is_refused(model, samples):
    policy = FP16.model_copy(update={"keep": ("sum", "st*")})
    report, _ = converted(model, policy, samples)
    assert {entry.node: entry.reason for entry in report.kept} == {
        "stem": "it is kept by --keep 'st*'",
        "stem_relu": "it is kept by --keep 'st*'",
        "sum": "it is kept by --keep 'sum'",
    }
    with pytest.raises(UsageError, match="--keep 'nope\\*', which no node's name matches"):
        converted(model, FP16.model_copy(update={"keep": ("nope*",)}), samples)


def test_keeping_everything_is_refused(model, samples):
    with pytest.raises(InputError, match=r"it is kept by --keep '\*'; a float32 graph with at least one node"):
        converted(model, INT8.model_copy(update={"keep": ("*",)}), samples)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_ranges_survive_the_file_and_give_the_same_model(model, samples, method, tmp_path):
    policy = INT8.model_copy(update={"method": method})
    ranges = measure_ranges(model, samples, method)
    ranges.write(tmp_path / "ranges.json")
    read = ActivationRanges.read(tmp_path / "ranges.json")
    assert read == ranges
    assert (read.samples, read.model_sha256) == (24, sha256_of(model))
    convert_model(model, tmp_path / "stored.onnx", policy, Evidence(samples, read))
    report, target = converted(model, policy, samples)
    assert ("x" in read.not_clipped) == (method == "entropy")  # 24 × 3 × 6 × 6 values are too few
    assert any("too few values of" in note for note in report.notes) == (method == "entropy")
    assert (tmp_path / "stored.onnx").read_bytes() == target.read_bytes()


def test_minmax_ranges_are_the_largest_magnitudes_of_the_calibration_part(model, samples):
    ranges = measure_ranges(model, samples, "minmax").magnitudes
    seen = {"x": np.concatenate([batch["x"] for batch in samples.calibration])}
    (stem,) = computed(expose(model, "stem"), seen, ["stem"])
    assert ranges["x"] == np.abs(seen["x"]).max()
    assert ranges["stem"] == pytest.approx(float(np.abs(stem).max()), abs=sum_tolerance(np.float32, 27))
    assert set(ranges) == {"x", "stem", "stem_relu", "down", "up", "flat"}


def expose(model, *names):
    graph = onnx.load(model)
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return graph


def test_ranges_of_another_file_are_refused(model, samples, tmp_path):
    ranges = measure_ranges(model, samples, "minmax")
    other = network()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(8, 3, 3, 3) * 2, "w1"))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="ranges measured on another file"):
        convert_model(tmp_path / "other.onnx", tmp_path / "o.onnx", INT8, Evidence(samples, ranges))
    torn = ranges.model_copy(update={"magnitudes": {"x": 1.0}})
    with pytest.raises(InputError, match="ranges without the value 'stem_relu'"):
        convert_model(model, tmp_path / "o.onnx", INT8, Evidence(samples, torn))
    with pytest.raises(UsageError, match="no ranges"):
        convert_model(model, tmp_path / "o.onnx", INT8, Evidence(samples))
    assert not (tmp_path / "o.onnx").exists()


NAN = images(16)["x"].copy()
NAN[3, 0, 0, 0] = np.nan
DATA = {
    "NaN": ({"x": NAN}, "measuring the range of 'x': values that are NaN or infinite"),
    "a missing input": ({"image": images(16)["x"]}, r"image \(8, 3, 6, 6\); x \(batch, 3, 6, 6\)"),
    "a wrong shape": ({"x": images(16)["x"][:, :2]}, r"x \(8, 2, 6, 6\); x \(batch, 3, 6, 6\)"),
    "too few samples": (images(8), "6 samples to calibrate by; at least 8"),
    "integers": (
        {"x": np.zeros((16, 3, 6, 6), np.int64)},
        r"bad.npz': 'x' of type int64; float32, .*astype\('float32'\)",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), DATA.values(), ids=DATA)
def test_calibration_data_that_will_not_do_is_refused(model, tmp_path, arrays, message):
    with pytest.raises(LrdError, match=message):
        converted(model, INT8, stored(tmp_path / "bad.npz", model, **arrays))
    assert not (tmp_path / "converted.onnx").exists()


@every
def test_weights_that_are_nan_are_refused(tmp_path, policy):
    broken = network()
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32), "w1"))
    onnx.save(broken, tmp_path / "nan.onnx")
    ranges = ActivationRanges(
        model_sha256=sha256_of(tmp_path / "nan.onnx"),
        method="minmax",
        samples=8,
        source="a test",
        magnitudes=dict.fromkeys(("x", "stem", "stem_relu", "down", "up", "flat"), 1.0),
    )
    with pytest.raises(InputError, match="NaN in the constant 'w1'; weights that are numbers"):
        convert_model(tmp_path / "nan.onnx", tmp_path / "o.onnx", policy, Evidence(ranges=ranges))
    assert not (tmp_path / "o.onnx").exists()


def test_a_model_without_layers_has_no_ranges(tmp_path, samples):
    nodes = [("Relu", ("x",), ("y",), {})]
    onnx.save(graph_of(nodes, {}, {"x": ("batch", 3, 6, 6)}, {"y": ("batch", 3, 6, 6)}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no node that handles float32 values"):
        measure_ranges(tmp_path / "m.onnx", samples, "minmax")


def test_metadata_survives_a_raised_opset(model, samples):
    graph = network(opset=20)
    graph.metadata_props.add(key="owner", value="me")
    graph.graph.node[0].metadata_props.add(key="module", value="stem")
    onnx.save(graph, model)
    _, target = converted(model, BF16, samples)
    written = onnx.load(target)
    assert "me" in {entry.value for entry in written.metadata_props}
    assert nodes_by_name(written)["stem"].metadata_props[0].value == "stem"
    assert (written.opset_import[0].version, written.ir_version) == (22, 10)
