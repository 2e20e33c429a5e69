"""Gate results of every kind, judged from made-up evidence; the same on every machine."""

from lrd_deploy.gate.judge import judge
from lrd_deploy.records import (
    Environment,
    GateArtefact,
    GateEvidence,
    GatePolicy,
    OutputEvidence,
    ParityEvidence,
    Promotion,
)
from tests.gate.launches import around, case

HERE = Environment(
    cpu="Example CPU @ 2.00GHz",
    cores=2,
    system="Linux x86_64",
    python="3.13.1",
    packages={"lrd-deploy": "0.0.0", "onnxruntime-gpu": "1.32.0"},
    fingerprint="0123456789abcdef",
)
SAME = OutputEvidence(
    samples=359,
    rounding_tolerance=1e-5,
    relative_l2=0.02,
    top1_agreement=0.992,
    baseline_accuracy=0.9972,
    candidate_accuracy=0.9944,
)
WORSE = SAME.model_copy(update={"candidate_accuracy": 0.9471, "top1_agreement": 0.9415})
FORM = ParityEvidence(
    quantum=16, off_quantum=(), baseline_precision={"fp32": 1.0}, candidate_precision={"fp32": 0.2, "int8": 0.8}
)
POLICY = GatePolicy(max_accuracy_drop=0.01)


def result(cases=(), *, policy=POLICY, baseline="dense.onnx", candidate="lowrank.onnx", environment=HERE, **evidence):
    """The verdict on cases; keyword arguments replace parts of the evidence."""
    artefacts = {
        "baseline": GateArtefact(name=baseline, sha256="b" * 64) if baseline is not None else None,
        "candidate": GateArtefact(name=candidate, sha256="c" * 64),
    }
    measured = {"measured_at": "2026-11-25T12:00:00+00:00", "environment": environment} | artefacts | evidence
    judged = judge(GateEvidence(cases=tuple(cases), **measured), policy)
    return judged.model_copy(update={"version": "0.0.0"})


def timed(batch, launches, confirming=()):
    return case(launches, confirming, name=f"batch {batch}").model_copy(update={"batch": batch})


# No control is exactly 0: what rounding leaves of a 0 differs between machines.
CALM = timed(1, around(-0.012, control=0.001))
EVEN = timed(8, around(0.004, control=0.002))
SLOW = timed(8, around(0.08, control=0.001), around(0.082, control=0.002))
UNSURE = timed(32, around(0.025, spread=0.09, count=12, control=0.001))
BUSY = timed(64, around(0.002, control=0.06, count=12))

RESULTS = {
    "pass": result([CALM, EVEN], outputs=SAME, parity=FORM),
    "fail-latency": result([CALM, SLOW], outputs=SAME),
    "fail-accuracy": result(outputs=WORSE, parity=FORM),
    "fail-form": result(outputs=SAME, parity=FORM.model_copy(update={"off_quantum": ("conv1: rank 33",)})),
    "inconclusive": result([CALM, UNSURE, BUSY], warnings=("load average 3.4 on 2 cores",)),
    "no-baseline": result(baseline=None, outputs=None),
}


def promotion(day, change=None, *, model="a", fingerprint="0123456789abcdef", verdict="PASS", reason=None, ms=2.0):
    """One line of a history; bounds lie 1 point below and 0.7 points above the change."""
    measured = {} if change is None else {"change": change, "low": change - 0.01, "high": change + 0.007}
    return Promotion(
        promoted_at=f"2026-{9 + day // 30:02d}-{day % 30 + 1:02d}T08:00:00+00:00",
        model_sha256=model * 64,
        verdict=None if change is None else verdict,
        base_ms=None if change is None else ms,
        candidate_ms=None if change is None else ms * (1 + change),
        fingerprint=fingerprint,
        reason=reason,
        **measured,
    )


HISTORY = (
    promotion(0),
    promotion(4, -0.021, model="b", ms=2.03),
    promotion(9, 0.011, model="c", ms=2.01),
    promotion(15, 0.013, model="d", ms=2.02),
    promotion(22, 0.072, model="e", ms=2.06, verdict="FAIL", reason="a wider head: accuracy +2 points"),
    promotion(31, -0.094, model="f", ms=3.11, fingerprint="fedcba9876543210"),
    promotion(40, 0.004, model="0", ms=2.83, fingerprint="fedcba9876543210"),
    promotion(48, 0.008, model="1", ms=2.85, fingerprint="fedcba9876543210"),
)
