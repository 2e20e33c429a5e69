"""Low rank and INT8, alone and together: latency against dense float32, and accuracy where the model is trained.

    python benchmarks/lowrank_int8.py --out FOLDER [--subjects digits large] [--target-speedup 2]

`digits` is ResNet-50's shape trained on hard digits of 32 pixels, as `rank_choice.py` does, batch 8; `large` is
ResNet-50 at 224 pixels with random weights, batch 4: latency belongs to shapes. Ranks are alpha 2 floored to 16, and
those of measured latency; trained models are fine-tuned after decomposition. INT8 is `lrd-deploy convert`'s, for ONNX
Runtime, with ranges by entropy, and is not fine-tuned. Finished rows are lines of FOLDER/rows.jsonl and are not
computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import fronts
import numpy as np
import torch
from graph_cost import accuracy_of, graph_cost
from subjects import SUBJECTS, build, data, dense_weights, fine_tune_
from torch import nn

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.environment import environment
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.source import load_model
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.converting import convert_model
from lrd_deploy.pipeline.onnx_samples import samples_of
from lrd_deploy.pipeline.planning import plan_model, planned_metrics
from lrd_deploy.pipeline.precision_evidence import evidence_for
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.recipe import LatencyRank, Policy, Recipe, UniformRank
from lrd_deploy.recipe.settings import Bench, Calibration, PythonData, TransformersConfig
from lrd_deploy.records import PrecisionPolicy

OPSET = 20
INT8 = PrecisionPolicy(precision="int8", method="entropy", activation_type="uint8")
SAMPLES = 128
LARGE = {**SUBJECTS["resnet50"].config, "num_channels": 3, "num_labels": 1000}


@dataclass(frozen=True)
class Digits:
    """ResNet-50's shape at 32 pixels, trained."""

    out: Path
    bench: Bench
    epochs: int | None
    images: Data = field(default_factory=lambda: data("resnet50", 0))
    config: dict[str, Any] = field(default_factory=lambda: SUBJECTS["resnet50"].config)

    def dense(self) -> nn.Module:
        """The trained model."""
        return build("resnet50", dense_weights("resnet50", 0, self.out)).eval()

    def finish_(self, model: nn.Module) -> nn.Module:
        """Fine-tunes a decomposed model."""
        return fine_tune_(model, "resnet50", 0, self.epochs)

    def accuracy(self, onnx: Path) -> float | None:
        """On the test images."""
        return accuracy_of(onnx, self.images.test)


