"""The peers of `rank_choice.py`, in an environment of their own: AIMET's weight SVD and Torch-Pruning.

    python benchmarks/peers.py install FOLDER
    FOLDER/bin/python benchmarks/peers.py row aimet 0.5 --model resnet18 --seed 0 --weights dense.safetensors --onnx OUT

`row` compresses, fine-tunes with this project's own loop and budget, writes an ONNX file, and beside it a JSON file:
what came out, or why the peer refused. `rank_choice.py --peers FOLDER` calls it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

PINNED = (
    # torchvision's newest release would replace torch.
    *("torch==2.13.0", "torchvision==0.28.0", "aimet-torch==2.42.0", "torch-pruning==1.6.1", "transformers==5.23.0"),
    *("accelerate==1.15.0", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0"),
    *("pydantic>=2.10", "pyyaml>=6.0", "safetensors>=0.5", "scikit-learn>=1.5", "scipy>=1.14"),
)
_PROJECT = Path(__file__).resolve().parent.parent
_MULTIPLICITY, _ROUND_TO = 8, 16


@dataclass(frozen=True)
class PeerRow:
    """One peer at one setting: AIMET's share of MACs kept per layer, or Torch-Pruning's share of channels removed."""

    peer: str
    ratio: float

    def run(self, python: Path, task: list[str], onnx: Path) -> dict[str, Any]:
        """Computes the row with the peers' interpreter and returns what it reported."""
        command = [python, __file__, "row", self.peer, str(self.ratio), *task, "--onnx", onnx]
        environment = {**os.environ, "PYTHONPATH": str(_PROJECT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"refusal": " ".join(done.stderr.strip().splitlines()[-1:])[:400] or f"status {done.returncode}"}
        return json.loads(onnx.with_suffix(".json").read_text())


def main() -> None:
    """Installs the environment, or computes one row inside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    install_parser = verbs.add_parser("install", help="make the environment, about 4 minutes")
    install_parser.add_argument("folder", type=Path)
    row = verbs.add_parser("row", help="compress, fine-tune and export; run it with the environment's interpreter")
    row.add_argument("peer", choices=PEERS)
    row.add_argument("ratio", type=float)
    row.add_argument("--model", required=True)
    row.add_argument("--seed", type=int, required=True)
    row.add_argument("--weights", type=Path, required=True)
    row.add_argument("--onnx", type=Path, required=True)
    row.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    if arguments.verb == "install":
        install(arguments.folder)
    else:
        compute(arguments)


def install(folder: Path) -> None:
    """Makes a virtual environment with the pinned peers; this project is found through PYTHONPATH."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *PINNED], check=True)


def compute(task: argparse.Namespace) -> None:
    """Writes `task.onnx` and, beside it, a JSON file with the accuracies and seconds, or with a refusal."""
    _make_torchvision_importable()
    from subjects import build, data, fine_tune_

    from lrd_deploy.export.torch_export import export_onnx
    from lrd_deploy.train.accuracy import accuracy

    images, dense = data(task.model, task.seed), build(task.model, task.weights)
    started = time.perf_counter()
    try:
        model = PEERS[task.peer](dense, images.example()[:2], task.ratio)
        before = accuracy(model, images)
    except Exception as refusal:  # a peer raises whatever it raises; the reason is the row's result
        report = {"refusal": f"{type(refusal).__name__}: {' '.join(str(refusal).split())[:400]}"}
    else:
        compressed = time.perf_counter()
        fine_tune_(model, task.model, task.seed, task.epochs)
        tuned = time.perf_counter()
        export_onnx(model, images.example(), task.onnx, opset=20)
        report = {
            "accuracy_before": before,
            "accuracy_in_torch": accuracy(model, images),
            "compress_seconds": compressed - started,
            "fine_tune_seconds": tuned - compressed,
        }
    task.onnx.with_suffix(".json").write_text(json.dumps(report))


def aimet(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """Weight SVD in manual mode: every layer but the stem and the classifier keeps `ratio` of its MACs.

    A linear layer's share of weights is its share of MACs, and is asked for instead: AIMET's MAC count takes the
    hidden axis of (batch, tokens, hidden) for an image's and leaves a ViT 2 % of its weights where 50 % were asked.
    """
    from aimet_torch.common.defs import CompressionScheme, CostMetric
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ModuleCompRatioPair, WeightSvdParameters
    from torch import nn

    layers = _compressible(model)
    metric = CostMetric.mac if any(isinstance(layer, nn.Conv2d) for layer in layers) else CostMetric.memory
    pairs = [ModuleCompRatioPair(layer, ratio) for layer in layers]
    parameters = WeightSvdParameters(
        mode=WeightSvdParameters.Mode.manual,
        params=WeightSvdParameters.ManualModeParams(pairs),
        multiplicity=_MULTIPLICITY,
    )
    with TemporaryDirectory() as folder, contextlib.chdir(folder):  # AIMET leaves a pickle in ./data
        compressed, _statistics = ModelCompressor.compress_model(
            model,
            eval_callback=lambda *_: 0.0,  # reported in the statistics only
            eval_iterations=1,
            input_shape=(1, *example.shape[1:]),
            compress_scheme=CompressionScheme.weight_svd,
            cost_metric=metric,
            parameters=parameters,
        )
    return compressed


def pruning(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """Group magnitude pruning: every group of channels loses `ratio`, rounded to multiples of 16."""
    import torch_pruning

    attentions = _attentions(model)
    heads = {
        projection: attention.num_attention_heads
        for attention in attentions
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[_classifier(model)],
        round_to=_ROUND_TO,
        num_heads=heads,
        output_transform=lambda output: output.logits,
    ).step()
    for attention in attentions:  # the forward pass shapes its heads by this number
        attention.head_dim = attention.q_proj.out_features // attention.num_attention_heads
    return model


PEERS: dict[str, Callable[[nn.Module, Tensor, float], nn.Module]] = {"aimet": aimet, "pruning": pruning}


def _compressible(model: nn.Module) -> list[nn.Module]:
    """Every linear and convolution layer but the stem, the classifier and those too narrow to split."""
    from torch import nn

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    narrow = 4 * _MULTIPLICITY
    return [layer for layer in layers if min(layer.weight.shape[:2]) >= narrow and layer is not _classifier(model)]


def _classifier(model: nn.Module) -> nn.Module:
    from torch import nn

    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


def _attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "head_dim")]


def _make_torchvision_importable() -> None:
    """Declares the operators that torchvision's own library would, where it was built for another torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _DECLARED[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_DECLARED: list[Any] = []  # a library that is collected takes its operators along

if __name__ == "__main__":
    main()
