import json

import pytest

from lrd_deploy.bench.environment import environment
from lrd_deploy.errors import UsageError
from lrd_deploy.records import (
    Comparison,
    Epoch,
    KeepDense,
    Latency,
    LayerSignature,
    Pair,
    PlannedLayer,
    RankPlan,
    Ratio,
    RunRecord,
    TrainedModel,
    Tucker2,
)
from lrd_deploy.report import wording
from lrd_deploy.report.html import render, write_report
from lrd_deploy.report.terminal import comparison_table, plan_table, run_summary

HOSTILE = "<script>alert('x')</script>[bold]{{7*7}}$x^2$"


def ratio(estimate, low, high):
    return Ratio(estimate=estimate, low=low, high=high, confidence=0.95, demonstrated=not low <= 1 <= high, launches=4)


LATENCY = Latency(min_ms=1, p50_ms=1.5, p90_ms=2.0, p99_ms=None, cold_start_ms=9, throughput_per_s=5000, samples=100)
SIGNATURE = LayerSignature(kind="conv2d", in_channels=64, out_channels=64, kernel=(3, 3), spatial=(8, 8))


@pytest.fixture
def folder(tmp_path):
    """The records of a run with a hostile layer name, as a run leaves them."""
    here = environment()
    layers = (
        PlannedLayer(
            name=HOSTILE,
            signature=SIGNATURE,
            choice=Tucker2(rank_in=16, rank_out=16),
            reason="2.0× faster than dense",
            predicted_error=0.5,
            dense_latency_ms=0.2,
            predicted_latency_ms=0.1,
        ),
        PlannedLayer(name="head", signature=None, choice=KeepDense(), reason="its weight is shared"),
    )
    plan = RankPlan(
        policy={}, layers=layers, dense_macs=100, lowrank_macs=50, dense_parameters=10, lowrank_parameters=4,
        predicted_speedup=2.0,
    )  # fmt: skip
    epochs = tuple(
        Epoch(epoch=n, frozen={"AB"[n % 2]: 3}, loss=1 / n, accuracy=0.9, learning_rate=0.1, seconds=2, images_per_s=9)
        for n in (1, 2, 3)
    )
    trained = TrainedModel(
        groups={"A": ("1.down",), "B": ("1.up",)},
        weights="w",
        sha256="0",
        accuracy=0.98,
        chance=0.1,
        accuracy_before=0.5,
        parameters=9,
        epochs=epochs,
        trained_here=True,
    )
    comparison = Comparison(
        base=LATENCY, candidate=LATENCY, speedup=ratio(2.0, 1.9, 2.1), control=ratio(1.0, 0.99, 1.01),
        backend="onnxruntime", batch=8, threads=1, per_launch_speedup=(1.9, 2.0, 2.1, 2.0), warnings=(),
        environment=here,
    )  # fmt: skip
    record = RunRecord(
        version="0", recipe=HOSTILE, accuracy=Pair(dense=0.98, lowrank=0.975), parameters=Pair(dense=10, lowrank=4),
        macs=Pair(dense=100, lowrank=50), speedup=ratio(2.0, 1.9, 2.1), control=ratio(1.0, 0.99, 1.01),
        latency={"dense": LATENCY, "lowrank": LATENCY}, training_speedup=ratio(3.0, 2.5, 3.5),
        layers={"factorised": 1, "dense": 1}, predicted_speedup=2.0, seconds=99, stages={}, warnings=("busy",),
        artifacts={}, environment=here,
    )  # fmt: skip
    for name, content in (("plan", plan), ("dense", trained), ("lowrank", trained), ("bench", comparison)):
        content.write(tmp_path / f"{name}.json")
    record.write(tmp_path / "run.json")
    return tmp_path


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
    assert page.count("<svg") == 3
    assert "busy" in page


def test_the_page_needs_no_network_and_runs_no_script(folder):
    page = render(folder)
    for forbidden in ("<script", "src=", "@import", "url(http", '<link rel="stylesheet"'):
        assert forbidden not in page


def test_a_hostile_name_is_inert_text_everywhere(folder):
    page = render(folder)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;[bold]{{7*7}}" in page
    text = shown(plan_table(RankPlan.read(folder / "plan.json")))
    assert HOSTILE in text


def test_a_speedup_that_is_not_demonstrated_is_said_to_be_so(folder):
    record = json.loads((folder / "run.json").read_text())
    record["speedup"] |= {"low": 0.9, "demonstrated": False}
    (folder / "run.json").write_text(json.dumps(record))
    assert "Speedup not demonstrated" in render(folder)
    assert "not demonstrated" in shown(run_summary(RunRecord.read(folder / "run.json"), "x"))


def test_a_page_of_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.json in it"):
        write_report(tmp_path)


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
