"""The golden reports; run as a module, writes them again: `python -m tests.report.ci.golden`. Read what changed."""

from pathlib import Path

from lrd_deploy.report.ci.bencher import bencher_json
from lrd_deploy.report.ci.github import annotations, step_summary
from lrd_deploy.report.ci.github_benchmark import benchmark_json
from lrd_deploy.report.ci.gitlab import open_metrics
from lrd_deploy.report.ci.junit import junit_xml
from lrd_deploy.report.ci.schema import gate_result_schema
from lrd_deploy.report.trend import trend_markdown
from tests.report.ci.results import HISTORY, RESULTS

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "report" / "golden"
SCHEMA = ROOT / "docs" / "gate-result.schema.json"
FORMATS = {
    "junit.xml": junit_xml,
    "annotations.txt": annotations,
    "summary.md": step_summary,
    "metrics.txt": open_metrics,
    "benchmark.json": benchmark_json,
    "bencher.json": bencher_json,
}


def reports() -> dict[Path, str]:
    """Every golden file with what it should hold."""
    written = {GOLDEN / name / file: FORMATS[file](RESULTS[name]) for name in RESULTS for file in FORMATS}
    return written | {GOLDEN / "history.md": trend_markdown(HISTORY), SCHEMA: gate_result_schema()}


if __name__ == "__main__":
    for path, text in reports().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
