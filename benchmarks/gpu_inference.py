"""Inference on a device: ranks chosen by its layers' latencies, dense against low-rank in interleaved launches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import onnx
import torch
from gpu_ceiling import floor_ms
from gpu_profile import profile_summary
from gpu_subjects import subject_of
from gpu_training import REALISED, Plans, layers_of, planned
from torch.utils.flop_counter import FlopCounterMode
from train_step import with_forms_

from lrd_deploy.bench.launch import Call, LaunchPlan, LaunchSamples, balanced_order, interleave
from lrd_deploy.bench.layer_forward import ForwardCalls, forward_call
from lrd_deploy.bench.layer_latency import MeasuredLatency, onnxruntime_layers
from lrd_deploy.bench.model_latency import random_factors
from lrd_deploy.bench.process import run_worker
from lrd_deploy.bench.statistics import block_log_ratio, median, ratio_with_interval
from lrd_deploy.bench.torch_device import Capture, arithmetic
from lrd_deploy.bench.turns import own_turn
from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.engines import BACKENDS, BuildSettings, SessionSettings, builder, runtime
from lrd_deploy.engines.execution_provider import lacking_for_cuda
from lrd_deploy.engines.gpu import NoGpu, find_gpu
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import BackendError, LrdError
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.converting import convert_model
from lrd_deploy.pipeline.precision_evidence import Evidence
from lrd_deploy.records import Execution, PrecisionPolicy, RankPlan
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode

ARMS = ("dense", "formula", "chosen", "control")
_OPSET, _ROUNDS, _ARM_SECONDS = 20, 40, 0.5
_HOPPER = "9.0"
Blocks = Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Condition:
    """What an inference row is of; `graph`: the work is replayed from a CUDA graph."""

    model: str
    precision: str
    batch: int
    graph: bool
    device: str
    work: Path  # models are written there

    @property
    def execution(self) -> Execution:
        """Where sessions run, and how they are called there."""
        return Execution.on(self.device, cuda_graph=self.graph)

    @property
    def element(self) -> str:
        """The type of weights and activations."""
        return "fp16" if self.precision == "fp16" else "fp32"


def engine_of(device: str) -> tuple[str, str | None]:
    """Returns which engine runs there, and why it is not ONNX Runtime where it is not."""
    execution = Execution.on(device)
    lacking = [] if execution.gpu is None else lacking_for_cuda(execution.gpu)
    return ("torch", "; ".join(lacking)) if lacking else ("onnxruntime", None)


def plan_inference(condition: Condition, store: Path, observer: Observer) -> dict[str, Any]:
    """Chooses ranks by the latencies of single layers on the device."""
    engine, why = engine_of(condition.device)
    if engine == "onnxruntime":
        calls = onnxruntime_layers(condition.execution, condition.element)
    else:
        torch.backends.cudnn.benchmark = True
        calls = ForwardCalls(channels_last=True, execution=condition.execution, precision=condition.element)
    source = MeasuredLatency(batch=condition.batch, threads=1, store=store, observer=observer, layers=calls)
    return planned(layers_of(condition.model), source) | {"engine": engine, "why_not_onnxruntime": why}


def measure_inference(
    condition: Condition, plans: Plans, ceilings: dict[str, Any] | None, *, launches: int
) -> dict[str, Any]:
    """Returns latencies and ratios to dense with intervals over launches, ideals, floors, and reasons."""
    engine, why = engine_of(condition.device)
    blocks, facts = _onnxruntime(condition, plans, launches) if engine == "onnxruntime" else _torch(
        condition, plans, launches
    )  # fmt: skip
    layers = layers_of(condition.model)
    flops = {arm: _flops(condition.model, plans.get(arm)) for arm in ARMS}
    rows = {}
    for arm in ARMS:
        ratio = ratio_with_interval([block_log_ratio(launch["dense"], launch[arm]) for launch in blocks])
        latency = median([min(block) / 1e6 for launch in blocks for block in launch[arm]])
        ideal = flops["dense"] / flops[arm]
        rows[arm] = {
            "latency_ms": latency,
            "ratio": ratio.estimate,
            "low": ratio.low,
            "high": ratio.high,
            "ceiling": ideal,
            "realised": ratio.estimate / ideal,
            "flops": flops[arm] * condition.batch,
            "floor_ms": floor_ms(layers, plans.get(arm), condition.batch, condition.precision, ceilings)
            if ceilings
            else None,
        }
    found = {"engine": engine, "why_not_onnxruntime": why, "launches": launches, "rows": rows, **facts}
    return found | {"profiles": _reasons(condition, plans, rows, engine)}


# ONNX Runtime -----------------------------------------------------------------------------------------------------


def _onnxruntime(condition: Condition, plans: Plans, launches: int) -> tuple[list[Blocks], dict[str, Any]]:
    """Fresh processes, each with a session per arm."""
    files = arm_files(condition, plans)
    inputs = save_arrays(condition.work / "inputs.npz", _inputs(condition))
    measured: list[LaunchSamples] = []
    for number in range(launches):
        order, reverse = balanced_order(ARMS, number)
        plan = LaunchPlan(
            arms={arm: path.resolve() for arm, path in files.items()},
            load_order=order,
            reverse_first=reverse,
            inputs=inputs.resolve(),
            backend="onnxruntime",
            threads=1,
            rounds=_ROUNDS,
            arm_seconds=_ARM_SECONDS,
            solo_seconds=0.0,
            execution=condition.execution,
        )
        with own_turn(lambda: None):
            measured.append(run_worker("lrd_deploy.bench.worker", plan, LaunchSamples, threads=1))
    readings = [launch.gpu.model_dump(mode="json") for launch in measured if launch.gpu]
    facts = {
        "gpu": readings[-1] if readings else None,
        "throttled": sorted({reason for launch in readings for reason in launch["throttled"]}),
        "on_cpu": {arm: sorted(set(names)) for arm, names in measured[0].on_cpu.items()},
        "unsettled": sum(not launch.warmup_converged for launch in measured),
    }
    return [launch.blocks for launch in measured], facts


def arm_files(condition: Condition, plans: Plans) -> dict[str, Path]:
    """Writes, where they are not there yet, the model of each arm in its precision and for its batch alone.

    With a batch that is a constant no operators on shapes are left, which a CUDA graph cannot hold.
    """
    dense, nodes = _dense(condition)
    files = {}
    for arm in ARMS[:-1]:
        plan = plans.get(arm)
        name = f"{condition.model}-{arm}-{condition.element}-{condition.batch}"
        digest = "" if plan is None else f"-{_digest(plan)}"
        files[arm] = condition.work / f"{name}{digest}.onnx"
        if not files[arm].exists():
            _write_arm(condition, dense, nodes, plan, files[arm])
    return files | {"control": files["dense"]}


def _digest(plan: RankPlan) -> str:
    import hashlib

    choices = [(layer.name, str(layer.choice)) for layer in plan.layers]
    return hashlib.sha256(repr(choices).encode()).hexdigest()[:12]


def _dense(condition: Condition) -> tuple[Path, dict[str, list[str]]]:
    """The dense model in float32 with any batch, and the nodes of each layer."""
    path, names = condition.work / f"{condition.model}.onnx", condition.work / f"{condition.model}.nodes.json"
    if not names.exists():
        condition.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        subject = subject_of(condition.model)
        module = subject.build()
        reestimate_batchnorm_(module, [subject.example(8)])  # or new weights would overflow in half precision
        nodes: dict[str, list[str]] = {}
        for origin in export_onnx(module.eval(), subject.example(2), path, opset=_OPSET).origins:
            nodes.setdefault(origin.module, []).append(origin.node)
        names.write_text(json.dumps(nodes))
    return path, json.loads(names.read_text())


def _write_arm(
    condition: Condition, dense: Path, nodes: Mapping[str, list[str]], plan: RankPlan | None, target: Path
) -> None:
    model = onnx.load(dense)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = condition.batch
    del model.graph.value_info[:]
    fixed = target.with_suffix(".fp32.onnx")
    onnx.save(model, fixed)
    if plan is not None:
        choices = {node: layer.choice for layer in plan.factorised for node in nodes[layer.name]}
        report = rewrite_file(fixed, [DecomposeNode(choices, random_factors)], fixed)
        if report.skipped:
            raise BackendError(
                f"rewriting {condition.model} by its plan",
                found=f"'{report.skipped[0].node}' stayed dense: {report.skipped[0].reason}",
                accepted="a node for every planned layer",
                remedy="report this with the plan",
            )
    if condition.element == "fp16":
        convert_model(fixed, target, PrecisionPolicy(precision="fp16"), Evidence())
        fixed.unlink()
    else:
        fixed.replace(target)


def _inputs(condition: Condition) -> dict[str, Any]:
    torch.manual_seed(1)
    return {INPUT: subject_of(condition.model).example(condition.batch).numpy()}


# PyTorch ----------------------------------------------------------------------------------------------------------


def _torch(condition: Condition, plans: Plans, launches: int) -> tuple[list[Blocks], dict[str, Any]]:
    """One process, its models made anew for every launch."""
    torch.backends.cudnn.benchmark = True
    blocks, unsettled = [], 0
    for number in range(launches):
        order, reverse = balanced_order(ARMS, number)
        with arithmetic(tf32=condition.execution.tf32):
            calls = torch_calls(condition, plans, order)
            found, _, converged = _interleaved(calls, reverse_first=reverse)
        blocks.append(found)
        unsettled += not converged
    return blocks, {"gpu": None, "throttled": [], "on_cpu": {}, "unsettled": unsettled}


def torch_calls(condition: Condition, plans: Plans, order: tuple[str, ...]) -> dict[str, Call]:
    """Returns a call of each arm's module."""
    x = torch.from_numpy(_inputs(condition)[INPUT]).to(condition.device)
    half = condition.element == "fp16"
    if half and x.is_floating_point():
        x = x.half()
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    capture, calls = Capture(condition.device), {}
    for arm in order:
        torch.manual_seed(0)
        module = with_forms_(subject_of(condition.model).build(), plans.get(arm))
        module = module.to(
            condition.device, torch.float16 if half else torch.float32, memory_format=torch.channels_last
        )
        calls[arm] = forward_call(module, x, condition.execution, capture)
    return calls