@dataclass(frozen=True)
class Large:
    """ResNet-50 at 224 pixels, with random weights and random images."""

    bench: Bench
    images: Data = field(default_factory=lambda: Data(_noise(SAMPLES // 4), _noise(1)))
    config: dict[str, Any] = field(default_factory=lambda: LARGE)

    def dense(self) -> nn.Module:
        """A new model."""
        torch.manual_seed(0)
        return load_model(TransformersConfig(transformers=self.config)).module.eval()

    def finish_(self, model: nn.Module) -> nn.Module:
        """Nothing to train."""
        return model.eval()

    def accuracy(self, _onnx: Path) -> float | None:
        """Random weights have none."""
        return None


def main() -> None:
    """Computes the rows that are missing, then prints a Markdown table per subject."""
    arguments = parse_arguments()
    launches = {"threads": 1, "launches": arguments.launches, "rounds": 20}
    subjects = {
        "digits": lambda: Digits(arguments.out, Bench(batch=8, **launches), arguments.epochs),
        "large": lambda: Large(Bench(batch=4, **launches)),
    }
    for name in arguments.subjects:
        short = f"-{arguments.epochs}-epochs" if name == "digits" and arguments.epochs else ""
        bout = Bout(f"{name}{short}", subjects[name](), arguments.out)
        bout.run(rank_policies(arguments.target_speedup), arguments.ranks)
        print(f"\n## {name}\n\n{table(bout.lines())}\n", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results, models and latencies are kept here")
    parser.add_argument("--subjects", nargs="+", choices=("digits", "large"), default=["digits", "large"])
    parser.add_argument("--ranks", nargs="+", choices=("dense", "floored", "latency"), help="only these")
    parser.add_argument("--target-speedup", type=float, default=2.0, help="of the ranks by measured latency")
    parser.add_argument("--launches", type=int, default=8)
    parser.add_argument("--epochs", type=int, help="of fine-tuning, instead of the subject's own number")
    return parser.parse_args()


def rank_policies(target_speedup: float) -> dict[str, Policy | None]:
    """The kinds of rows, each measured in float32 and in INT8."""
    return {
        "dense": None,
        "floored": UniformRank(alpha=2, round_to=16),
        f"latency {target_speedup:g}×": LatencyRank(target_speedup=target_speedup),
    }


class Bout:
    """All rows of one subject."""

    def __init__(self, name: str, subject: Digits | Large, out: Path) -> None:
        self.name, self.subject, self.results = name, subject, out / "rows.jsonl"
        self.folder = out / f"int8-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = {"subject": name, "machine": environment().fingerprint, **subject.bench.model_dump(mode="json")}

    def lines(self) -> list[dict[str, Any]]:
        """The finished rows."""
        return [line for line in fronts.read(self.results) if self.identity.items() <= line.items()]

    def run(self, policies: dict[str, Policy | None], only: list[str] | None) -> None:
        """Computes what is missing and appends it."""
        wanted = {name: policy for name, policy in policies.items() if only is None or name.split()[0] in only}
        for ranks, policy in wanted.items():
            for precision in ("fp32", "int8"):
                done = {(line["ranks"], line["precision"]) for line in self.lines()}
                if (ranks, precision) not in done:
                    self._append(ranks, precision, self._row(ranks, precision, policy))

    def _append(self, ranks: str, precision: str, found: dict[str, Any]) -> None:
        line = {**self.identity, "ranks": ranks, "precision": precision, **found}
        with self.results.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{self.name}, {ranks}, {precision}: {found['speedup']:.2f}×", flush=True)

    def _row(self, ranks: str, precision: str, policy: Policy | None) -> dict[str, Any]:
        dense, float32 = self._exported("dense", None), self._exported(ranks, policy)
        chosen, converted = float32, {}
        if precision == "int8":
            chosen = float32.with_suffix(".int8.onnx")
            converted = self._quantised(float32, chosen)
        example = {INPUT: self.subject.images.example()[: self.subject.bench.batch].numpy()}
        comparison, _launches = compare(dense, chosen, example, self.subject.bench)
        speedup = comparison.speedup
        return {
            "speedup": speedup.estimate,
            "low": speedup.low,
            "high": speedup.high,
            "control": comparison.control.estimate,
            "p50_ms": comparison.candidate.p50_ms,
            "accuracy": self.subject.accuracy(chosen),
            "mac_share": self._macs(float32) / self._macs(dense),
            "warnings": list(comparison.warnings),
            **converted,
        }

    def _exported(self, ranks: str, policy: Policy | None) -> Path:
        """The float32 file of these ranks, made where it is not there yet."""
        onnx = self.folder / f"{ranks.replace(' ', '-').rstrip('×')}.onnx"
        if not onnx.exists():
            model = self.subject.dense()
            if policy is not None:
                work = self._workspace(policy)
                plan = plan_model(work, model, self.subject.images).plan
                decompose_(model, plan, planned_metrics(work, model, self.subject.images, plan))
                model = self.subject.finish_(model)
                plan.write(onnx.with_suffix(".plan.json"))
            export_onnx(model, self.subject.images.example(), onnx, opset=OPSET)
        return onnx

    def _quantised(self, float32: Path, target: Path) -> dict[str, Any]:
        store = save_arrays(self.folder / "samples.npz", {INPUT: np.concatenate(list(self._samples()))})
        samples = samples_of(float32, store)
        report = convert_model(float32, target, INT8, evidence_for(float32, INT8, samples, None))
        return {"converted_macs": report.share.macs, "output_error": report.difference.relative_l2}

    def _samples(self) -> Iterator[np.ndarray]:
        """Training images, the same for every call."""
        train = self.subject.images.train
        if hasattr(train, "generator"):
            train.generator.manual_seed(0)
        size = len(next(iter(batches(train)))[0])
        yield from (inputs.numpy() for inputs, _ in islice(batches(train), -(-SAMPLES // size)))

    def _workspace(self, policy: Policy) -> Workspace:
        """A folder that all rows share, so that no layer is timed twice."""
        recipe = Recipe(
            name=f"int8-{self.name}",
            model=TransformersConfig(transformers=self.subject.config),
            data=PythonData(python="hard_digits:make_loaders"),
            ranks=policy,
            dense=SUBJECTS["resnet50"].dense,
            fine_tune=SUBJECTS["resnet50"].fine_tune,
            calibration=Calibration(samples=SAMPLES if isinstance(policy, LatencyRank) else 0),
            skip=("classifier*",),
            bench=self.subject.bench,
        )
        return Workspace(recipe, None, self.folder, SilentObserver())

    def _macs(self, onnx: Path) -> int:
        return graph_cost(onnx, self.subject.images.example()[:1].numpy()).macs


def table(lines: list[dict[str, Any]]) -> str:
    """The rows in Markdown; the interval is the comparison's."""
    rows = ["| ranks | precision | speedup | MACs | accuracy |", "|---|---|---|---|---|"]
    for line in lines:
        accuracy = "–" if line["accuracy"] is None else f"{line['accuracy']:.2%}"
        speedup = f"{line['speedup']:.2f}× ({line['low']:.2f} to {line['high']:.2f})"
        rows.append(f"| {line['ranks']} | {line['precision']} | {speedup} | {line['mac_share']:.0%} | {accuracy} |")
    return "\n".join(rows)


def _noise(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 224, 224, generator=random), torch.zeros(4, dtype=torch.long)) for _ in range(count)]


if __name__ == "__main__":
    main()
