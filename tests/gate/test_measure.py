import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from lrd_deploy.errors import BackendError, InputError, StorageError, UsageError
from lrd_deploy.files import locked_folder
from lrd_deploy.gate.measure import GateSettings, gate
from lrd_deploy.gate.notebook import launch_ratio
from lrd_deploy.gate.reference import open_reference
from lrd_deploy.gate.self_test import self_test
from lrd_deploy.precision.half import to_half
from lrd_deploy.records import GatePolicy, GateResult
from tests.gate.models import samples_file, samples_of, scaled, scripted_launches


@pytest.fixture
def models(tmp_path):
    """The baseline, and the folder of the gate."""
    return scaled(tmp_path / "base.onnx"), tmp_path / "gate"


def gated(models, candidate, launches, **changes):
    base, folder = models
    references = changes.pop("references", {"baseline": open_reference(base, None)})
    policy = changes.pop("policy", GatePolicy())
    return gate(references, candidate, GateSettings(**changes), policy, folder, launches=launches)


def never(*_):
    raise AssertionError("measured")
    yield


def test_a_gate_passes_what_is_as_fast_and_keeps_all_it_saw(models):
    found = gated(models, models[0], scripted_launches())
    assert found.verdict == "PASS"
    assert found.cases[0].base_ms == pytest.approx(2.0)
    assert GateResult.read(models[1] / "gate.json") == found
    lines = [json.loads(line) for line in (models[1] / "samples.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == ["batch 8"] * 6
    assert lines[0]["launch"]["blocks"]["base"][0] == [2_000_000] * 3


def test_a_gate_fails_what_is_slower(models):
    found = gated(models, models[0], scripted_launches(1.06))
    assert (found.verdict, found.cases[0].launches, found.cases[0].confirming_launches) == ("FAIL", 6, 6)


def test_every_batch_is_a_case_and_the_anchor_doubles_them(models, tmp_path):
    anchor = open_reference(scaled(tmp_path / "release.onnx"), None)
    references = {"baseline": open_reference(models[0], None), "anchor": anchor}
    found = gated(models, models[0], scripted_launches(), references=references, batches=(1, 8, 1))
    names = ["batch 1", "batch 8", "batch 1 against the anchor", "batch 8 against the anchor"]
    assert [case.name for case in found.cases] == names
    assert found.evidence.anchor.name.endswith("release.onnx")
    assert found.evidence.anchor_outputs.relative_l2 == 0.0


def test_a_fixed_batch_is_the_only_case(models, tmp_path):
    fixed = scaled(tmp_path / "fixed.onnx", batch=3)
    found = gated(models, fixed, scripted_launches(), references={"baseline": open_reference(fixed, None)})
    assert [case.name for case in found.cases] == ["batch 3"]


def test_wrong_outputs_fail_before_anything_is_timed(models, tmp_path):
    found = gated(models, scaled(tmp_path / "wrong.onnx", 2.0), never)
    assert (found.verdict, found.decided_by) == ("FAIL", "accuracy")
    assert GateResult.read(models[1] / "gate.json").verdict == "FAIL"


def test_nan_outputs_fail_before_anything_is_timed(models, tmp_path):
    found = gated(models, scaled(tmp_path / "nan.onnx", np.nan), never)
    assert found.reasons == ("the candidate's outputs cannot be compared: NaN or infinity in the candidate's outputs",)


def test_without_a_baseline_nothing_is_timed(models):
    found = gated(models, models[0], never, references={})
    assert found.decided_by == "baseline"


def test_other_inputs_are_an_error(models, tmp_path):
    with pytest.raises(InputError, match="the same names, types and shapes"):
        gated(models, scaled(tmp_path / "wide.onnx", width=5), never)


def test_another_opset_is_told(models, tmp_path):
    found = gated(models, scaled(tmp_path / "old.onnx", opset=17), scripted_launches())
    assert found.evidence.warnings == (
        "the baseline is of opset 20, the candidate of 17: they may be optimised differently",
    )


def test_an_interrupted_gate_leaves_a_valid_result(models):
    with pytest.raises(KeyboardInterrupt):
        gated(models, models[0], scripted_launches(stop_after=4))
    kept = GateResult.read(models[1] / "gate.json")
    assert kept.verdict == "INCONCLUSIVE"
    assert kept.reasons == ("batch 8: unfinished: 4 of at least 6 launches",)
    assert len((models[1] / "samples.jsonl").read_text().splitlines()) == 4


def test_a_worker_that_dies_in_the_third_launch_leaves_two(models):
    def dying(*_):
        yield samples_of(0, 1.0)
        yield samples_of(1, 1.0)
        raise BackendError("measuring", found="killed", accepted="samples", remedy="more memory")

    with pytest.raises(BackendError, match="killed"):
        gated(models, models[0], dying)
    assert len(GateResult.read(models[1] / "gate.json").evidence.cases[0].launches) == 2


def test_what_the_machine_did_is_told(models):
    def busy(*_):
        for number in range(12):
            yield samples_of(number, 1.0, waited=number == 0, converged=number != 1)

    found = gated(models, models[0], busy)
    assert found.evidence.warnings == (
        "another measurement ran on this machine: 1 of 6 launches waited for their turn",
        "latency had not settled after 3 s of warm-up in 1 of 6 launches",
    )


def test_two_gates_in_one_folder_are_refused(models):
    with (
        locked_folder(models[1], holder="gate"),
        pytest.raises(UsageError, match="another gate is using it"),
    ):
        gated(models, models[0], never)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_timed(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="making the gate's folder"):
        gated((models[0], tmp_path / "file" / "gate"), models[0], never)


def test_a_launch_becomes_ratios_to_the_baseline():
    ratio = launch_ratio(samples_of(1, 1.1, 0.9))
    assert np.exp(ratio.candidate) == pytest.approx(1.1)
    assert np.exp(ratio.control) == pytest.approx(0.9)
    assert (ratio.base_ms, ratio.candidate_ms, ratio.base_first) == (pytest.approx(2.0), pytest.approx(2.2), False)


def test_ranks_off_the_quantum_fail(models, tmp_path):
    import onnx

    from lrd_deploy.bench.layer_graph import layer_graph
    from lrd_deploy.records import SVD, LayerSignature

    factors = tmp_path / "factors.onnx"
    onnx.save(layer_graph(LayerSignature(kind="linear", in_channels=32, out_channels=32), SVD(rank=6)), factors)
    references = {"baseline": open_reference(factors, None)}
    found = gated(models, factors, never, references=references, quantum=8)
    assert (found.verdict, found.decided_by) == ("FAIL", "parity")
    assert "is no multiple of 8" in found.reasons[0]
    assert gated(models, factors, scripted_launches(), references=references, quantum=2).verdict == "PASS"


def test_the_self_test_plays_gates_on_launches_of_a_model_beside_itself(models):
    reference = open_reference(models[0], None)
    found = self_test(reference, GatePolicy(), batch=8, threads=1, source=scripted_launches())
    assert found.launches == 48
    assert found.per_launch_sd == pytest.approx(0.002, rel=0.02)
    assert [rates.slowdown for rates in found.resampled] == [0.0, 0.05, 0.1]
    assert [rates.fail for rates in found.resampled] == [0.0, 1.0, 1.0]
    assert [rates.fail for rates in found.disjoint] == [0.0, 1.0, 1.0]


@pytest.mark.slow
def test_real_launches_of_a_model_beside_itself_do_not_fail(models, tmp_path):
    base = scaled(tmp_path / "wide.onnx", width=512)
    found = gated((base, models[1]), base, _fresh(), references={"baseline": open_reference(base, None)})
    assert found.verdict in {"PASS", "INCONCLUSIVE"}
    assert found.cases[0].launches >= 6
    assert Path(models[1] / "samples.jsonl").read_text().count("\n") == found.cases[0].launches


def _fresh():
    from lrd_deploy.bench.compare import fresh_launches

    return fresh_launches


def test_labels_make_accuracy_count(models, tmp_path):
    reference = open_reference(models[0], samples_file(tmp_path / "x.npz"))
    flipped = scaled(tmp_path / "flipped.onnx", -1.0)
    references = {"baseline": reference}
    found = gated(models, flipped, never, references=references, policy=GatePolicy(max_accuracy_drop=0.01))
    assert found.reasons == ("top-1 accuracy falls by 100.00%, at most 1.00% is allowed",)
    assert found.evidence.outputs.baseline_accuracy == 1.0


def test_another_precision_is_told(models, tmp_path):
    half = to_half(onnx.load(scaled(tmp_path / "full.onnx")), "fp16", {}).model
    onnx.save(half, tmp_path / "half.onnx")
    found = gated(models, tmp_path / "half.onnx", scripted_launches())
    assert (
        "the baseline is in fp32, the candidate in fp16: the ratio shows that difference too" in found.evidence.warnings
    )
