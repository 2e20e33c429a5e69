"""The process that compiles: `python -m lrd_deploy.engines.compile_worker PLAN.json RESULT.json`.

It is one of its own, since polygraphy serves only one of TensorRT and TensorRT-RTX in a process, their libraries write
to stdout themselves, and a compiler that crashes must not take its caller along. What it says becomes the log.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path

from lrd_deploy.engines.tensorrt_compile import CompilePlan, compile_engine
from lrd_deploy.errors import LrdError


def end_with_parent() -> None:
    """Ends this process when its parent does, however that ends: stdin is a pipe that only the parent holds."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(plan_file: Path, result_file: Path) -> int:
    """Compiles what a plan says; returns the process' exit status."""
    from polygraphy.exception import PolygraphyException

    plan = CompilePlan.read(plan_file)
    try:
        compile_engine(importlib.import_module(plan.package), plan).write(result_file)
    except LrdError as problem:
        print(f"[!] {problem}")  # noqa: T201, the log
        return 1
    except PolygraphyException:
        return 1  # polygraphy has said it
    return 0


if __name__ == "__main__":
    end_with_parent()
    status = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(status)  # the thread that waits for the parent holds stdin