def _interleaved(calls: Mapping[str, Call], *, reverse_first: bool) -> tuple[Blocks, int, bool]:
    return interleave(
        calls, time.perf_counter_ns, rounds=_ROUNDS, arm_seconds=_ARM_SECONDS, reverse_first=reverse_first
    )


# What the figures mean --------------------------------------------------------------------------------------------


def _flops(model: str, plan: RankPlan | None) -> int:
    """For one sample, attention included."""
    torch.manual_seed(0)
    subject = subject_of(model)
    module = with_forms_(subject.build(), plan).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(subject.example(1))
    return counter.get_total_flops()


def _reasons(condition: Condition, plans: Plans, rows: dict[str, Any], engine: str) -> dict[str, Any]:
    """Where the time goes, of the arms that realise too little, and of dense beside them; on a GPU alone."""
    short = [arm for arm in ("formula", "chosen") if rows[arm]["realised"] < REALISED]
    if not short or condition.execution.gpu is None:
        return {}
    arms = ("dense", *short)
    if engine == "torch":
        calls: Mapping[str, Callable[[], object]] = torch_calls(condition, plans, arms)
    else:
        files, settings = arm_files(condition, plans), SessionSettings(execution=condition.execution)
        calls = {arm: runtime(engine).load(files[arm], settings).bind(_inputs(condition)) for arm in arms}
    return {arm: profile_summary(call, condition.device) for arm, call in calls.items()}


