"""The rows that `graphs.py` keeps: each says where, when and with what it was made; rows made otherwise stay out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lrd_deploy.bench.environment import environment

PROVENANCE = ("machine", "cpu", "cores", "versions")
Row = dict[str, Any]


def provenance(packages: Iterable[str]) -> Row:
    """Returns what a row made here and now says of its origin: the machine, and the versions of what is installed."""
    here = environment()
    versions = {package: found for package in packages if (found := _version(package))}
    return {"machine": here.fingerprint, "cpu": here.cpu, "cores": here.cores, "versions": versions}


def append(path: Path, rows: Iterable[Row], origin: Row) -> None:
    """Adds rows to a file, with their origin and the date."""
    date = time.strftime("%Y-%m-%d")
    with path.open("a") as stream:
        stream.writelines(json.dumps({**row, **origin, "date": date}) + "\n" for row in rows)


def made_alike(rows: Iterable[Row], wanted: Row) -> list[Row]:
    """Returns the rows that agree with `wanted` in all that it holds."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def made_as_last(rows: Sequence[Row], keys: Sequence[str] = PROVENANCE) -> list[Row]:
    """Returns the rows that agree with the last one in these keys; none where there is no row."""
    return made_alike(rows, {key: rows[-1].get(key) for key in keys}) if rows else []


def origin_told(rows: Sequence[Row], left_out: int) -> str:
    """Says in one line where the rows, made alike, are from, and how many others are stored and not shown."""
    others = f" Left out: {left_out} rows that were made otherwise." if left_out else ""
    if not rows:
        return f"No rows yet.{others}"
    if "versions" not in rows[-1]:
        return f"Where and with what these rows were made is not recorded.{others}"
    versions = ", ".join(f"{name} {found}" for name, found in rows[-1]["versions"].items())
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{rows[-1]['cpu']}, {rows[-1]['cores']} cores; {versions}; {when}.{others}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
