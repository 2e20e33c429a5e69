"""The page of a run of ResNet-50's size: how large its file is, and how soon Chromium paints it.

    python benchmarks/report_page.py [--out FOLDER]

The run is a real one: ResNet-50's shape on 32-pixel digits, ranks by measured latency, with few images, epochs and
launches, since the page's size depends on the layers alone. About 5 minutes on 2 cores; a run that FOLDER holds
already is taken as it is. The first paint is that of a browser context that has never seen the page, as the browser
itself reports it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median

import yaml
from playwright.sync_api import Browser, sync_playwright

from lrd_deploy.pipeline import run
from lrd_deploy.recipe import parse_recipe
from lrd_deploy.report.html import write_report

LARGEST_MB, LATEST_S, CONTEXTS = 5.0, 1.0, 7
BINARIES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
RECIPE = {
    "name": "resnet50",
    "model": {
        "transformers": {
            "model_type": "resnet",
            "layer_type": "bottleneck",
            "num_channels": 1,
            "embedding_size": 64,
            "hidden_sizes": [256, 512, 1024, 2048],
            "depths": [3, 4, 6, 3],
            "num_labels": 10,
        }
    },
    "data": {"digits": {"image_size": 32, "test_share": 0.8, "batch_size": 16}},
    "dense": {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.001},
    "ranks": {"policy": "latency", "target_speedup": 1.5},
    "fine_tune": {"epochs": 4, "optimizer": "adamw", "learning_rate": 0.0005, "freezing": "sequential"},
    "calibration": {"samples": 64},
    "bench": {"batch": 8, "launches": 4, "rounds": 4, "training_launches": 4},
}


def main() -> None:
    """Makes the run where it is not there yet, writes its page and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the run here")
    folder = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="lrd-deploy-page-"))
    run(parse_recipe(yaml.safe_dump(RECIPE), source=__file__, folder=None), folder)
    page = write_report(folder)
    paints = first_paints_s(page)
    print("| the page of a run of ResNet-50's size | target | measured |\n|---|---|---|")
    print(f"| size | ≤ {LARGEST_MB:g} MB | {page.stat().st_size / 1e6:.2f} MB |")
    print(f"| first paint, median of {CONTEXTS} | ≤ {LATEST_S:g} s | {median(paints):.2f} s |")
    print(f"\nFirst paints: {', '.join(f'{paint:.2f}' for paint in paints)} s. Page: {page}")


def first_paints_s(page: Path) -> list[float]:
    """Returns the first contentful paint in each of several fresh browser contexts, in seconds."""
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        raise SystemExit(f"none of {', '.join(BINARIES)} is on the path; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=QUIET)
        paints = [_first_paint_s(browser, page) for _ in range(CONTEXTS)]
        browser.close()
    return paints


def _first_paint_s(browser: Browser, page: Path) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    paint = "performance.getEntriesByName('first-contentful-paint')[0]"
    tab.wait_for_function(paint)
    milliseconds = tab.evaluate(f"{paint}.startTime")
    context.close()
    return milliseconds / 1000


if __name__ == "__main__":
    main()
