import json
import shutil

import numpy as np
import pytest

from lrd_deploy.bench.environment import environment
from lrd_deploy.errors import InputError, StorageError, UsageError
from lrd_deploy.export.model_files import model_sha256
from lrd_deploy.gate.baseline import read_baseline
from lrd_deploy.gate.judge import judge
from lrd_deploy.gate.outputs import answers, compare_answers
from lrd_deploy.gate.promote import promote
from lrd_deploy.gate.reference import artefact_of, open_reference
from lrd_deploy.records import GateEvidence, GatePolicy
from tests.gate.launches import around, case
from tests.gate.models import samples_file, scaled


def first(tmp_path, **changes):
    """A promoted baseline with labelled samples."""
    model = scaled(tmp_path / "a.onnx", **changes)
    return promote(tmp_path / "base", model, inputs=samples_file(tmp_path / "x.npz"), result=None, reason=None)


def result_for(bundle, candidate, launches):
    evidence = GateEvidence(
        measured_at="2026-01-01T00:00:00+00:00",
        baseline=artefact_of(bundle.model),
        candidate=artefact_of(candidate),
        cases=(case(launches, launches),),
        environment=environment(),
    )
    return judge(evidence, GatePolicy())


def promote_again(tmp_path, candidate, result=None, reason=None, inputs=None):
    return promote(tmp_path / "base", candidate, inputs=inputs, result=result, reason=reason)


def test_a_first_baseline_needs_no_gate_and_holds_what_a_gate_needs(tmp_path):
    bundle = first(tmp_path, factor=2.0)
    assert read_baseline(tmp_path / "base") == bundle
    assert (bundle.manifest.samples, bundle.manifest.labelled, bundle.manifest.opset) == (6, True, 20)
    opened = open_reference(tmp_path / "base", None)
    np.testing.assert_array_equal(opened.expected[0], 2 * opened.samples.inputs["x"])
    assert opened.artefact.sha256 == model_sha256(tmp_path / "a.onnx")
    assert opened.notes == ()


def test_external_data_come_along(tmp_path):
    bundle = first(tmp_path, factor=3.0, external=True)
    assert "model/weights.bin" in bundle.manifest.files
    (tmp_path / "weights.bin").unlink()
    (y,) = answers(bundle.model, open_reference(tmp_path / "base", None).samples)
    assert y.shape == (6, 4)


def test_external_data_count_in_the_digest(tmp_path):
    digests = set()
    for factor in (1.0, 2.0):
        (tmp_path / str(factor)).mkdir()
        digests.add(model_sha256(scaled(tmp_path / str(factor) / "a.onnx", factor, external=True)))
    assert len(digests) == 2


def test_promoting_the_baseline_itself_changes_nothing(tmp_path):
    bundle = first(tmp_path)
    assert promote_again(tmp_path, tmp_path / "a.onnx") == bundle


def test_promoting_the_same_model_with_the_same_samples_changes_nothing(tmp_path):
    bundle = first(tmp_path)
    assert promote_again(tmp_path, tmp_path / "a.onnx", inputs=tmp_path / "x.npz") == bundle
    other = samples_file(tmp_path / "other.npz", samples=9)
    with pytest.raises(UsageError, match="no result of a gate"):
        promote_again(tmp_path, tmp_path / "a.onnx", inputs=other)


def test_the_history_has_the_mean_over_the_baselines_cases(tmp_path):
    bundle = first(tmp_path)
    candidate = scaled(tmp_path / "b.onnx", 2.0)
    result = result_for(bundle, candidate, around(0.01))
    against_anchor = case(around(0.04), name="anchor").model_copy(update={"against": "anchor"})
    cases = (*result.evidence.cases, case(around(-0.01), name="batch 1"), against_anchor)
    result = judge(result.evidence.model_copy(update={"cases": cases}), GatePolicy())
    accepted = promote_again(tmp_path, candidate, result, reason="tried")
    assert accepted.history[-1].change == pytest.approx(0.0, abs=1e-4)


def test_a_result_of_other_models_is_refused_even_with_a_reason(tmp_path):
    bundle = first(tmp_path)
    candidate, other = scaled(tmp_path / "b.onnx", 2.0), scaled(tmp_path / "c.onnx", 3.0)
    with pytest.raises(UsageError, match="another candidate"):
        promote_again(tmp_path, candidate, result_for(bundle, other, around(0.0)), reason="wanted")


def test_a_pass_of_just_these_models_replaces_the_baseline_and_keeps_its_samples_and_history(tmp_path):
    bundle = first(tmp_path)
    candidate = scaled(tmp_path / "b.onnx", 2.0)
    passed = result_for(bundle, candidate, around(0.01))
    second = promote_again(tmp_path, candidate, passed)
    assert second.manifest.labelled
    old, new = second.history
    assert old == bundle.manifest.promotion
    assert (new.verdict, new.change) == ("PASS", passed.change)
    assert [entry.name for entry in (tmp_path / "base").iterdir() if entry.is_dir()] == [second.manifest.folder]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"result": None}, "no result of a gate"),
        ({"launches": 0.08}, r"the verdict FAIL: batch 8: slower by \+8\.0%"),
        ({"candidate": "c.onnx"}, "a gate's result for another candidate"),
        ({"baseline": "c.onnx"}, "a gate's result against another baseline"),
    ],
)
def test_anything_else_needs_a_reason_which_is_kept(tmp_path, change, told):
    bundle = first(tmp_path)
    candidate, other = scaled(tmp_path / "b.onnx", 2.0), scaled(tmp_path / "c.onnx", 3.0)
    result = result_for(bundle, candidate, around(change.get("launches", 0.0)))
    swapped = {name: artefact_of(other) for name in ("candidate", "baseline") if name in change}
    result = result.model_copy(update={"evidence": result.evidence.model_copy(update=swapped)})
    result = change.get("result", result)
    with pytest.raises(UsageError, match=told):
        promote_again(tmp_path, candidate, result)
    assert read_baseline(tmp_path / "base") == bundle
    ours = None if change.keys() & {"candidate", "baseline"} else result
    accepted = promote_again(tmp_path, candidate, ours, reason="a new feature is worth it")
    assert accepted.history[-1].reason == "a new feature is worth it"


