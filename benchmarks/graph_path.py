"""One architecture along the whole way of an ONNX file; each step's findings are a line of JSON on stdout.

    python benchmarks/graph_path.py NAME FOLDER

`graphs.py models` runs it in a process of its own, so that a crash costs one row, and the lines before it are kept.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnx
import torch
from architectures import ARCHITECTURES, OPTIONAL, Architecture

from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.engines import BuildSettings, SessionSettings, builder, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import compare_outputs, rounding_tolerance
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import LrdError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.export.torch_export import export_onnx
from lrd_deploy.models.example import call, named_outputs
from lrd_deploy.models.survey import survey
from lrd_deploy.pipeline.converting import convert_model
from lrd_deploy.pipeline.onnx_samples import samples_of
from lrd_deploy.pipeline.precision_evidence import evidence_for
from lrd_deploy.pipeline.rewriting import rewrite_model
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import UniformRank
from lrd_deploy.records import DimensionRange, PrecisionPolicy
from lrd_deploy.rewrite.pad_rank import PadRank

OPSET, ALPHA, QUANTUM = 20, 2.0, 16
CAPABILITY = "8.6"
SIZES = ((1, 5), (2, 5), (2, 9))  # batch, and length where there are tokens
SAMPLES, LENGTH = 32, 6
LENGTHS = DimensionRange(min=1, opt=8, max=32)
POLICIES = {
    "fp16": PrecisionPolicy(precision="fp16"),
    "bf16": PrecisionPolicy(precision="bf16"),
    "int8": PrecisionPolicy(precision="int8", method="entropy", activation_type="int8"),
}
Found = dict[str, Any]


def available() -> dict[str, Architecture]:
    """Every architecture whose package is installed, by name."""
    optional = {name: made for name, (package, made) in OPTIONAL.items() if find_spec(package)}
    return {**ARCHITECTURES, **optional}


@dataclass
class Walk:
    """One low-rank model, its files, and what is known of it so far."""

    architecture: Architecture
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.example = self.architecture.inputs(2, LENGTH)
        self.module = self.architecture.build()
        self.batches = [in_numpy(self.architecture.inputs(*size)) for size in SIZES]

    def decompose(self) -> Found:
        """Factorises every layer that may be, at the closed form's ranks."""
        plan = plan_ranks(survey(self.module, self.example), UniformRank(alpha=ALPHA))
        decompose_(self.module, plan)
        return {"layers": len(plan.layers), "factorised": len(plan.factorised)}

    def export(self) -> Found:
        """Exports with a dynamic batch, and length where there are tokens, and compares with PyTorch."""
        path = self.folder / "lowrank.onnx"
        export_onnx(self.module, self.example, path, opset=OPSET)
        self.files["exported"] = path
        model = read_model(path)
        difference = compare_outputs(self.in_torch, in_file(path), self.batches, rounding_tolerance(model))
        return {"nodes": len(model.graph.node), "difference": difference.relative_l2, "passed": difference.passed}

    def rewrite(self) -> Found:
        """Pads every rank to the quantum, and compares with the file before."""
        before, after = self.files["exported"], self.folder / "padded.onnx"
        done = rewrite_model(before, [PadRank(QUANTUM)], after, self.batches)
        self.files["padded"] = after
        return {
            "padded": len(done.report.applied),
            "skipped": [entry.reason for entry in done.report.skipped],
            "difference": largest_difference(in_file(before), in_file(after), self.batches),
            "batches": done.difference.batches,
            "passed": done.difference.passed,
        }

    def convert(self, precision: str) -> Found:
        """Converts the padded file; outputs are compared where ONNX Runtime has kernels for it."""
        source, target = self.files["padded"], self.folder / f"{precision}.onnx"
        stored = save_arrays(self.folder / "samples.npz", in_numpy(self.architecture.inputs(SAMPLES, LENGTH)))
        policy, samples = POLICIES[precision], samples_of(source, stored)
        report = convert_model(source, target, policy, evidence_for(source, policy, samples, None))
        self.files[precision] = target
        onnx.checker.check_model(onnx.load(target), full_check=True)
        difference = report.difference
        return {
            "share": report.share.macs,
            "difference": difference and difference.relative_l2,
            "passed": difference is None or difference.passed,
            "notes": report.notes,
        }

    def compile(self, name: str) -> Found:
        """Compiles one of the files with TensorRT-RTX, for GPUs that need not be here."""
        path = self.files[name]
        settings = BuildSettings(
            min_batch=1,
            opt_batch=2,
            max_batch=8,
            dimensions=dict.fromkeys(open_dimensions(path), LENGTHS),
            compute_capabilities=(CAPABILITY,),
        )
        artifact = builder("tensorrt-rtx").build(path, path.with_suffix(".engine"), settings)
        return {"bytes": artifact.size_bytes}

    @torch.no_grad()
    def in_torch(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """What the module gives out."""
        example = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in named_outputs(call(self.module, example), example).items()}


def main(findings: TextIO) -> None:
    """Walks as far as it gets: a step whose file an earlier one did not make is left out."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    walk = Walk(available()[name], folder)
    steps: tuple[tuple[str, str | None, Callable[[], Found]], ...] = (
        ("decompose", None, walk.decompose),
        ("export", None, walk.export),
        ("rewrite", "exported", walk.rewrite),
        ("RTX fp32", "padded", lambda: walk.compile("padded")),
        *(
            step
            for precision in POLICIES
            for step in (
                (precision, "padded", lambda precision=precision: walk.convert(precision)),
                (f"RTX {precision}", precision, lambda precision=precision: walk.compile(precision)),
            )
        ),
    )
    for step, needs, take in steps:
        if needs is None or needs in walk.files:
            say(findings, {"step": step, "begun": True})
            started = time.perf_counter()
            found = attempted(take)
            say(findings, {"step": step, "seconds": round(time.perf_counter() - started, 1), **found})


def attempted(take: Callable[[], Found]) -> Found:
    """What a step found, or why it failed; an error that is none of ours is a fault in itself."""
    try:
        return take()
    except LrdError as refusal:
        return {"failure": f"{refusal}"}
    except Exception as fault:
        return {"failure": f"{type(fault).__name__}, no error of this package: {fault}"}


def largest_difference(before: Callable[..., Any], after: Callable[..., Any], batches: list[Arrays]) -> float:
    """The largest difference of any output value, against the largest value of that output."""
    found = 0.0
    for inputs in batches:
        one, other = before(inputs), after(inputs)
        for name, output in one.items():
            distance = np.abs(output.astype(np.float64) - other[name].astype(np.float64)).max(initial=0.0)
            found = max(found, float(distance / (np.abs(output).max(initial=0.0) or 1.0)))
    return found


def open_dimensions(path: Path) -> list[str]:
    """Names of the open dimensions but the batch."""
    inputs = graph_inputs(read_model(path))
    return list(dict.fromkeys(dim for tensor in inputs for dim in tensor.shape[1:] if isinstance(dim, str)))


def in_file(path: Path) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """A call that runs the file in ONNX Runtime."""
    return runtime("onnxruntime").load(path, SessionSettings()).run


def in_numpy(inputs: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same arrays for ONNX Runtime."""
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def reserved_stdout() -> TextIO:
    """Returns the stdout that the parent reads; from here on all else that is written there goes to stderr.

    The descriptor itself is turned over, because libraries in C++ write to it without asking Python.
    """
    findings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return findings


def say(findings: TextIO, line: Found) -> None:
    """Writes a finding where the parent reads it, at once: the next step may not return."""
    print(json.dumps(line), file=findings, flush=True)


if __name__ == "__main__":
    main(reserved_stdout())
