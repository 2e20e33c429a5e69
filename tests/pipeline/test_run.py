"""Whole runs of a small recipe: what comes out, what is kept, what changes make again."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from lrd_deploy.engines import BACKENDS
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.errors import BackendError, InputError, StorageError, TrainingDiverged, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline import STAGES, run
from lrd_deploy.pipeline.deployment_stages import build_stage
from lrd_deploy.pipeline.workspace import open_workspace
from lrd_deploy.recipe import load_recipe
from lrd_deploy.records import RunRecord

RESULTS = ("dense/model.safetensors", "plan.json", "lowrank/model.safetensors", "dense.onnx", "lowrank.onnx")


class Stages:
    """An observer that remembers which stages ran."""

    def __init__(self):
        self.ran = []

    def stage_started(self, _stage):
        pass

    def stage_finished(self, stage, _seconds, *, resumed):
        if not resumed:
            self.ran.append(stage)

    def progress(self, *_):
        pass

    def note(self, _text):
        pass


def ran(recipe_path, folder, until="rewrite"):
    observer = Stages()
    run(load_recipe(str(recipe_path)), folder, recipe_folder=recipe_path.parent, until=until, observer=observer)
    return observer.ran


def digests(folder):
    return {name: sha256_of(folder / name) for name in RESULTS}


def test_a_second_run_does_nothing_and_a_changed_recipe_only_what_depends_on_it(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    assert ran(tiny_recipe(), out) == list(STAGES[:5])
    assert ran(tiny_recipe(), out) == []
    assert ran(tiny_recipe(rewrite={"quantum": 16}), out) == ["rewrite"]
    assert ran(tiny_recipe(export={"opset": 21}), out) == ["export", "rewrite"]


@pytest.mark.parametrize(
    "changes",
    [
        {"dense": {"epochs": 2, "learning_rate": 0.001}},
        {"fine_tune": {"epochs": 2, "learning_rate": 0.01, "freezing": "regular"}},
        {"ranks": {"policy": "uniform", "alpha": 3}},
        {"skip": ["*shortcut*"]},
        {"data": {"digits": {"image_size": 8, "batch_size": 64}}},
        {"seed": 1},
        {"export": {"opset": 22}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_recipe_ends_as_it_would_in_a_new_folder(tiny_recipe, tmp_path, changes):
    ran(tiny_recipe(), tmp_path / "used")
    changed = tiny_recipe(**changes)
    ran(changed, tmp_path / "used")
    ran(changed, tmp_path / "new")
    assert digests(tmp_path / "used") == digests(tmp_path / "new")


class Cut(BaseException):
    """Ends a run as a kill would."""


class CutIn(Stages):
    """Ends the run in the second epoch of a stage's training."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def progress(self, what, *_):
        if what.startswith(f"{self.what}, epoch 2"):
            raise Cut


def test_an_unfinished_stage_of_another_recipe_is_not_resumed(tiny_recipe, tmp_path):
    with pytest.raises(Cut):
        run(load_recipe(str(tiny_recipe())), tmp_path / "used", until="dense", observer=CutIn("training dense"))
    changed = tiny_recipe(dense={"epochs": 2, "learning_rate": 0.001})
    ran(changed, tmp_path / "used")
    ran(changed, tmp_path / "new")
    assert digests(tmp_path / "used") == digests(tmp_path / "new")


