"""The process that loads a packaged model: `python -m lrd_deploy.serving.worker PLAN.json RESULT.json`. No PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

from lrd_deploy.engines import runtime
from lrd_deploy.errors import InputError, LrdError
from lrd_deploy.export.model_files import MODEL_NAME
from lrd_deploy.records import BundleManifest
from lrd_deploy.serving.answers import AnswerPlan, AnswersWritten, Refusal, write_answers
from lrd_deploy.serving.manifest import MANIFEST_NAME
from lrd_deploy.serving.triton_config import CONFIG_NAME, read_config, session_settings
from lrd_deploy.serving.warmup import stored_batch


def answer(plan: AnswerPlan) -> AnswersWritten:
    """Answers the warm-up inputs at every batch size, in a session as config.pbtxt describes it."""
    manifest = BundleManifest.read(plan.bundle / MANIFEST_NAME)
    version = next(version for version in manifest.versions if version.number == plan.number)
    settings = session_settings(read_config(plan.bundle / CONFIG_NAME))
    session = runtime("onnxruntime").load(plan.model or plan.bundle / str(plan.number) / MODEL_NAME, settings)
    answers = [session.run(stored_batch(plan.bundle, version.inputs, batch)) for batch in version.batches]
    batched = all(stored.samples is not None for stored in version.inputs)
    for batch, outputs in zip(version.batches, answers, strict=True):
        bad = [name for name, array in outputs.items() if batched and array.shape[:1] != (batch,)]
        if bad:
            raise InputError(
                f"answering a batch of {batch}",
                found=f"the output '{bad[0]}' of shape {outputs[bad[0]].shape}",
                accepted="the batch as the first dimension of every output, along which a server cuts it",
                remedy="package it without batching: --max-batch 0; or export it so that outputs keep the batch",
            )
    write_answers(answers, plan.answers)
    return AnswersWritten()


def _refused(exc: LrdError) -> AnswersWritten:
    refusal = Refusal(doing=exc.doing, found=exc.found, accepted=exc.accepted, remedy=exc.remedy)
    return AnswersWritten(refusal=refusal)


if __name__ == "__main__":
    try:
        result = answer(AnswerPlan.read(Path(sys.argv[1])))
    except LrdError as exc:
        result = _refused(exc)
    result.write(Path(sys.argv[2]))
