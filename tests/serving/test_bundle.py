"""Bundles of small ONNX files: what is written, what is refused, what a second packaging does."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from lrd_deploy.errors import BackendError, InputError, LrdError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.pipeline.packaging import PackageRequest, package_onnx
from lrd_deploy.records import BundleManifest
from lrd_deploy.serving.answers import compare_answers
from lrd_deploy.serving.check import check_bundle
from lrd_deploy.serving.repository import staging
from lrd_deploy.serving.triton_config import read_config
from tests.serving.graphs import MATMUL, OTHER_WEIGHTS, save, save_with_weights_beside


@pytest.fixture
def model(tmp_path):
    (tmp_path / "source").mkdir()
    return save(tmp_path / "source" / "m.onnx")


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "served" / "repository"


@pytest.fixture
def packaged(model, repository):
    package_onnx(model, PackageRequest(repository))
    return repository / "m"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_what_its_manifest_says(model, repository):
    result = package_onnx(model, PackageRequest(repository))
    (packaged,) = result.models
    manifest = BundleManifest.read(repository / "m" / "manifest.json")
    assert (packaged.outcome, packaged.number, packaged.manifest) == ("written", 1, manifest)
    assert {file.path for file in manifest.files} == set(contents(repository / "m")) - {"manifest.json"}
    assert (repository / "m" / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert manifest.latest.source.digests == {"model.onnx": sha256_of(model)}
    assert (manifest.latest.batches, manifest.latest.inputs_from) == ((1, 8), "random")
    assert manifest.latest.answers.passed
    assert any("random" in note for note in result.notes)
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]
    config = read_config(repository / "m" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", 64)


def test_packaging_twice_gives_the_same_bytes(model, tmp_path):
    for name in ("one", "two"):
        package_onnx(model, PackageRequest(tmp_path / name))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_packaging_the_same_again_does_nothing_and_says_so(model, packaged, repository):
    before = {path: path.stat().st_mtime_ns for path in packaged.rglob("*")}
    (again,) = package_onnx(model, PackageRequest(repository)).models
    assert (again.outcome, again.number) == ("unchanged", 1)
    assert {path: path.stat().st_mtime_ns for path in packaged.rglob("*")} == before


def test_other_settings_change_the_configuration_and_no_version(model, packaged, repository):
    (again,) = package_onnx(model, PackageRequest(repository, instances=3)).models
    assert (again.outcome, again.number) == ("updated", 1)
    assert read_config(packaged / "config.pbtxt").instance_group[0].count == 3
    assert check_bundle(packaged).passed


def test_other_inputs_replace_those_that_no_version_needs(model, packaged, repository):
    np.savez(model.with_name("other.npz"), x=np.ones((1, 4), np.float32))
    (again,) = package_onnx(model, PackageRequest(repository), model.with_name("other.npz")).models
    assert (again.outcome, again.number) == ("updated", 1)
    assert len(list((packaged / "warmup").iterdir())) == 2
    assert check_bundle(packaged).passed


def test_other_weights_become_the_next_version_and_the_first_stays(model, packaged, repository):
    first = (packaged / "1" / "model.onnx").read_bytes()
    save(model, OTHER_WEIGHTS)
    (again,) = package_onnx(model, PackageRequest(repository)).models
    assert (again.outcome, again.number) == ("written", 2)
    assert (packaged / "1" / "model.onnx").read_bytes() == first
    assert [version.number for version in again.manifest.versions] == [1, 2]
    found = check_bundle(packaged)
    assert found.passed
    assert [version.number for version in found.versions] == [1, 2]


def test_going_back_to_earlier_weights_is_a_new_version(model, repository):
    for text in (MATMUL, OTHER_WEIGHTS, MATMUL):
        save(model, text)
        (last,) = package_onnx(model, PackageRequest(repository)).models
    assert last.number == 3


def test_a_version_is_never_overwritten_by_other_bytes(model, packaged, repository):
    before = contents(packaged)
    save(model, OTHER_WEIGHTS)
    with pytest.raises(UsageError, match=r"a version 1 with other bytes; .*such as 2"):
        package_onnx(model, PackageRequest(repository, version=1))
    assert contents(packaged) == before


def test_a_number_can_be_chosen_and_an_earlier_one_is_said_not_to_be_served(model, repository):
    assert package_onnx(model, PackageRequest(repository, version=7)).models[0].number == 7
    save(model, OTHER_WEIGHTS)
    result = package_onnx(model, PackageRequest(repository, version=3))
    assert result.models[0].number == 3
    assert any("serves version 7, the latest, and not version 3" in note for note in result.notes)
    assert check_bundle(repository / "m").passed


def test_another_interface_is_refused_under_the_same_name(model, packaged, repository):
    before = contents(packaged)
    save(model, MATMUL.replace("x", "images"))
    with pytest.raises(UsageError, match=r"other inputs or outputs .*choose another --name"):
        package_onnx(model, PackageRequest(repository))
    assert contents(packaged) == before


def test_a_folder_of_someone_else_is_refused(model, repository):
    (repository / "m" / "1").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"something without a manifest\.json under that name"):
        package_onnx(model, PackageRequest(repository))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a b", "a\n", "é", "-a", "x" * 101])
def test_names_that_are_no_folder_and_url_are_refused(model, repository, name):
    with pytest.raises(UsageError, match="naming the model"):
        package_onnx(model, PackageRequest(repository, name=name))
    assert not repository.exists()


@pytest.fixture(scope="module")
def bundle_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "labels").write_text("a\nb\nc\n")
    save(folder / "m.onnx")
    package_onnx(folder / "m.onnx", PackageRequest(folder / "repository", labels=folder / "labels"))
    return contents(folder / "repository" / "m")


@pytest.fixture
def bundle(bundle_bytes, tmp_path):
    for name, data in bundle_bytes.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(data)
    return tmp_path / "m"


def test_any_flipped_byte_of_any_file_is_found(bundle, bundle_bytes):
    random = np.random.default_rng(0)
    for name, data in bundle_bytes.items():
        if name == "manifest.json":
            continue
        for position in {0, len(data) - 1, *random.integers(0, len(data), 20).tolist()}:
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(random.integers(8))
            (bundle / name).write_bytes(flipped)
            with pytest.raises(InputError, match=f"'{name}' has changed since"):
                check_bundle(bundle)
        (bundle / name).write_bytes(data)
    assert check_bundle(bundle).passed


def test_missing_and_extra_files_are_told_apart(bundle, bundle_bytes):
    for name in set(bundle_bytes) - {"manifest.json"}:
        (bundle / name).unlink()
        with pytest.raises(InputError, match=f"'{name}' is missing; every file in the manifest"):
            check_bundle(bundle)
        (bundle / name).write_bytes(bundle_bytes[name])
    for name in ("1/model.onnx.bak", "2/model.onnx", "warmup/more.bin", ".hidden"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).touch()
        with pytest.raises(InputError, match=rf"'{name}' is not in the manifest; .*remove it"):
            check_bundle(bundle)
        (bundle / name).unlink()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "1/../../secret"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(bundle, path):
    (bundle.parent / "secret").write_text("secret")
    change_manifest(bundle, lambda manifest: manifest["files"][0].update(path=path))
    with pytest.raises(LrdError, match=f"'{path}' leads out of the folder"):
        check_bundle(bundle)


def test_a_link_that_leads_out_of_the_folder_is_refused(bundle):
    original = bundle.parent / "elsewhere.onnx"
    (bundle / "1" / "model.onnx").rename(original)
    (bundle / "1" / "model.onnx").symlink_to(original)
    with pytest.raises(InputError, match=r"'1/model\.onnx' leads out of the folder"):
        check_bundle(bundle)


def change_manifest(bundle, change):
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_model_swapped_together_with_its_digest_answers_otherwise(bundle):
    swapped = save(bundle / "1" / "model.onnx", OTHER_WEIGHTS)

    def redigest(manifest):
        (entry,) = [file for file in manifest["files"] if file["path"] == "1/model.onnx"]
        entry.update(sha256=sha256_of(swapped), size_bytes=swapped.stat().st_size)

    change_manifest(bundle, redigest)
    found = check_bundle(bundle)
    assert not found.passed
    assert found.versions[0].answers.relative_l2 > found.versions[0].answers.tolerance


def test_a_model_that_answers_otherwise_leaves_nothing_behind(model, repository, monkeypatch):
    monkeypatch.setattr("lrd_deploy.pipeline.packaging.rounding_tolerance", lambda _model: -1.0)
    with pytest.raises(BackendError, match=r"packaged model 'm': answers that differ .*nothing was packaged"):
        package_onnx(model, PackageRequest(repository))
    assert list(repository.parent.parent.iterdir()) == [model.parent]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[n,2] x) => (float[n,2] y) { y = Log (x) }", "NaN or infinity among its answers"),
        ("g (float[n,2] x) => (int64[d,m] y) { y = NonZero (x) }", r"a batch of 1: the output 'y' of .*--max-batch 0"),
        ("g (int64[n,2] x) => (float[n,2] y) { y = Relu (x) }", r"asking '.*m\.onnx' in a fresh process: loading"),
        ("g (string[n,2] x) => (string[n,2] y) { y = Identity (x) }", "pass real inputs with --inputs"),
    ],
)
def test_models_that_cannot_be_checked_are_refused_and_leave_nothing_behind(model, repository, text, reason):
    save(model, text)
    with pytest.raises(LrdError, match=reason):
        package_onnx(model, PackageRequest(repository))
    assert not repository.exists()


def test_a_model_that_cuts_no_batch_is_served_without(model, repository):
    save(model, "g (float[n,2] x) => (int64[d,m] y) { y = NonZero (x) }")
    package_onnx(model, PackageRequest(repository, max_batch=0))
    config = read_config(repository / "m" / "config.pbtxt")
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (0, [-1, 2], [-1, -1])


def test_texts_are_checked_word_for_word(model, repository, tmp_path):
    save(model, "g (string[n,2] x) => (string[n,2] y) { y = Identity (x) }")
    np.savez(tmp_path / "x.npz", x=np.array([["a", "bé"], ["", "d"]]))
    (packaged,) = package_onnx(model, PackageRequest(repository), tmp_path / "x.npz").models
    assert packaged.manifest.latest.inputs_from == "file"
    assert check_bundle(repository / "m").passed


def test_a_different_text_is_a_difference():
    one, other = [{"y": np.array([["a", "b"]])}], [{"y": np.array([["a", "c"]])}]
    assert compare_answers(one, one, tolerance=1e-6, batches=(1,)).passed
    assert not compare_answers(one, other, tolerance=1e-6, batches=(1,)).passed


def test_weights_beside_the_model_go_with_it(repository, tmp_path):
    source = save_with_weights_beside(tmp_path / "source" / "m.onnx", "w/weights.bin")
    package_onnx(source, PackageRequest(repository))
    assert (repository / "m" / "1" / "w" / "weights.bin").stat().st_size == 48
    assert check_bundle(repository / "m").passed


def test_a_read_only_source_is_enough(model, repository):
    model.chmod(0o444)
    model.parent.chmod(0o555)
    try:
        assert package_onnx(model, PackageRequest(repository)).models[0].outcome == "written"
    finally:
        model.parent.chmod(0o755)
    assert sorted(path.name for path in model.parent.iterdir()) == ["m.onnx"]


def test_two_packagings_at_once_are_refused(model, repository):
    with (
        staging(repository),
        pytest.raises(UsageError, match="another packaging into it is under way"),
        staging(repository),
    ):
        pass
    assert package_onnx(model, PackageRequest(repository)).models[0].number == 1


def test_a_repository_that_is_a_disk_of_its_own_is_staged_within(model, repository, monkeypatch):
    repository.mkdir(parents=True)
    monkeypatch.setattr("os.access", lambda *_: False)  # nothing may be written beside it
    with staging(repository) as folder:
        assert folder.parent == repository
    package_onnx(model, PackageRequest(repository))
    assert [path.name for path in repository.iterdir()] == ["m"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lrd_deploy.pipeline.packaging import PackageRequest, package_onnx
import lrd_deploy.serving.repository as repository

moves, move = int(sys.argv[3]), repository.move_into_place

def count(written, target):
    global moves
    if moves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moves -= 1
    return move(written, target)

repository.move_into_place = count
package_onnx(Path(sys.argv[1]), PackageRequest(Path(sys.argv[2]), instances=2), Path(sys.argv[4]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moves", range(5))
def test_a_packaging_killed_at_any_move_is_completed_by_the_same_command(model, packaged, repository, moves):
    save(model, OTHER_WEIGHTS)
    inputs = model.with_name("other.npz")
    np.savez(inputs, x=np.ones((1, 4), np.float32))
    arguments = [sys.executable, "-c", KILLED, str(model), str(repository), str(moves), str(inputs)]
    killed = subprocess.run(arguments, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    read_config(packaged / "config.pbtxt")
    for version in ("1", *(["2"] if moves else [])):  # what Triton may load is whole
        onnx.checker.check_model(str(packaged / version / "model.onnx"))
    named = [entry.input_data_file for warm in read_config(packaged / "config.pbtxt").model_warmup
             for entry in warm.inputs.values()]  # fmt: skip
    assert all((packaged / "warmup" / name).is_file() for name in named)
    (again,) = package_onnx(model, PackageRequest(repository, instances=2), inputs).models
    assert again.number == 2
    assert check_bundle(packaged).passed
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_a_configuration_changed_by_hand_is_not_overwritten(model, packaged, repository):
    with (packaged / "config.pbtxt").open("a") as config:
        config.write("# by hand\n")
    with pytest.raises(InputError, match=r"'config\.pbtxt' has changed since; .*with options of 'lrd-deploy package'"):
        package_onnx(model, PackageRequest(repository, instances=2))
    assert (packaged / "config.pbtxt").read_text().endswith("# by hand\n")


def test_what_is_no_bundle_is_refused(packaged, repository):
    with pytest.raises(UsageError, match=r"no manifest\.json in it; .*pass REPO/NAME"):
        check_bundle(repository)
    (packaged / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="a BundleManifest written by this version"):
        check_bundle(packaged)


def test_a_full_disk_or_a_file_in_the_way_is_told(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file; a folder, or a path where one can be made"):
        package_onnx(model, PackageRequest(tmp_path / "file"))
    with pytest.raises(LrdError, match="file"):
        package_onnx(model, PackageRequest(tmp_path / "file" / "repository"))


def test_ctrl_c_leaves_nothing_behind(model, repository, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lrd_deploy.serving.bundle.answers_in_new_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        package_onnx(model, PackageRequest(repository))
    assert list(repository.parent.parent.iterdir()) == [model.parent]
    assert os.listdir(model.parent) == ["m.onnx"]


def test_a_file_that_changes_while_it_is_copied_is_not_packaged(model, repository, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", lambda _source, target: save(target, OTHER_WEIGHTS))
    with pytest.raises(InputError, match="a file that changed while it was copied"):
        package_onnx(model, PackageRequest(repository))
    assert not repository.exists()


def test_what_a_killed_packaging_had_not_removed_yet_is_removed_by_the_next(model, packaged, repository):
    leftover = packaged / "warmup" / f"input0-{'0' * 16}.bin"
    leftover.write_bytes(b"old")
    with pytest.raises(InputError, match="is not in the manifest"):
        check_bundle(packaged)
    package_onnx(model, PackageRequest(repository, instances=2))
    assert not leftover.exists()
    assert check_bundle(packaged).passed


@pytest.mark.parametrize("outside", ["../../x.bin", "/etc/hostname"])
def test_a_check_opens_no_file_without_a_digest(packaged, outside):
    manifest = json.loads((packaged / "manifest.json").read_text())
    manifest["versions"][0]["inputs"][0]["file"] = outside
    (packaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is read and has no digest"):
        check_bundle(packaged)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpu": True, "threads": 2}, "--threads 2 beside --gpu"),
        ({"max_batch": 0, "batch": 4}, "--batch 4 beside --max-batch 0"),
        ({"max_batch": 2, "batch": 4}, "--batch 4 beside --max-batch 2, below it"),
    ],
)
def test_options_that_would_do_nothing_are_refused(model, repository, options, told):
    with pytest.raises(UsageError, match=told):
        package_onnx(model, PackageRequest(repository, **options))


def test_weights_at_an_unusual_spelling_of_their_place_are_packaged(tmp_path, repository):
    path = save_with_weights_beside(tmp_path / "source" / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    (location,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    location.value = f"./{location.value}"
    path.write_bytes(model.SerializeToString())
    package_onnx(path, PackageRequest(repository))
    assert check_bundle(repository / "m").passed
