"""What a rewrite rule is: a pattern, a check, a rewrite.

To add a rule, write a class with these four members in a file of its own, put it into the tuple that a caller passes to
`apply_rules`, and give it golden graphs under `graphs/RULE/`. What a match is, is the rule's own affair, as long as
reports can name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Change:
    """What a rewrite did.

    Attributes:
        text: in words, for reports.
        relative_error: what the layer lost, ‖W − Ŵ‖F / ‖W‖F; None of a rule that leaves nothing out, and of
            `decompose_node`, where the plan says it.
    """

    text: str
    relative_error: float | None = None


class Match(Protocol):
    """A place where a rule might apply."""

    @property
    def name(self) -> str:
        """What reports call it."""


MatchT = TypeVar("MatchT", bound=Match)


class Rule(Protocol[MatchT]):
    """One local change to a graph. Whether it keeps the outputs is for the rule's own docstring to say."""

    name: str

    def match(self, graph: gs.Graph, /) -> Sequence[MatchT]:
        """Returns every place where the rule might apply."""

    def check(self, graph: gs.Graph, match: MatchT, /) -> str | None:
        """Returns the reason why this place must stay as it is, or None."""

    def rewrite(self, match: MatchT, /) -> Change:
        """Changes a checked place, in place, and says what was changed."""
