"""What follows from a profile: factors that are slower than their dense layer are multiplied back, the others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.profile import ProfileSettings, profile
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.errors import UsageError
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.files import sha256_of
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.rewriting import rewrite_model
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Comparison, ModelProfile, ProfiledLayer, Ratio, RewriteReport, RewrittenModel, Skipped
from lrd_deploy.rewrite.merge_factors import MergeFactors

Measure = Callable[[Path, Path], Ratio]  # the speedup of the second file over the first


def merge_back(
    source: Path, profiled: ModelProfile, target: Path, batches: Sequence[Arrays], measure: Measure
) -> RewrittenModel:
    """Merges the factors that a profile found slower than dense, where that makes the whole model no slower.

    Outputs before and after are compared. A layer's time does not say what its merging does to its neighbours' layout.

    Args:
        source: the candidate of the profile.
        profiled: of a dense model and this one.
        target: gets the result, whole or not at all; may be the source.
        batches: inputs by name, to compare outputs on.
        measure: measures the source against what became of it.

    Returns:
        What was merged; every other layer with factors is among the skipped, with what the profile says of it.

    Raises:
        UsageError: the profile is of one model only, or of another file; or the result is slower.
        BackendError: ONNX Runtime refuses the model, or the outputs moved further than rounding explains.
        StorageError: a file cannot be read or written.
    """
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        merged = Path(folder, target.name)
        rewritten = _merged(source, profiled, merged, batches)
        speedup = measure(source, merged) if rewritten.report.modified else None
        if speedup is not None and speedup.high < 1:
            raise _slower(source, rewritten.report, speedup)
        write_model(read_model(merged), target)
    report = rewritten.report.model_copy(update={"speedup": speedup})
    return rewritten.model_copy(update={"report": report})


def _merged(source: Path, profiled: ModelProfile, target: Path, batches: Sequence[Arrays]) -> RewrittenModel:
    merged = rewrite_model(source, [MergeFactors(losing_chains(source, profiled))], target, batches)
    kept = [
        Skipped(rule="merge_factors", node=name, reason=reason)
        for layer in profiled.layers
        if layer.verdict and (reason := _reason_to_keep(layer))
        for name in layer.chains or (layer.name,)
    ]
    report = merged.report.model_copy(update={"skipped": (*merged.report.skipped, *kept)})
    return merged.model_copy(update={"report": report})


def _slower(source: Path, report: RewriteReport, speedup: Ratio) -> UsageError:
    merged = ", ".join(f"'{entry.node}'" for entry in report.applied)
    interval = f"{speedup.estimate:.2f}× ({speedup.low:.2f} to {speedup.high:.2f})"
    return UsageError(
        f"merging the losing factors of '{source}' back",
        found=f"a model that is {interval} as fast with {merged} merged: it costs their neighbours more than they gain",
        accepted="a model that is no slower as a whole",
        remedy="leave the factors as they are, or bring ranks to multiples of 16 with --mode pad and profile again",
    )


def losing_chains(source: Path, profiled: ModelProfile) -> frozenset[str]:
    """Returns the factor chains of a file that a profile found slower than dense, by the names that rules give them.

    Raises:
        UsageError: the profile is of one model only, or of another file.
    """
    doing = f"choosing layers of '{source}' by a profile"
    if profiled.candidate is None:
        raise UsageError(
            doing,
            found=f"a profile of one model, '{profiled.base.path}'",
            accepted="a profile of a dense model and this one",
            remedy=f"run 'lrd-deploy profile DENSE.onnx {source} -o PROFILE.json'",
        )
    if sha256_of(source) != profiled.candidate.sha256:
        raise UsageError(
            doing,
            found=f"a profile of another file, which was '{profiled.candidate.path}' then",
            accepted="a profile whose second model is this file, byte for byte",
            remedy="profile the file as it is now",
        )
    return profiled.losing_chains


def _reason_to_keep(layer: ProfiledLayer) -> str | None:
    speedup = layer.speedup
    if layer.verdict == "loses":
        return None if layer.chains else "its factors are slower than dense, but something stands between them"
    interval = f"{speedup.estimate:.2f}× ({speedup.low:.2f} to {speedup.high:.2f}) as fast as dense"
    return f"its factors are {interval}"


@dataclass(frozen=True)
class MergedBack:
    """A profile, what was merged by it, and the speedup of that over the profiled candidate; None: nothing was.

    The speedup may be below 1: `merge_back` would refuse it then.
    """

    profile: ModelProfile
    rewritten: RewrittenModel
    comparison: Comparison | None


def profile_and_merge_back(
    dense: Path,
    lowrank: Path,
    target: Path,
    inputs: Mapping[str, NDArray[np.generic]],
    settings: ProfileSettings,
    observer: Observer | None = None,
) -> MergedBack:
    """Profiles two models, merges back what loses, and measures what that gained, in fresh processes.

    Args:
        dense: an ONNX file.
        lowrank: the same model with factors.
        target: gets the low-rank model with the losing pairs merged.
        inputs: one batch by name; outputs are compared on it too.
        settings: of the profile; the comparison takes as many launches, at least 4.
        observer: hears of progress.

    Raises:
        LrdError: see `profile`, `rewrite_model` and `compare`.
    """
    found, _ = profile(dense, lowrank, inputs, settings, observer)
    rewritten = _merged(lowrank, found, target, [inputs])
    comparison = None
    if rewritten.report.modified:
        bench = Bench(
            batch=found.batch, threads=settings.threads, launches=max(4, settings.launches + settings.launches % 2)
        )
        comparison, _ = compare(lowrank, target, inputs, bench, observer)
    return MergedBack(found, rewritten, comparison)
