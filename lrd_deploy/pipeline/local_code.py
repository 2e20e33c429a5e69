"""The Python files that a user's factory is made of, found by reading them: nothing is imported or run."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lrd_deploy.files import read_bytes, sha256_of

_IMPORTERS = frozenset({"importlib", "runpy", "pkgutil", "imp"})
_RUNNERS = frozenset({"__import__", "exec", "eval"})


def source_digest(reference: str, folder: Path | None) -> str:
    """Returns a digest of the code behind `package.module:factory`, without importing it; "" where none is found.

    Args:
        reference: to a factory, in a module that lies under the recipe's folder or the current one.
        folder: the recipe's.

    Raises:
        StorageError: a file cannot be read.

    Limits: see `local_files`.
    """
    files = local_files(reference.partition(":")[0], [root for root in (folder, Path.cwd()) if root is not None])
    if not files:
        return ""
    digests = {place: sha256_of(path) for place, path in files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def local_files(module: str, roots: Sequence[Path]) -> dict[str, Path]:
    """Returns the files of a module and of all that it imports, directly or not, by their places under their root.

    Where a file imports by names that are made at run time (it uses `importlib`, `exec` and the like), or cannot be
    parsed, every Python file beside it counts.

    Args:
        module: its dotted name.
        roots: folders to look in, the first first; what is in none of them, such as an installed package, is left out.

    Raises:
        StorageError: a file cannot be read.

    Limits: folders that the code adds to `sys.path`, compiled modules, and files that it reads as data are not seen.
    """
    found: dict[str, Path] = {}
    wanted, seen = _with_parents(module), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for place, path in _candidates(name, roots):
            if place not in found:
                found[place] = path
                wanted += _imported(path, ".".join(PurePosixPath(place).parent.parts))
    return found


def _with_parents(module: str) -> list[str]:
    """A package's own code runs before its modules'."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _candidates(name: str, roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files, by place, that a module of this name may be in the first root that has any; "a.*" are all of a's."""
    *package, last = name.split(".")
    for root in roots:
        folder = root.joinpath(*package)
        files = sorted(folder.glob("*.py")) if last == "*" else [folder / last / "__init__.py", folder / f"{last}.py"]
        found = [(file.relative_to(root).as_posix(), file) for file in files if file.is_file()]
        if found:
            return found
    return []


def _imported(path: Path, package: str) -> list[str]:
    """Names of modules that a file may import, those of names that are no modules among them."""
    beside = f"{package}.*" if package else "*"
    try:
        nodes = list(ast.walk(ast.parse(read_bytes(path))))
    except (SyntaxError, ValueError, RecursionError):
        return [beside]
    names = [name for node in nodes for name in _named(node, package)]
    if _IMPORTERS & {name.partition(".")[0] for name in names} or any(map(_runs_text, nodes)):
        names.append(beside)
    return [name for whole in names for name in _with_parents(whole)]


def _named(node: ast.AST, package: str) -> Iterator[str]:
    """What an import statement names; a name taken from a package may be a module of it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".") if package and node.level else []
        parents = parents[: max(len(parents) - node.level + 1, 0)]
        start = [*parents, *(node.module.split(".") if node.module else [])]
        yield from (".".join([*start, alias.name]) for alias in node.names)


def _runs_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in _RUNNERS
