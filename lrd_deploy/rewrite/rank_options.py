"""What could become of a factor chain: stay, be padded, be truncated, or be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import relative_error
from lrd_deploy.decompose.lower_rank import lowered
from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.ranks.staircase import with_ranks
from lrd_deploy.records import ChainAction, Choice, KeepDense
from lrd_deploy.rewrite.chain_weights import chain_factors
from lrd_deploy.rewrite.factor_chain import FactorChain
from lrd_deploy.rewrite.merge_factors import MergeFactors
from lrd_deploy.rewrite.pad_rank import PadRank
from lrd_deploy.rewrite.rule import Rule
from lrd_deploy.rewrite.truncate_rank import TruncateRank


@dataclass(frozen=True)
class RankOption:
    """One thing that could be done to one chain.

    Attributes:
        action: in a word.
        choice: the form and ranks that it would leave.
        rule: does it; None where there is nothing to do.
    """

    action: ChainAction
    choice: Choice
    rule: Rule | None = None


def rank_options(
    graph: gs.Graph, chain: FactorChain, choice: Choice, quanta: Sequence[int], *, truncate: bool
) -> list[RankOption]:
    """Returns what the rules allow for a chain in that form: staying first, every form and rank once.

    Args:
        graph: holds the chain.
        chain: in the graph.
        choice: its form and ranks.
        quanta: ranks are brought to multiples of these.
        truncate: whether ranks may be lowered, which is not exact.
    """
    only = frozenset({chain.name})
    options = [RankOption("keep", choice)]
    for quantum in quanta:
        up = tuple(-(-rank // quantum) * quantum for rank in ranks_of(choice))
        options.append(RankOption("pad", with_ranks(choice, up), PadRank(quantum, only)))
        down = tuple(rank // quantum * quantum for rank in ranks_of(choice))
        if truncate and all(down):
            options.append(RankOption("truncate", with_ranks(choice, down), TruncateRank(quantum, only)))
    options.append(RankOption("merge", KeepDense(), MergeFactors(only)))
    allowed = [option for option in options if option.rule is None or option.rule.check(graph, chain) is None]
    return list({option.choice: option for option in reversed(allowed)}.values())[::-1]


def truncation_error(chain: FactorChain, choice: Choice) -> float:
    """Returns ‖W − Ŵ‖F / ‖W‖F of the chain's product against its best approximation of these ranks."""
    factors = chain_factors(chain)
    return relative_error(factors.product(), lowered(factors, ranks_of(choice)))
