"""Our own loop in several processes, joined over gloo as a launcher joins them."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lrd_deploy.errors import UsageError
from lrd_deploy.train import devices
from lrd_deploy.train.devices import SHARDING, make_accelerator
from tests.train.our_loop import EPOCHS, STEPS

ROOT = Path(__file__).parents[2]
EXACT = 1e-12  # float64: sums of some hundred products, over 32 steps


def launched(*command, processes=2):
    """Runs `python -m …` in that many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def our_loop(what, folder, processes=2):
    folder.mkdir()
    done = launched("tests.train.our_loop", what, folder, processes=processes)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("what", ["train", "accumulate"])
def test_two_processes_end_as_one_does_and_send_only_what_learns(tmp_path, what):
    one, other = our_loop(what, tmp_path / "two")
    assert one == other
    (alone,) = our_loop(what, tmp_path / "one", processes=1)
    for name in ("weights", "loss"):
        np.testing.assert_allclose(one[name], alone[name], rtol=0, atol=EXACT)
    assert alone["traffic"] == []
    phases = [phase for phase in one["traffic"] if phase["steps"]]
    assert len(phases) == EPOCHS  # which is three switches
    for phase in phases:
        steps = STEPS // 2 if what == "accumulate" else STEPS
        assert phase["steps"] == steps
        assert phase["bytes"] == steps * phase["learning"]
    assert phases[0]["learning"] + phases[1]["learning"] < 2 * one["factors"]
    assert [phase["learning"] for phase in phases[2:]] == [phase["learning"] for phase in phases[:2]]


def test_all_processes_save_when_one_finds_it_is_time(tmp_path):
    main, other = our_loop("late", tmp_path / "late")
    assert main["saved"] == EPOCHS * STEPS
    assert other["saved"] == 0  # the main process writes


def test_all_processes_stop_when_the_loss_of_one_is_not_finite(tmp_path):
    for end in our_loop("poisoned", tmp_path / "poisoned"):
        assert "a loss of nan" in end["refused"]


def test_batches_that_cannot_be_shared_evenly_are_refused(tmp_path):
    for end in our_loop("uneven", tmp_path / "uneven"):
        assert "batches of 15" in end["refused"]
        assert "a multiple of 2" in end["refused"]


def test_the_command_line_trains_in_several_processes_and_answers_once(tmp_path, tiny_recipe):
    recipe, out = tiny_recipe(), tmp_path / "run"
    command = ("lrd_deploy.cli.main", "train", recipe, "--out", out, "--json")
    done = launched(*command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [epoch["frozen"] for epoch in result["epochs"]] == [{"B": 11}, {"A": 11}]
    assert done.stderr.count("lowrank ") == 1
    again = launched(*command)
    assert json.loads(again.stdout) == result
    assert "unchanged" in again.stderr


@pytest.mark.slow
def test_a_whole_run_in_several_processes(tmp_path, tiny_recipe):
    out = tmp_path / "run"
    done = launched("lrd_deploy.cli.main", "run", tiny_recipe(), "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["speedup"]["estimate"] > 0
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("kind", SHARDING, ids=str)
def test_sharded_parameters_are_refused_with_the_reason(kind, monkeypatch):
    monkeypatch.setattr(devices, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind))
    with pytest.raises(UsageError, match=f"accelerate's {kind.value}; .*half of them cannot be frozen"):
        make_accelerator(seed=0)