def test_outputs_that_are_not_finite_are_refused_and_leave_nothing(tmp_path):
    model = scaled(tmp_path / "a.onnx", np.nan)
    with pytest.raises(InputError, match="NaN or infinity in its outputs"):
        promote(tmp_path / "base", model, inputs=None, result=None, reason=None)
    assert not (tmp_path / "base").exists()


def tampered(folder, name, change):
    inner = folder / json.loads((folder / "manifest.json").read_text())["folder"]
    change(inner / name)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "model/model.onnx",
            lambda file: file.write_bytes(file.read_bytes() + b"\0"),
            "'model/model.onnx' was changed",
        ),
        ("inputs.npz", lambda file: file.unlink(), "'inputs.npz' is missing"),
        ("extra.bin", lambda file: file.write_text(""), "'extra.bin' is not in the manifest"),
    ],
)
def test_a_bundle_that_was_tampered_with_is_refused(tmp_path, name, change, told):
    first(tmp_path)
    tampered(tmp_path / "base", name, change)
    with pytest.raises(InputError, match=told):
        open_reference(tmp_path / "base", None)


def test_a_manifest_that_leaves_the_folder_is_refused(tmp_path):
    first(tmp_path)
    manifest = tmp_path / "base" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(json.loads(manifest.read_text())["folder"], "../../elsewhere/"))
    with pytest.raises(InputError, match=r"reading .*manifest\.json' as BaselineManifest"):
        open_reference(tmp_path / "base", None)


def test_a_folder_with_other_things_in_it_is_no_place_for_a_baseline(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "notes.txt").touch()
    with pytest.raises(UsageError, match="a folder with other things in it"):
        first(tmp_path)


def test_a_bundle_can_be_moved(tmp_path):
    first(tmp_path)
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    assert open_reference(tmp_path / "elsewhere", None).samples.labels is not None


def test_a_baseline_that_is_not_there_is_none_but_a_model_must_be(tmp_path):
    assert open_reference(tmp_path / "nothing", None) is None
    with pytest.raises(StorageError, match="reading"):
        open_reference(tmp_path / "nothing.onnx", None)


@pytest.mark.parametrize("name", ["results.json", "folder"])
def test_a_stored_number_is_no_baseline(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text("{}")
    with pytest.raises(UsageError, match="both sides are measured anew"):
        open_reference(path, None)


def test_an_old_baseline_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("lrd_deploy.gate.promote.timestamp", lambda: "2020-01-01T00:00:00+00:00")
    first(tmp_path)
    (note,) = open_reference(tmp_path / "base", None).notes
    assert "days old: promote a newer one" in note


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": np.ones((2, 4), np.float32)}, "arrays z"),
        ({"x": np.ones((2, 4))}, r"'x' is float64\[2, 4\], the model takes float32\[batch, 4\]"),
        ({"x": np.ones((2, 5), np.float32)}, r"'x' is float32\[2, 5\], the model takes float32\[batch, 4\]"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "NaN or infinity in 'x'"),
        ({"x": np.ones((2, 4), np.float32), "labels": np.ones(3, int)}, "2 samples of 'x', 3 samples of 'labels'"),
        ({"x": np.ones((2, 4), np.float32), "labels": np.ones(2)}, "labels of type float64 in 1 dimensions"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path, arrays, told):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=told):
        open_reference(scaled(tmp_path / "a.onnx"), tmp_path / "x.npz")


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 70])
def test_answers_cover_every_sample_once(tmp_path, samples):
    reference = open_reference(scaled(tmp_path / "a.onnx", 2.0), samples_file(tmp_path / "x.npz", samples))
    (y,) = answers(reference.model, reference.samples)
    np.testing.assert_array_equal(y, 2 * reference.samples.inputs["x"])


def test_a_fixed_batch_answers_for_every_sample_too(tmp_path):
    model = scaled(tmp_path / "a.onnx", 2.0, batch=4)
    reference = open_reference(model, samples_file(tmp_path / "x.npz", 6))
    (y,) = answers(reference.model, reference.samples)
    np.testing.assert_array_equal(y, 2 * reference.samples.inputs["x"])


def test_stored_outputs_are_what_counts(tmp_path):
    first(tmp_path, factor=2.0)
    reference = open_reference(tmp_path / "base", None)
    assert compare_answers(reference, tmp_path / "a.onnx").relative_l2 == 0.0
    moved = compare_answers(reference, scaled(tmp_path / "b.onnx", 4.0))
    assert moved.relative_l2 == pytest.approx(1.0)
    assert moved.top1_agreement == 1.0


def test_labels_for_what_has_no_classes_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4), np.float32), labels=np.zeros(3, int))
    reference = open_reference(scaled(tmp_path / "a.onnx"), tmp_path / "x.npz")
    odd = reference.__class__(reference.artefact, reference.model, reference.samples, (np.ones(3, np.float32),))
    with pytest.raises(InputError, match=r"a first output of shape \(3,\) for 3 labels"):
        compare_answers(odd, reference.model)
