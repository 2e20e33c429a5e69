"""The golden graphs under `graphs/`; run as a module, writes every `after` again: `python -m tests.rewrite.golden`."""

from pathlib import Path

import onnx

from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank

GRAPHS = Path(__file__).parents[2] / "graphs"
RULES = {"pad_rank": PadRank(quantum=4), "merge_factors": MergeFactors()}
CASES = sorted(GRAPHS.glob("*/*.before.txt"))


def read(path: Path) -> onnx.ModelProto:
    return onnx.parser.parse_model(path.read_text())


def after_path(before: Path) -> Path:
    return before.with_name(before.name.replace(".before.", ".after."))


def rewritten(before: Path) -> onnx.ModelProto:
    model, _, _ = apply_rules(read(before), [RULES[before.parent.name]])
    return model


if __name__ == "__main__":
    for case in CASES:
        after_path(case).write_text(onnx.printer.to_text(rewritten(case)) + "\n")
