"""What verbs that draw a picture have in common."""

from __future__ import annotations

from pathlib import Path


def check_svg(path: Path, doing: str) -> None:
    """Raises `UsageError` where a picture is to go to a file that does not end in .svg."""
    from lrd_deploy.errors import UsageError

    if path.suffix != ".svg":
        raise UsageError(
            doing,
            found=f"'{path}'",
            accepted="a file that ends in .svg",
            remedy=f"write '{path.with_suffix('.svg')}'",
        )
