"""Starting the process that compiles, and keeping what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lrd_deploy.engines.tensorrt_compile import CompilePlan, CompileResult
from lrd_deploy.errors import BackendError
from lrd_deploy.files import storage_errors, write_whole

_WARNING, _ERROR = re.compile(r"\s*\[W\] "), re.compile(r"\s*\[[E!]\] ")
_LAST_WORDS, _LONGEST = 3, 600


def log_of(engine: Path) -> Path:
    """Returns where the log of an engine's build is: beside it."""
    return engine.with_name(engine.name + ".log")


def compile_in_own_process(plan: CompilePlan, log: Path) -> tuple[CompileResult, int]:
    """Compiles in a fresh process; its output becomes the log, also when it fails.

    Returns:
        What the process reported, and the number of warnings in its log.

    Raises:
        BackendError: the compiler refused the model or died; its last words are quoted.
        StorageError: the log cannot be written.
    """
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        plan_file, result_file = plan.write(Path(folder, "plan.json")), Path(folder, "result.json")
        command = [sys.executable, "-u", "-m", "lrd_deploy.engines.compile_worker", plan_file, result_file]
        status: list[int] = []
        write_whole(log, lambda temporary: status.append(_run(command, temporary)))
        lines = log.read_text(errors="replace").splitlines()
        if status[0]:
            raise _failed(plan, status[0], lines, log)
        return CompileResult.read(result_file), sum(bool(_WARNING.match(line)) for line in lines)


def _run(command: list[str | Path], log: Path) -> int:
    """Runs to the end, or kills it when this process is interrupted; stdin ends with this process."""
    with storage_errors("writing", log), log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()


def _environment() -> dict[str, str]:
    """Ours, where the modules that this process found through sys.path are found again."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _failed(plan: CompilePlan, status: int, lines: list[str], log: Path) -> BackendError:
    said = [line for line in lines if _ERROR.match(line)] or lines
    last_words = " ".join(" ".join(said[-_LAST_WORDS:]).split())[-_LONGEST:]
    died = f"the compiler was ended by signal {-status}" if status < 0 else f"the compiler ended with status {status}"
    return BackendError(
        f"building '{plan.model}' with {plan.package.replace('_', '-')}",
        found=last_words if status > 0 and last_words else f"{died}; {last_words or 'it said nothing'}",
        accepted="a graph whose every node TensorRT's parser and compiler take",
        remedy=f"look up the node it names, or read '{log}'; 'lrd-deploy export' writes graphs that pass",
    )
