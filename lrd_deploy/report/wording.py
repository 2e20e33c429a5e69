"""Numbers in words, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.records import Choice, KeepDense, Latency, Pair, RankPlan, Ratio, RunRecord


def speedup(ratio: Ratio) -> str:
    """Returns "2.31× (95 % interval 2.25 to 2.38)", and says so where it is not demonstrated."""
    text = f"{ratio.estimate:.2f}× ({ratio.confidence:.0%} interval {ratio.low:.2f} to {ratio.high:.2f})"
    return text if ratio.demonstrated else f"{text}, not demonstrated"


def milliseconds(value: float | None) -> str:
    """Returns three significant digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def aligned_milliseconds(values: Sequence[float | None]) -> list[str]:
    """Returns a column with one number of decimals, such that the largest has three significant digits or more."""
    largest = max((value for value in values if value), default=1.0)
    decimals = max(0, 3 - max(0, floor(log10(largest)))) if largest > 0 else 3
    return ["–" if value is None else f"{value:.{decimals}f}" for value in values]


def count(value: float) -> str:
    """Returns "11.2 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def share(pair: Pair) -> str:
    """Returns low-rank over dense in percent."""
    return f"{pair.lowrank / pair.dense:.0%}" if pair.dense else "–"


def choice_name(choice: Choice) -> str:
    """Returns "dense", "svd 32" or "tucker2 16, 32"."""
    return "dense" if isinstance(choice, KeepDense) else str(choice)


def plan_sentences(plan: RankPlan) -> list[str]:
    """Returns what a plan expects of the whole model, and what a quick look at it found."""
    if plan.predicted_speedup is None:
        return []
    text = f"predicted speedup {plan.predicted_speedup:.2f}×"
    if plan.measured_speedup is not None:
        text += f", {plan.measured_speedup:.2f}× measured on the whole model"
    sentences = [f"{text}; ranks step by {plan.quantum}{_finer_steps(plan)}"]
    if plan.predicted_error is not None:
        sentences.append(f"predicted relative error of the outputs before fine-tuning: {plan.predicted_error:.3f}")
    return sentences


def _finer_steps(plan: RankPlan) -> str:
    """Says so where some layer's ranks step by less."""
    ranks = [rank for layer in plan.factorised for rank in ranks_of(layer.choice)]
    return ", in narrow layers by less" if any(rank % plan.quantum for rank in ranks) else ""


def comparison_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Returns (quantity, dense, low-rank, change) for the table every report opens with."""
    accuracy, dense, lowrank = record.accuracy, record.latency["dense"], record.latency["lowrank"]
    points = 100 * (accuracy.lowrank - accuracy.dense)
    return [
        ("accuracy", f"{accuracy.dense:.2%}", f"{accuracy.lowrank:.2%}", f"{points:+.2f} points"),
        ("parameters", count(record.parameters.dense), count(record.parameters.lowrank), share(record.parameters)),
        ("MACs per sample", count(record.macs.dense), count(record.macs.lowrank), share(record.macs)),
        ("latency p50, ms", *_pair_of_latencies(dense, lowrank, "p50_ms"), speedup(record.speedup)),
        ("latency p90, ms", *_pair_of_latencies(dense, lowrank, "p90_ms"), ""),
        ("cold start, ms", *_pair_of_latencies(dense, lowrank, "cold_start_ms"), ""),
        (
            "training step, dense = 1",
            "1",
            f"{1 / record.training_speedup.estimate:.2f}",
            speedup(record.training_speedup),
        ),
    ]


def run_tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Returns (quantity, low-rank's value, how it compares) for the four numbers beside the speedup."""
    accuracy, training = record.accuracy, record.training_speedup
    points = 100 * (accuracy.lowrank - accuracy.dense)
    interval = f"interval {training.low:.2f} to {training.high:.2f}"
    return [
        ("Accuracy", f"{accuracy.lowrank:.2%}", f"{points:+.2f} points from {accuracy.dense:.2%}"),
        ("Parameters", share(record.parameters), _from_to(record.parameters)),
        ("MACs per sample", share(record.macs), _from_to(record.macs)),
        (
            "Training step",
            f"{training.estimate:.2f}×",
            interval if training.demonstrated else f"not demonstrated, {interval}",
        ),
    ]


def _from_to(pair: Pair) -> str:
    return f"{count(pair.dense)} → {count(pair.lowrank)}"


def _pair_of_latencies(dense: Latency, lowrank: Latency, field: str) -> tuple[str, str]:
    return milliseconds(getattr(dense, field)), milliseconds(getattr(lowrank, field))
