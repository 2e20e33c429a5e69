import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrd_deploy.bench.process import run_worker
from lrd_deploy.bench.watchdog import loading_seconds, step_seconds, where_it_hung
from lrd_deploy.errors import BackendError
from lrd_deploy.records import Ratio

PLAN = Ratio(estimate=1, low=1, high=1, confidence=0.95, demonstrated=False, launches=2)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Writes a module for a worker to be."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(code):
        (tmp_path / "its_code.py").write_text(f"import os, signal, subprocess, sys\nfrom pathlib import Path\n{code}\n")
        return "its_code"

    return write


def run(module, timeout_seconds=60.0):
    return run_worker(module, PLAN, Ratio, threads=1, timeout_seconds=timeout_seconds)


def is_running(pid):
    """A zombie that nobody reaped yet has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid):
    """A killed process ends when the system gets to it; what nobody killed would stay for good."""
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        os.sched_yield()
    return not is_running(pid)


def test_a_worker_returns_what_it_wrote(worker):
    assert run(worker("Path(sys.argv[2]).write_text(Path(sys.argv[1]).read_text())")) == PLAN


@pytest.mark.parametrize("last_act", ["signal.pause()", "sys.exit('no')", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_whichever_way_a_worker_ends_its_children_end_with_it(worker, tmp_path, last_act):
    child = "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    module = worker(f"{child}\nPath({str(tmp_path)!r}, 'pid').write_text(str(child.pid))\n{last_act}")
    with pytest.raises(BackendError, match=r"no result within 3 s|: no;|killed by SIGKILL"):
        run(module, timeout_seconds=3.0)
    assert ends(int((tmp_path / "pid").read_text()))


def test_an_interrupted_measurement_leaves_no_worker(worker, monkeypatch):
    waits, wait = [], subprocess.Popen.wait

    def interrupted(process, *timeout):
        waits.append(process)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return wait(process, *timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(worker("signal.pause()"))
    assert ends(waits[0].pid)


def test_a_worker_that_hangs_ends_itself_and_says_where(worker):
    module = worker(
        "from lrd_deploy.bench.watchdog import expect_within\ndef stuck():\n    signal.pause()\n"
        "expect_within(0.01)\nstuck()"
    )
    with pytest.raises(BackendError, match=r"it hung and was ended: no step within 0:00:00\.01.*, in File .* in stuck"):
        run(module)


def test_a_worker_that_goes_on_in_time_is_left_alone(worker):
    code = "from lrd_deploy.bench.watchdog import cancel, expect_within\nfor _ in range(3):\n"
    code += "    expect_within(60)\ncancel()"
    assert run(worker(f"{code}\nPath(sys.argv[2]).write_text(Path(sys.argv[1]).read_text())")) == PLAN


def test_patience_grows_with_the_model(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.touch()
    with large.open("wb") as file:
        os.truncate(file.fileno(), 10**9)
    assert loading_seconds(large) - loading_seconds(small) == pytest.approx(100)
    assert step_seconds(0.001) == pytest.approx(90.6)
    assert step_seconds(10.0) > 3 * 20 * 10.0


def test_other_last_words_are_not_taken_for_a_hang():
    assert where_it_hung("Traceback\n  File x\nTimeoutError: no") is None
