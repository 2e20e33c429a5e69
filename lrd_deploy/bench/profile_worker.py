"""The process of one launch of a profile: `python -m lrd_deploy.bench.profile_worker PLAN.json SAMPLES.json`."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lrd_deploy.bench.profile_launch import ProfilePlan, ProfileSamples, profile_launch
from lrd_deploy.engines import profiler, runtime
from lrd_deploy.errors import LrdError


def measure(plan: ProfilePlan) -> ProfileSamples:
    """Runs one launch, with the machine's own clock."""
    with np.load(plan.inputs) as stored:
        inputs = dict(stored)
    gc.disable()
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        return profile_launch(
            plan, inputs, runtime(plan.backend), profiler(plan.backend), time.perf_counter_ns, Path(folder)
        )


if __name__ == "__main__":
    try:
        measure(ProfilePlan.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
    except LrdError as exc:
        sys.exit(str(exc))
