"""A bundle by itself: are its files what they were, and does its model still answer as the trained one did?"""

from __future__ import annotations

from pathlib import Path

from lrd_deploy.errors import UsageError, raise_all
from lrd_deploy.records import BundleCheck, BundleManifest, OutputDifference, PackagedVersion, VersionCheck
from lrd_deploy.serving.answers import answers_in_new_process, compare_answers, read_answers
from lrd_deploy.serving.manifest import MANIFEST_NAME, file_problems
from lrd_deploy.serving.triton_config import CONFIG_NAME, read_config, session_settings
from lrd_deploy.serving.warmup import WARMUP_FOLDER


def check_bundle(folder: Path) -> BundleCheck:
    """Checks the digest of every file of a bundle, then runs every version on its warm-up inputs in a fresh process.

    Args:
        folder: of one model in a model repository.

    Raises:
        UsageError: it is no folder that `lrd-deploy package` wrote.
        InputError: files were changed, are missing or left over, or lead out of the folder; all of them in one message.
        BackendError: a model does not run.
        MissingPackage: tritonclient is not installed.
    """
    manifest = read_manifest(folder)
    problems = file_problems(folder, manifest)
    if problems:
        raise_all(f"checking the bundle '{folder}'", problems)
    versions = tuple(
        VersionCheck(number=version.number, answers=_checked_again(folder, version), unchecked=version.unchecked)
        for version in manifest.versions
    )
    return BundleCheck(
        folder=folder.resolve(),
        model=manifest.model,
        files=len(manifest.files),
        versions=versions,
        passed=all(version.answers is None or version.answers.passed for version in versions),
    )


def read_manifest(folder: Path) -> BundleManifest:
    """Returns the manifest of a model's folder.

    Raises:
        UsageError: there is none.
        InputError: it is not what this version writes.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UsageError(
            f"opening the bundle '{folder}'",
            found=f"no {MANIFEST_NAME} in it",
            accepted="the folder of one model, which 'lrd-deploy package' wrote",
            remedy="pass REPO/NAME: the model's folder, not the repository",
        )
    return BundleManifest.read(folder / MANIFEST_NAME)


def _checked_again(folder: Path, version: PackagedVersion) -> OutputDifference | None:
    """Runs one version on its warm-up inputs and compares with the stored answers; None where it cannot run here."""
    if version.answers_file is None or version.answers is None:
        return None
    threads = session_settings(read_config(folder / CONFIG_NAME)).threads
    got = answers_in_new_process(folder, version.number, threads)
    expected = read_answers(folder / WARMUP_FOLDER / version.answers_file)
    return compare_answers(expected, got, tolerance=version.answers.tolerance, batches=version.batches)
