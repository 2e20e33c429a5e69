"""A gate's figures: every launch of a case, against the lines that decide."""

from __future__ import annotations

from math import expm1
from typing import Any

from lrd_deploy.records import CaseEvidence, CaseVerdict, GatePolicy, GateResult, LaunchRatio
from lrd_deploy.report.canvas import AMBER, BAD, BLUE, DENSE, INK, Plot, Sheet, add_legend, new_axes, on_both_sheets
from lrd_deploy.report.gate_wording import change


def case_plots(result: GateResult) -> list[tuple[CaseEvidence, Plot]]:
    """Returns a plot for every case that was timed."""
    verdicts = {case.name: case for case in result.cases}
    return [
        (case, _case_plot(number, case, verdicts.get(case.name), result.policy))
        for number, case in enumerate(result.evidence.cases)
        if case.launches
    ]


def _case_plot(number: int, case: CaseEvidence, verdict: CaseVerdict | None, policy: GatePolicy) -> Plot:
    launches = (*case.launches, *case.confirming)
    titles = {
        arm: [_title(order, launch, arm, case.against) for order, launch in enumerate(launches, 1)]
        for arm in ("candidate", "control")
    }

    def draw(sheet: Sheet) -> Any:
        figure, axes = new_axes(sheet, height=1.3 + 0.14 * len(launches) + (0.3 if sheet.is_narrow else 0))
        if verdict is not None and verdict.change is not None:
            axes.axvspan(100 * verdict.low, 100 * verdict.high, color=BLUE, alpha=0.16, linewidth=0, label="its bounds")
            axes.axvline(100 * verdict.change, color=BLUE, linewidth=1.5, label="change")
        axes.axvline(0, color=INK, linestyle=":", linewidth=1)
        axes.axvline(100 * policy.threshold, color=AMBER, linestyle="--", linewidth=1.5, label="threshold")
        axes.axvline(100 * policy.max_slowdown, color=BAD, linewidth=1.5, label="largest slowdown")
        _launch_marks(axes, launches)
        if case.confirming:
            axes.axhline(len(case.launches) + 0.5, color=INK, linewidth=0.6)
        axes.set_ylim(len(launches) + 0.7, 0.3)
        axes.margins(x=0.08)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("launch")
        axes.set_xlabel(f"slower than the {case.against} by, %")
        add_legend(figure, sheet, columns=6)
        return figure

    found = ", ".join(change(expm1(launch.candidate)) for launch in launches)
    control = ", ".join(change(expm1(launch.control)) for launch in launches)
    label = (
        f"{case.name}: change of the candidate in each launch: {found}; of the {case.against}'s own copy: {control}; "
        f"threshold {policy.threshold:.1%}, largest slowdown {policy.max_slowdown:.1%}"
    )
    return on_both_sheets(f"case{number}", label, draw, titles)


def _launch_marks(axes: Any, launches: tuple[LaunchRatio, ...]) -> None:
    rows = range(1, len(launches) + 1)
    shares = [100 * expm1(launch.control) for launch in launches]
    axes.plot(shares, rows, "s", color=DENSE, markersize=4, fillstyle="none", label="control", gid="control")
    shares = [100 * expm1(launch.candidate) for launch in launches]
    axes.plot(shares, rows, "o", color=BLUE, markersize=4.5, label="candidate", gid="candidate")


def _title(order: int, launch: LaunchRatio, arm: str, against: str) -> str:
    ratio = launch.candidate if arm == "candidate" else launch.control
    first, other = (against, "candidate") if launch.base_first else ("candidate", against)
    unsettled = "" if launch.settled else ", unsettled"
    return f"launch {order}, {arm}: {change(expm1(ratio))}; the {first} was loaded before the {other}{unsettled}"
