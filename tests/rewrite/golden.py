"""The golden graphs under `graphs/`; run as a module, writes every `after` again: `python -m tests.rewrite.golden`."""

from pathlib import Path

import numpy as np
import onnx

from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors
from lrd_deploy.ranks.matricisation import Matricisation, as_kernel
from lrd_deploy.records import SVD, ChannelSVD, SpatialSVD, Tucker2
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.balance_factors import BalanceFactors
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from lrd_deploy.rewrite.fold_batchnorm import FoldBatchNorm
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.truncate_rank import TruncateRank

GRAPHS = Path(__file__).parents[2] / "graphs"
CHOICES = {
    "fc": SVD(rank=4),
    "pointwise": SVD(rank=2),
    "channel": ChannelSVD(rank=8),
    "channel_kernel_last": ChannelSVD(rank=2, kernel_on="up"),
    "spatial": SpatialSVD(rank=4),
    "tucker": Tucker2(rank_in=2, rank_out=3),
}


def factors_without_arithmetic(weight, choice):
    """Exact factors of full rank, an identity and the weight itself: golden text must not depend on a BLAS."""
    if isinstance(choice, Tucker2):
        eye_out, eye_in = (np.eye(width, dtype=weight.dtype) for width in weight.shape[:2])
        return Tucker2Factors(eye_in, weight, eye_out)
    reading, kernel = Matricisation.of(choice), as_kernel(weight)
    matrix = reading.matrix(kernel)
    eye = np.eye(matrix.shape[1], dtype=weight.dtype)
    down, up = reading.down(eye, kernel.shape), reading.up(matrix, kernel.shape)
    return SVDFactors(down[:, :, 0, 0], up[:, :, 0, 0]) if weight.ndim == 2 else SVDFactors(down, up)


def components_without_arithmetic(factors, ranks):
    """The first components as they are: exact where the others are zero, as they are in the golden graphs."""
    if isinstance(factors, Tucker2Factors):
        rank_in, rank_out = ranks
        return Tucker2Factors(factors.first[:rank_in], factors.core[:rank_out, :rank_in], factors.last[:, :rank_out])
    return SVDFactors(factors.down[: ranks[0]], factors.up[:, : ranks[0]])


RULES = {
    "pad_rank": PadRank(quantum=4),
    "truncate_rank": TruncateRank(quantum=2, lower=components_without_arithmetic),
    "balance_factors": BalanceFactors(),
    "merge_factors": MergeFactors(),
    "decompose_node": DecomposeNode(CHOICES, factors_without_arithmetic),
    "fold_batchnorm": FoldBatchNorm(),
}
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
