"""The papers' closed forms: a compression ratio in, ranks out."""

from __future__ import annotations

from math import floor, sqrt


def svd_rank(in_channels: int, out_channels: int, *, alpha: float) -> int:
    """Returns the rank at which two factors have 1/alpha of the weights, floored; 0 where none does.

    Source: arXiv 2407.20266, section 2: C·S / (alpha (C + S)). 2048 → 512 at alpha 2 gives 204.
    """
    return floor(in_channels * out_channels / (alpha * (in_channels + out_channels)))


def tucker2_ranks(in_channels: int, out_channels: int, kernel_area: int, *, alpha: float) -> tuple[int, int]:
    """Returns `(rank_in, rank_out)` at which three factors have 1/alpha of the weights, floored.

    The ranks keep the channels' own proportion, rank_out / rank_in = out / in.

    Source: arXiv 2407.20266, equation 7, with beta = out / in. 512 → 512, 3×3, at alpha 2 gives 309, 309.
    """
    beta = out_channels / in_channels
    linear = (in_channels + beta * out_channels) / (beta * kernel_area)
    constant = in_channels * out_channels / (beta * alpha)
    rank_in = (sqrt(linear**2 + 4 * constant) - linear) / 2
    return floor(rank_in), floor(beta * rank_in)
