"""Folders as a run and a gate leave them, with names that a page must not take for anything but text."""

from lrd_deploy.bench.environment import environment
from lrd_deploy.gate.judge import judge
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.records import (
    Applied,
    BuiltEngines,
    Comparison,
    EngineArtifact,
    Epoch,
    ExportedModel,
    ExportedPair,
    FrontPoint,
    GateArtefact,
    GateEvidence,
    GatePolicy,
    Latency,
    OutputDifference,
    OutputEvidence,
    Pair,
    ParityEvidence,
    Ratio,
    RewriteReport,
    RewrittenModel,
    RunRecord,
    Skipped,
    TrainedModel,
)
from tests.gate.launches import around, case
from tests.ranks.scripted import Scripted, conv

HOSTILE = "<script>window.pwned = 1</script>[bold]{{7*7}}$x^2$"
HOSTILE_NAMES = (
    HOSTILE,
    "\"><img src=x onerror='window.pwned = 2'>",
    "$\\frac{1}{2}$ & </svg></style>",
    "very.long." + "name_" * 60,
    "\u202eשם.שכבה\u202c.conv",
    "two\nlines",
)
LATENCY = Latency(min_ms=1, p50_ms=1.5, p90_ms=2.0, p99_ms=None, cold_start_ms=9, throughput_per_s=5000, samples=100)


def ratio(estimate, low, high):
    return Ratio(estimate=estimate, low=low, high=high, confidence=0.95, demonstrated=not low <= 1 <= high, launches=4)


def planned(names):
    """A plan by scripted latencies, with what it was chosen from; the first layers carry `names`, one is refused."""
    layers = [conv(64, out=64 + 16 * number, name=name) for number, name in enumerate(names)]
    layers += [conv(256, kernel=1, name="pointwise"), conv(64, name="refused", refusal=f"shared with {names[0]}")]
    planner = LatencyPlanner(layers, LatencyRank(target_speedup=2), Scripted(16))
    plan = planner.plan()
    study = planner.study(plan)
    other = FrontPoint(policy=names[0], speedup=1.5, predicted_error=0.4)
    return plan, study.model_copy(update={"front": (*study.front, other)})


def write_run(folder, names=("encoder.conv",), *, name="digits"):
    """Writes the records of a finished run whose layers, recipe, nodes and engines are called `names` and `name`."""
    here, (plan, study) = environment(), planned(names)
    speedup, control = ratio(2.0, 1.9, 2.1), ratio(1.0, 0.99, 1.01)
    comparison = Comparison(
        base=LATENCY, candidate=LATENCY, speedup=speedup, control=control, backend="onnxruntime", batch=8, threads=1,
        per_launch_speedup=(1.9, 2.0, 2.1, 2.0), warnings=(), environment=here,
    )  # fmt: skip
    record = RunRecord(
        version="0", recipe=name, accuracy=Pair(dense=0.98, lowrank=0.975), parameters=Pair(dense=10, lowrank=4),
        macs=Pair(dense=100, lowrank=50), speedup=speedup, control=control,
        latency={"dense": LATENCY, "lowrank": LATENCY}, training_speedup=ratio(3.0, 2.5, 3.5),
        layers={"factorised": len(plan.factorised), "dense": len(plan.layers) - len(plan.factorised)},
        predicted_speedup=2.0, seconds=99, stages={"dense": 60.0, "plan": 39.0}, warnings=("busy",), artifacts={},
        environment=here,
    )  # fmt: skip
    reports = {"plan": plan, "bench": comparison, "run": record, "plan/study": study}
    for title, content in (reports | _models(name) | _graphs(names)).items():
        content.write(folder / f"{title}.json")
    return folder


def _models(name):
    epochs = tuple(
        Epoch(epoch=n, frozen={"AB"[n % 2]: 3}, loss=1 / n, accuracy=0.9, learning_rate=0.1, seconds=2, images_per_s=9)
        for n in (1, 2, 3)
    )
    trained = TrainedModel(
        weights="w", sha256="0" * 64, accuracy=0.98, chance=0.1, accuracy_before=0.5, parameters=9, epochs=epochs,
        trained_here=True, groups={"A": (f"{name}.down",), "B": (f"{name}.up",)},
    )  # fmt: skip
    unfrozen = tuple(epoch.model_copy(update={"frozen": {"none": 3}, "seconds": 4}) for epoch in epochs)
    return {"dense": trained.model_copy(update={"epochs": unfrozen}), "lowrank": trained}


def _graphs(names):
    same = OutputDifference(
        max_abs=0, relative_l2=0, cosine=1, top1_agreement=1, tolerance=1e-5, passed=True, batches=(1,)
    )
    dense, lowrank = (
        ExportedModel(path=f"{arm}.onnx", sha256=digit * 64, opset=20, ir_version=10, inputs=(), outputs=(), origins=())
        for arm, digit in (("dense", "d"), ("lowrank", "e"))
    )
    report = RewriteReport(
        path="lowrank.onnx", sha256="f" * 64, modified=True, max_abs_difference=1e-7,
        applied=(Applied(rule="pad_rank", node="padded", change="rank 6 is padded to 8"),),
        skipped=tuple(Skipped(rule="pad_rank", node=name, reason=f"{name} is on the quantum") for name in names),
    )  # fmt: skip
    engine = EngineArtifact(
        path="engines/dense.onnxruntime", sha256="1" * 64, source_sha256="d" * 64, backend="onnxruntime",
        backend_version="1.31", precision="fp32", target="cpu", build_seconds=0.1, size_bytes=2**20,
    )  # fmt: skip
    return {
        "export": ExportedPair(dense=dense, lowrank=lowrank, inputs="export/inputs.npz", bare_tensor=True),
        "rewrite": RewrittenModel(report=report, difference=same),
        "build": BuiltEngines(engines={"onnxruntime dense": engine}, refused={"tensorrt dense": f"no {names[0]}"}),
    }


OUTPUTS = OutputEvidence(
    samples=359, rounding_tolerance=5e-5, relative_l2=3e-7, top1_agreement=1.0, baseline_accuracy=0.99,
    candidate_accuracy=0.98,
)  # fmt: skip
PARITY = ParityEvidence(quantum=16, off_quantum=(), baseline_precision={"fp32": 1.0}, candidate_precision={"fp32": 1.0})


def gate_result(verdict="PASS", *, name="candidate.onnx", **evidence):
    """The verdict of a gate on launches that leave no choice."""
    cases = {
        "PASS": (case(around(-0.01)), case(around(0.001), name="batch 1")),
        "FAIL": (case(around(0.08), around(0.07)), case(around(0.0), name="batch 1")),
        "INCONCLUSIVE": (case(around(0.04, spread=0.05)),),
    }
    found = {
        "measured_at": "2026-11-25T02:00:00+00:00",
        "baseline": GateArtefact(name="baseline.onnx", sha256="a" * 64),
        "candidate": GateArtefact(name=name, sha256="b" * 64),
        "outputs": OUTPUTS,
        "parity": PARITY,
        "cases": cases[verdict],
        "environment": environment(),
    }
    return judge(GateEvidence(**found | evidence), GatePolicy())


def write_gate(folder, verdict="PASS", **evidence):
    """Writes a gate's result as a gate leaves it."""
    gate_result(verdict, **evidence).write(folder / "gate.json")
    return folder
