import numpy as np
import onnx
import pytest

from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.engines.verify import judged, verify
from lrd_deploy.precision.half import to_half
from lrd_deploy.precision.quantize import to_int8, values_to_measure
from lrd_deploy.records import Verification, VerifyPolicy
from tests.precision.graphs import graph_of, images, network

NET = network(22)
HALF = {precision: to_half(NET, precision, {}).model for precision in ("fp16", "bf16")}
INT8 = to_int8(NET, dict.fromkeys(values_to_measure(NET), 4.0), "int8", {}).model


@pytest.fixture
def found(tmp_path):
    """FP16 beside float32."""
    for name, model in {"a": network(), "b": to_half(network(), "fp16", {}).model}.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
    return verify(tmp_path / "a.onnx", tmp_path / "b.onnx", [images(3), images(5, seed=1)])


def test_what_is_explained_grows_as_the_digits_get_fewer():
    explained = [explained_difference(NET, other) for other in (NET, HALF["fp16"], HALF["bf16"], INT8)]
    assert explained == sorted(explained)
    assert len(set(explained)) == 4
    assert explained_difference(HALF["bf16"], NET) == explained_difference(NET, HALF["bf16"])


def test_errors_of_layers_add_up_in_squares():
    one = to_half(NET, "fp16", dict.fromkeys(range(1, 9), "asked")).model
    assert explained_difference(NET, HALF["fp16"]) == pytest.approx(2 * explained_difference(NET, one))  # 4 layers


def test_a_graph_without_weights_may_differ_as_one_layer_does():
    nodes = [("Mul", ("x", "x"), ("y",), {})]
    model = graph_of(nodes, {}, {"x": ("batch", 4)}, {"y": ("batch", 4)})
    half = to_half(model, "fp16", {}).model
    one = to_half(NET, "fp16", dict.fromkeys(range(1, 9), "asked")).model
    assert explained_difference(model, half) == pytest.approx(explained_difference(NET, one))


def test_fp16_passes_by_its_own_tolerance_and_not_by_that_of_float32(found):
    assert found.passed
    assert found.precisions == ("fp32", "fp16")
    assert found.rounding == found.tolerance > found.relative_l2 > explained_difference(network(), network())
    assert found.sqnr_db == pytest.approx(-20 * np.log10(found.relative_l2))


POLICIES = {
    "tolerance": (VerifyPolicy(tolerance=1e-9), "a relative L2 difference of"),
    "max_abs": (VerifyPolicy(max_abs=1e-9), "a largest difference of"),
    "cosine": (VerifyPolicy(min_cosine=1.0), "a cosine of"),
    "sqnr": (VerifyPolicy(min_sqnr_db=200.0), "dB over the difference is below 200.0 dB"),
}


@pytest.mark.parametrize(("policy", "reason"), POLICIES.values(), ids=POLICIES)
def test_a_kept_result_is_judged_again_by_another_policy_and_back(found, tmp_path, policy, reason):
    kept = Verification.read(found.write(tmp_path / "verification.json"))
    assert kept == found
    again = judged(kept, policy)
    assert not again.passed
    assert reason in again.reasons[0]
    assert judged(again, found.policy) == found


def test_agreement_is_judged_too(found):
    lost = found.model_copy(update={"top1_agreement": 0.5})
    assert judged(lost, VerifyPolicy(min_top1_agreement=0.5)).passed
    assert judged(lost, VerifyPolicy(min_top1_agreement=0.6)).reasons == (
        "a top-1 agreement of 50.00% is below 60.00%",
    )


def test_equal_outputs_have_no_ratio_and_pass_any_policy(tmp_path):
    onnx.save(network(), tmp_path / "a.onnx")
    same = verify(tmp_path / "a.onnx", tmp_path / "a.onnx", [images(2)], VerifyPolicy(tolerance=0, min_sqnr_db=300))
    assert (same.passed, same.sqnr_db, same.max_abs) == (True, None, 0.0)
