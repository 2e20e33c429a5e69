"""Planning inside a run: what each policy leaves behind, and what a plan depends on."""

import math

import pytest

from lrd_deploy.errors import StorageError, UsageError
from lrd_deploy.pipeline import run
from lrd_deploy.recipe import load_recipe
from lrd_deploy.records import RankStudy
from tests.ranks.scripted import Scripted

WIDE = {
    "transformers": {
        "model_type": "resnet",
        "layer_type": "basic",
        "num_channels": 1,
        "embedding_size": 64,
        "hidden_sizes": [128, 256],
        "depths": [1, 1],
        "num_labels": 10,
    }
}


def planned(recipe_path, folder):
    return run(load_recipe(str(recipe_path)), folder, recipe_folder=recipe_path.parent, until="plan").plan


def test_a_latency_plan_is_measured_as_a_whole_and_draws_what_it_saw(tiny_recipe, tmp_path):
    ranks = {"policy": "latency", "target_speedup": 1.05, "quantum": 8}
    plan = planned(tiny_recipe(model=WIDE, ranks=ranks), tmp_path / "run")
    assert plan.measured_speedup is not None
    assert plan.predicted_error > 0
    study = RankStudy.read(tmp_path / "run" / "plan" / "study.json")
    assert {layer.name for layer in study.layers} <= {layer.name for layer in plan.layers}
    assert (tmp_path / "run" / "plan" / "front.svg").read_text().startswith("<svg")


def test_training_is_planned_by_training_steps(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lrd_deploy.bench.layer_latency._SETTLED", math.inf)  # on a busy machine little settles
    ranks = {"policy": "latency", "target_speedup": 1.02, "quantum": 64, "training_weight": 1.0}
    plan = planned(tiny_recipe(model=WIDE, ranks=ranks), tmp_path / "run")
    assert plan.measured_speedup is None
    assert any("100% training" in note for note in plan.notes)
    assert '"work":"training"' in (tmp_path / "run" / "latency.jsonl").read_text()


def test_the_papers_search_runs(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lrd_deploy.pipeline.planning.measured_inference", lambda *_: Scripted(8, overhead_ms=0.0))
    plan = planned(tiny_recipe(model=WIDE, ranks={"policy": "paper"}), tmp_path / "run")
    assert any("below the largest drop" in layer.reason for layer in plan.factorised)


def test_calibration_can_be_left_out(tiny_recipe, tmp_path):
    weighted = planned(tiny_recipe(), tmp_path / "a")
    plain = planned(tiny_recipe(calibration={"samples": 0}), tmp_path / "b")
    assert [layer.choice for layer in weighted.layers] == [layer.choice for layer in plain.layers]
    errors = [[layer.predicted_error for layer in plan.factorised] for plan in (weighted, plain)]
    assert errors[0] != errors[1]


def test_too_few_samples_are_told_in_the_plan(tiny_recipe, tmp_path):
    plan = planned(tiny_recipe(calibration={"samples": 3}, ranks={"policy": "uniform", "alpha": 1.2}), tmp_path / "run")
    assert any("3 calibration inputs cannot tell" in layer.reason for layer in plan.factorised)


def test_a_table_that_cannot_be_read_is_told_before_anything_is_trained(tiny_recipe, tmp_path):
    recipe = tiny_recipe(tables=["mistyped.jsonl"])
    with pytest.raises(StorageError, match=r"mistyped\.jsonl"):
        planned(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_target_out_of_reach_says_what_is_in_reach(tiny_recipe, tmp_path):
    ranks = {"policy": "latency", "target_speedup": 500, "quantum": 8}
    with pytest.raises(UsageError, match="fastest combination of candidates measures"):
        planned(tiny_recipe(model=WIDE, ranks=ranks), tmp_path / "run")