def test_a_file_that_was_tampered_with_is_made_again(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    ran(tiny_recipe(), out)
    before = digests(out)
    (out / "lowrank.onnx").write_bytes(b"tampered")
    (out / "plan.json").unlink()
    assert ran(tiny_recipe(), out) == ["plan", "rewrite"]
    assert digests(out) == before


def test_two_runs_of_one_recipe_give_the_same_bytes(tiny_recipe, tmp_path):
    for name in ("one", "two"):
        ran(tiny_recipe(), tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_padding_brings_every_rank_to_the_quantum(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    ran(tiny_recipe(), out)
    report = json.loads((out / "rewrite.json").read_text())["report"]
    assert report["modified"]
    assert report["applied"]
    assert all(entry["rule"] == "pad_rank" for entry in report["applied"])


@pytest.mark.rtx
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the rtx extra is not installed")
def test_a_tensorrt_compiler_accepts_both_arms(tiny_recipe, tmp_path):
    recipe, out = load_recipe(str(tiny_recipe())), tmp_path / "run"
    exported, rewritten = run_of(recipe, out)
    with open_workspace(recipe, None, out, SilentObserver()) as work:
        built = build_stage(work, exported, rewritten)
    assert built.refused == {}
    assert {"tensorrt-rtx dense", "tensorrt-rtx lowrank", "onnxruntime dense", "onnxruntime lowrank"} == set(
        built.engines
    )


def test_an_engine_that_a_backend_refuses_is_recorded_and_the_run_goes_on(tiny_recipe, tmp_path, monkeypatch):
    class Choosy(OnnxRuntime):
        def build(self, model, *rest):
            if model.stem == "lowrank":
                raise BackendError("building", found="an operator", accepted="others", remedy="another model")
            return super().build(model, *rest)

    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.delitem(BACKENDS, name)
    monkeypatch.setitem(BACKENDS, "onnxruntime", Choosy())
    recipe, out = load_recipe(str(tiny_recipe())), tmp_path / "run"
    exported, rewritten = run_of(recipe, out)
    with open_workspace(recipe, None, out, SilentObserver()) as work:
        built = build_stage(work, exported, rewritten)
    assert "onnxruntime dense" in built.engines
    assert "an operator" in built.refused["onnxruntime lowrank"]


def run_of(recipe, folder):
    result = run(recipe, folder, until="rewrite")
    return result.exported, result.rewritten


def test_weights_that_are_given_are_used_and_not_trained_again(tiny_recipe, tmp_path):
    ran(tiny_recipe(), tmp_path / "first", until="dense")
    model = load_recipe(str(tiny_recipe())).model.transformers
    weights = tmp_path / "first" / "dense" / "model.safetensors"
    recipe = tiny_recipe(model={"transformers": model, "weights": str(weights)})
    ran(recipe, tmp_path / "second", until="dense")
    record = json.loads((tmp_path / "second" / "dense.json").read_text())
    assert (record["trained_here"], record["epochs"]) == (False, [])
    assert sha256_of(tmp_path / "second/dense/model.safetensors") == sha256_of(weights)


USER_CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def model(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))

def data():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=g)
    x = torch.randn(200, 12, generator=g) + 2 * torch.eye(3, 12)[y]
    split = TensorDataset(x[:150], y[:150]), TensorDataset(x[150:], y[150:])
    return DataLoader(split[0], 30, shuffle=True), DataLoader(split[1], 50)
"""


def test_a_users_own_model_and_data_run_from_beside_the_recipe(tiny_recipe, tmp_path):
    (tmp_path / "own_net.py").write_text(USER_CODE)
    recipe = tiny_recipe(
        model={"python": "own_net:model", "arguments": {"width": 64}}, data={"python": "own_net:data"}, dense=None
    )
    out = tmp_path / "run"
    assert ran(recipe, out) == list(STAGES[:5])
    (tmp_path / "unrelated.py").write_text("print(1)\n")
    assert ran(recipe, out) == []
    (tmp_path / "own_net.py").write_text(USER_CODE + "\n# changed\n")
    assert "dense" in ran(recipe, out)


def test_a_second_run_in_the_same_folder_at_the_same_time_is_refused(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    take_lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    holder = f"{take_lock}; print('held', flush=True); sys.stdin.read()"
    out.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", holder, out / ".lock"], **pipes) as process:
        process.stdout.readline()
        with pytest.raises(UsageError, match="another run is using it"):
            ran(tiny_recipe(), out)
        process.kill()
    assert ran(tiny_recipe(), out, until="dense") == ["dense"]


def test_a_folder_that_cannot_be_made_is_told(tiny_recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="making the run's folder"):
        ran(tiny_recipe(), tmp_path / "file" / "run")


def test_a_plan_that_leaves_everything_dense_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match=r"every layer would stay dense: .*the recipe skips"):
        ran(tiny_recipe(ranks={"policy": "uniform", "round_to": 64}, skip=["resnet*"]), tmp_path / "run")


def test_skipping_every_layer_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(InputError, match=r"the recipe skips '\*'"):
        ran(tiny_recipe(skip=["*"]), tmp_path / "run")


def test_training_that_diverges_keeps_what_was_good(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    ran(tiny_recipe(), out, until="dense")
    kept = sha256_of(out / "dense.json")
    with pytest.raises(TrainingDiverged, match="lower 'learning_rate'"):
        ran(tiny_recipe(fine_tune={"epochs": 2, "learning_rate": 1e30}), out, until="lowrank")
    assert sha256_of(out / "dense.json") == kept
    assert ran(tiny_recipe(), out, until="lowrank") == ["lowrank"]


def test_an_unknown_stage_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match="one of: dense, plan, lowrank"):
        ran(tiny_recipe(), tmp_path / "run", until="nonsense")


@pytest.mark.nightly
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(tiny_recipe, tmp_path):
    recipe, whole, cut = tiny_recipe(), tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "lrd_deploy.cli.main", "run", str(recipe), "--json", "--out"]
    subprocess.run([*command, whole], check=True, capture_output=True)
    for stage in STAGES[:-1]:
        kill_within(stage, [*command, cut], cut)
    done = subprocess.run([*command, cut], check=True, capture_output=True, text=True)
    assert digests(cut) == digests(whole)
    assert RunRecord.model_validate_json(done.stdout).layers == RunRecord.read(whole / "run.json").layers
    assert not list(cut.rglob(".partial-*"))


INTO_THE_STAGE = {"dense": 3.0, "lowrank": 0.3, "export": 0.3, "bench": 1.0, "training_bench": 1.0}  # seconds


def kill_within(stage, command, folder):
    """Starts a run, lets it enter the stage, and kills it and its workers there."""
    before = STAGES.index(stage)
    stamp = folder / "stages" / f"{STAGES[before - 1]}.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, start_new_session=True) as process:
        while before and not stamp.exists():
            assert process.poll() is None, f"the run ended before the stage {stage}"
            time.sleep(0.002)
        time.sleep(INTO_THE_STAGE.get(stage, 0.0))
        assert process.poll() is None, f"the run ended within the stage {stage}"
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_process_killed_within_an_epoch_resumes_to_the_very_same_weights(tiny_recipe, tmp_path):
    recipe = tiny_recipe(
        fine_tune={"epochs": 4, "learning_rate": 0.02, "freezing": "sequential"}, progress={"checkpoint_minutes": 1e-9}
    )

    def command(out):
        return [sys.executable, "-m", "lrd_deploy.cli.main", "train", str(recipe), "--out", str(out), "--json"]

    whole = json.loads(subprocess.run(command(tmp_path / "whole"), capture_output=True, check=True).stdout)
    with subprocess.Popen(command(tmp_path / "cut"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "cut").glob("lowrank/checkpoints/*/epoch-00001-0000000[1-9]")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
        process.kill()
    resumed = json.loads(subprocess.run(command(tmp_path / "cut"), capture_output=True, check=True).stdout)
    assert resumed["sha256"] == whole["sha256"]
    assert [epoch["frozen"] for epoch in resumed["epochs"]] == [epoch["frozen"] for epoch in whole["epochs"]]
