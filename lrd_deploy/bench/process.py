"""Starting measurement workers: fresh interpreters with one thread per library and a fixed hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from lrd_deploy.errors import BackendError
from lrd_deploy.records import Record

R = TypeVar("R", bound=Record)


def run_worker(module: str, plan: Record, result: type[R], *, threads: int, timeout_seconds: float = 600.0) -> R:
    """Runs `python -m module PLAN RESULT` in a fresh process and returns what it wrote.

    Raises:
        BackendError: the worker failed, died or hung; its last words are quoted.
    """
    with tempfile.TemporaryDirectory(prefix="lrd-deploy-") as folder:
        plan_file, result_file = Path(folder, "plan.json"), Path(folder, "result.json")
        plan.write(plan_file)
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, plan_file, result_file],
                env=_environment(threads),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise _failed(module, f"no result within {timeout_seconds:.0f} s") from exc
        if done.returncode:
            last_words = " ".join(done.stderr.strip().splitlines()[-3:])
            raise _failed(module, last_words or f"it ended with status {done.returncode}")
        return result.read(result_file)


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    fixed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "PYTHONHASHSEED": "0"}
    # The caller may have found its own modules through sys.path; a worker must find the same.
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _failed(module: str, found: str) -> BackendError:
    return BackendError(
        f"measuring in a fresh process ({module.rpartition('.')[2]})",
        found=found,
        accepted="a worker that ends with its samples",
        remedy="check that both models run, and that the machine has free memory",
    )
