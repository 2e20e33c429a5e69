import xml.etree.ElementTree as ET

import pytest

from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.records import KeepDense
from lrd_deploy.report.plan_figures import pareto_front, staircase_plots, staircases
from tests.ranks.scripted import Scripted, conv

HOSTILE = "<script>alert(1)</script>$x^2$"


@pytest.fixture(scope="module")
def planned():
    layers = [conv(128, name="a"), conv(256, kernel=1, name=HOSTILE), conv(64, name="b", refusal="shared")]
    planner = LatencyPlanner(layers, LatencyRank(target_speedup=2), Scripted(16))
    plan = planner.plan()
    return plan, planner.study(plan)


def test_both_pictures_are_svg_without_markup_of_ours(planned):
    plan, study = planned
    for svg in (staircases(study), pareto_front(study, plan)):
        ET.fromstring(svg)
        assert "script" not in svg


def test_the_front_shows_the_plan(planned):
    plan, study = planned
    without = pareto_front(study, plan.model_copy(update={"predicted_error": None}))
    assert len(pareto_front(study, plan)) > len(without)


def test_one_staircase_per_distinct_layer(planned):
    _, study = planned
    twice = study.model_copy(update={"layers": (*study.layers, *study.layers)})
    assert staircases(twice) == staircases(study)


def test_a_layer_without_candidates_is_drawn_by_its_dense_line_alone(planned):
    _, study = planned
    bare = study.layers[0].model_copy(update={"points": (), "chosen": KeepDense()})
    ((_, plot),) = staircase_plots(study.model_copy(update={"layers": (bare,)}))
    ET.fromstring(plot.wide)
    assert plot.wide.count("<title>") == 0
    assert plot.label.endswith("stays dense")


def test_points_are_titled_with_what_they_are(planned):
    _, study = planned
    (layer, plot), *_ = staircase_plots(study)
    assert plot.wide.count("<title>") == len(layer.points)
    assert f"<title>{layer.chosen}: " in plot.wide


def test_a_study_without_layers_is_still_a_picture(planned):
    _, study = planned
    ET.fromstring(staircases(study.model_copy(update={"layers": ()})))
