"""What a rewrite rule is: a pattern, a check, a rewrite.

To add a rule, write a class with these four members in a file of its own, put it into the tuple that a caller passes to
`apply_rules`, and give it golden graphs under `graphs/RULE/`. What it matches is a type of its own too, which knows the
graph that it is in.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import onnx_graphsurgeon as gs


class Named(Protocol):
    """A place in a graph, by the name that reports give it."""

    @property
    def name(self) -> str:
        """Of the layer, where the place has one."""


Place = TypeVar("Place", bound=Named)


class Rule(Protocol[Place]):
    """One local change to a graph."""

    name: str

    def match(self, graph: gs.Graph) -> list[Place]:
        """Returns every place where the rule might apply."""

    def check(self, place: Place) -> str | None:
        """Returns the reason why this place must stay as it is, or None."""

    def rewrite(self, place: Place) -> str:
        """Changes a checked place, in place, and says what was changed."""
