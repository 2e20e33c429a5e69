"""Names as data: one line of characters that every format can hold, and no two alike."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

_LINE_BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
# Reorder what is shown, so that a name could pose as another; joiners, which emoji need, stay.
_REORDERING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_TABLE = dict.fromkeys(map(ord, _LINE_BREAKS), " ") | dict.fromkeys(map(ord, _REORDERING))


def legible(text: str, longest: int = 200) -> str:
    """Returns text on one line, without control characters, surrogates and what XML forbids, cut at `longest`."""
    line = "".join(character for character in text.translate(_TABLE) if _shown(character)).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def distinct(names: Iterable[str]) -> list[str]:
    """Returns the names, those that were there before with a number: readers drop or refuse a second of the same."""
    taken: set[str] = set()
    seen: Counter[str] = Counter()
    found = []
    for name in (name or "unnamed" for name in names):
        candidate = name
        while candidate in taken:
            seen[name] += 1
            candidate = f"{name} ({seen[name] + 1})"
        taken.add(candidate)
        found.append(candidate)
    return found


def _shown(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cs"} and (ord(character) & 0xFFFE) != 0xFFFE