# TensorRT ---------------------------------------------------------------------------------------------------------


def try_engine(backend: str, condition: Condition, plans: Plans) -> dict[str, Any]:
    """Returns what TensorRT or TensorRT-RTX says to the three models; their latencies where it builds and runs them."""
    status = BACKENDS[backend].describe()
    told = {"status": status.model_dump(mode="json"), "says": None, "rows": {}}
    if not status.builds:
        return told | {"says": status.detail}
    gpu = find_gpu()
    capability = _HOPPER if isinstance(gpu, NoGpu) else gpu.compute_capability
    settings = BuildSettings(
        min_batch=condition.batch,
        opt_batch=condition.batch,
        max_batch=condition.batch,
        compute_capabilities=(capability,) if backend == "tensorrt-rtx" else (),
    )
    try:
        engines = {}
        for arm, path in arm_files(condition, plans).items():
            engines[arm] = path.with_suffix(f".{backend}")
            if arm != "control":
                builder(backend).build(path, engines[arm], settings)
        calls = {
            arm: runtime(backend).load(engine, SessionSettings()).bind(_inputs(condition))
            for arm, engine in (engines | {"control": engines["dense"]}).items()
        }
    except LrdError as refusal:
        return told | {"says": str(refusal)}
    blocks, _, _ = _interleaved(calls, reverse_first=False)
    rows = {
        arm: {
            "latency_ms": median([min(block) / 1e6 for block in blocks[arm]]),
            "ratio": exp(block_log_ratio(blocks["dense"], blocks[arm])),
        }
        for arm in ARMS
    }
    return told | {"says": "built and ran", "rows": rows}
