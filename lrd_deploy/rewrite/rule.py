"""What a rewrite rule is: a pattern, a check, a rewrite.

To add a rule, write a class with these four members in a file of its own, put it into the tuple that a caller passes to
`apply_rules`, and give it golden graphs under `graphs/RULE/`.
"""

from __future__ import annotations

from typing import Protocol

import onnx_graphsurgeon as gs

from lrd_deploy.rewrite.factor_chain import FactorChain


class Rule(Protocol):
    """One exact, local change to a graph."""

    name: str

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """Returns every place where the rule might apply."""

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Returns the reason why this place must stay as it is, or None."""

    def rewrite(self, chain: FactorChain) -> str:
        """Changes a checked place, in place, and says what was changed."""
