"""Starting measurement workers: fresh interpreters with one thread per library and a fixed hash seed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from lrd_deploy.bench.watchdog import where_it_hung
from lrd_deploy.errors import BackendError
from lrd_deploy.records import Record

R = TypeVar("R", bound=Record)


def run_worker(module: str, plan: Record, result: type[R], *, threads: int, timeout_seconds: float = 600.0) -> R:
    """Runs `python -m module PLAN RESULT` in a fresh process and returns what it wrote.

    Nothing of it is left running afterwards, whichever way it ends: it is killed together with its children.

    Raises:
        BackendError: the worker failed, died or hung; its last words are quoted.
    """
    with tempfile.TemporaryDirectory(prefix="lrd-deploy-") as folder:
        plan_file, result_file, words = (Path(folder, name) for name in ("plan.json", "result.json", "stderr"))
        plan.write(plan_file)
        with words.open("w") as stderr:
            worker = subprocess.Popen(
                [sys.executable, "-m", module, plan_file, result_file],
                env=_environment(threads),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                process_group=0,
            )
        try:
            status = worker.wait(timeout_seconds)
        except subprocess.TimeoutExpired as exc:
            raise _failed(module, f"no result within {timeout_seconds:.0f} s") from exc
        finally:
            _end_with_children(worker)
        if status:
            raise _failed(module, _last_words(words, status))
        return result.read(result_file)


def _end_with_children(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _last_words(stderr: Path, status: int) -> str:
    text = stderr.read_text(errors="replace").strip()
    ended = f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
    return where_it_hung(text) or " ".join(text.splitlines()[-3:]) or ended


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    fixed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "PYTHONHASHSEED": "0"}
    fixed["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts
    # The caller may have found its own modules through sys.path; a worker must find the same.
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _failed(module: str, found: str) -> BackendError:
    return BackendError(
        f"measuring in a fresh process ({module.rpartition('.')[2]})",
        found=found,
        accepted="a worker that ends with its samples",
        remedy="check that both models run, and that the machine has free memory",
    )
