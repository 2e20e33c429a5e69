import json
import re

import pytest
import yaml

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.pipeline.workspace import StoredRecipe
from lrd_deploy.recipe import load_recipe, parse_recipe
from lrd_deploy.records import Comparison, Pair, RankPlan, RunRecord
from lrd_deploy.report import wording
from lrd_deploy.report.figures import layer_latencies
from lrd_deploy.report.html import render, write_report
from lrd_deploy.report.terminal import comparison_table, plan_table, run_summary
from tests.report.folders import HOSTILE, write_run


@pytest.fixture
def folder(tmp_path):
    """The records of a run with a hostile layer name, as a run leaves them."""
    return write_run(tmp_path, [HOSTILE], name=HOSTILE)


def shown(renderable):
    from rich.console import Console

    console = Console(width=300, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_page_leads_with_the_speedup_and_its_interval(folder):
    page = render(folder)
    assert "2.00× faster" in page
    assert "2.00× (95% interval 1.90 to 2.10)" in page
    assert "-0.50 points" in page
    assert "busy" in page


def test_every_figure_is_on_the_page_once_for_each_width(folder):
    page = render(folder)
    assert page.count('class="plot wide"') == 4  # launches, training, front, layers
    assert page.count('class="plot narrow"') == 4
    assert page.count('<div class="small-plots"><figure>') == 1


def test_many_layers_are_drawn_in_plots_of_one_scale_that_fit_a_printed_page(folder):
    plan = RankPlan.read(folder / "plan.json")
    layer = next(layer for layer in plan.layers if layer.dense_latency_ms)
    plots = layer_latencies(plan.model_copy(update={"layers": (layer,) * 80}))
    assert [plot.label.split()[2] for plot in plots] == ["36", "36", "8"]
    assert len({plot.name for plot in plots}) == 3
    for plot in plots:
        width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', plot.wide).groups())
        assert height / width <= 269 / 184  # A4 within the page's margins
    assert layer_latencies(plan.model_copy(update={"layers": ()})) == []


def test_the_page_needs_no_network_and_runs_one_script_of_its_own(folder):
    page = render(folder)
    assert page.count("<script") == 1
    assert "default-src 'none'" in page
    for forbidden in ("src=", "@import", "url(http", "<link"):
        assert forbidden not in page.replace("&#39;", "")


def test_a_hostile_name_is_inert_text_everywhere(folder):
    page = render(folder)
    assert "&lt;script&gt;window.<wbr>pwned = 1&lt;/script&gt;[bold]{{7*7}}" in page
    text = shown(plan_table(RankPlan.read(folder / "plan.json")))
    assert HOSTILE in text


def test_a_speedup_that_is_not_demonstrated_is_said_to_be_so(folder):
    record = json.loads((folder / "run.json").read_text())
    record["speedup"] |= {"low": 0.9, "demonstrated": False}
    (folder / "run.json").write_text(json.dumps(record))
    assert "Speedup not demonstrated" in render(folder)
    assert "not demonstrated" in shown(run_summary(RunRecord.read(folder / "run.json"), "x"))


def test_what_was_left_stands_beside_its_reason(tmp_path):
    page = render(write_run(tmp_path, ["a.conv"]))
    assert "<strong>shared with a.conv</strong>: <bdi>refused</bdi>" in page
    assert "<strong>pad_rank: a.conv is on the quantum</strong>: <bdi>a.<wbr>conv</bdi>" in page
    assert "<strong>no a.conv</strong>: <bdi>tensorrt dense</bdi>" in page


def test_the_page_says_from_which_files_and_how_to_get_the_same(folder):
    page = render(folder)
    assert f"{'d' * 64}  dense.onnx" in page
    assert f"{'f' * 64}  lowrank.onnx" in page  # as rewritten, not as exported
    assert "lrd-deploy bench dense.onnx lowrank.onnx --batch 8 --threads 1 --inputs export/inputs.npz" in page
    assert "lrd-deploy run recipe.yaml" not in page  # this folder has no recipe to show


def test_the_recipe_on_the_page_is_the_recipe_of_the_run(folder, monkeypatch):
    recipe = load_recipe("digits")
    StoredRecipe(recipe=recipe, recipe_folder=None).write(folder / "recipe.json")
    seen = []
    safe_dump = yaml.safe_dump
    monkeypatch.setattr(yaml, "safe_dump", lambda *a, **options: seen.append(safe_dump(*a, **options)) or seen[-1])
    page = render(folder)
    assert "lrd-deploy run recipe.yaml --out again" in page
    assert parse_recipe(seen[0], source="page", folder=None) == recipe


def test_a_folder_without_the_later_records_still_has_a_page(folder):
    for name in ("export", "rewrite", "build", "plan/study"):
        (folder / f"{name}.json").unlink()
    page = render(folder)
    assert "the folder holds no record of rewrites" in page
    assert "the folder holds no record of engines" in page
    assert 'class="small-plots"' not in page
    assert "sha256sum" not in page


def test_a_record_that_is_not_one_is_refused_by_its_name(folder):
    (folder / "build.json").write_text("{}")
    with pytest.raises(InputError, match=r"build\.json' as BuiltEngines"):
        render(folder)


def test_a_page_of_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"no run\.json in it, and no gate\.json; the folder of a finished run, or one"
    ):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_records_give_the_same_page(folder):
    assert render(folder) == render(folder)


def test_terminal_tables_hold_the_numbers(folder):
    text = shown(comparison_table(Comparison.read(folder / "bench.json")))
    for part in ("1.5", "speedup 2.00× (95% interval 1.90 to 2.10), from 4 launches", "batch 8, threads 1"):
        assert part in text
    assert "warning: busy" in shown(run_summary(RunRecord.read(folder / "run.json"), "x"))


def test_numbers_in_words():
    assert wording.count(11_175_370) == "11.2 M"
    assert wording.count(512) == "512"
    assert wording.milliseconds(None) == "–"
    assert wording.share(Pair(dense=10, lowrank=4)) == "40%"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0123, 0.2, None], ["0.012", "0.200", "–"]),
        ([1.5, 12.25], ["1.50", "12.25"]),
        ([1234.5, 0.1], ["1234", "0"]),
        ([0.0, None], ["0.000", "–"]),
        ([], []),
    ],
)
def test_a_column_of_milliseconds_has_one_number_of_decimals(values, expected):
    assert wording.aligned_milliseconds(values) == expected
