"""Markdown in which text stays text: no name starts a table cell, a link, a formula or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lrd_deploy.report.ci.legible import legible

_MARKUP = re.compile(r"[&<>|`*_~\[\]{}$#\\@]|:(?=//)")


def escaped(text: str, longest: int = 200) -> str:
    """Returns one line that shows `text` and nothing else; what could be markup becomes a character reference."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", legible(text, longest))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are escaped already; the first column is text, the others are right-aligned."""
    rule = ("---", *("---:" for _ in columns[1:]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))


def code_block(command: str) -> str:
    """Returns a block of shell; one line that starts with a word cannot end its own fence."""
    return f"```sh\n{command}\n```"
