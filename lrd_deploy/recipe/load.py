"""YAML in, `Recipe` out; every mistake in the file is found before any work starts."""

from __future__ import annotations

from collections.abc import Hashable
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from lrd_deploy.errors import LrdError, UsageError, raise_all
from lrd_deploy.files import read_bytes
from lrd_deploy.recipe.policies import LatencyRank, PaperRank, Policy
from lrd_deploy.recipe.settings import (
    Bench,
    Build,
    Calibration,
    DataSource,
    Export,
    FineTuning,
    ModelSource,
    Progress,
    Rewrite,
    Settings,
    TablePath,
    Training,
    TransformersConfig,
)

_QUANTUM_OF_FORMULAS = 16  # blocks of channels on common hardware; measured ranks need no rule of thumb
_WHERE_KEYS_ARE_SAID = "docs/recipe.md lists every key"


class Recipe(Settings):
    """One run, from a model and data to a measured low-rank engine.

    `dense` says how to train a model that comes without trained weights; leave it out for one that is trained.
    `skip` holds glob patterns of layer names that stay dense. `tables` are stored latency tables, used in the place
    of measurements; see `calibrate latency`.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    model: ModelSource
    data: DataSource
    ranks: Policy
    fine_tune: FineTuning
    dense: Training | None = None
    calibration: Calibration = Calibration()
    tables: tuple[TablePath, ...] = ()
    skip: tuple[str, ...] = ()
    export: Export = Export()
    rewrite: Rewrite = Rewrite()
    build: Build = Build()
    bench: Bench = Bench()
    progress: Progress = Progress()
    seed: int = Field(default=0, ge=0)

    @property
    def padded_to(self) -> int:
        """What the exported ranks are padded to multiples of; 1 leaves them as they are."""
        if self.rewrite.quantum != "auto":
            return self.rewrite.quantum
        return 1 if isinstance(self.ranks, (LatencyRank, PaperRank)) else _QUANTUM_OF_FORMULAS

    @field_validator("model", "data", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Reads `transformers:./folder`, `python:module:factory` and `digits`."""
        if not isinstance(value, str):
            return value
        scheme, separator, rest = value.partition(":")
        return {scheme: rest} if separator else {scheme: {}}

    @model_validator(mode="after")
    def _new_weights_are_trained(self) -> Recipe:
        if isinstance(self.model, TransformersConfig) and self.model.weights is None and self.dense is None:
            raise ValueError("the model starts from random weights, so a section 'dense' must say how to train it")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """Returns the recipe of that built-in name, or in that YAML file.

    Raises:
        UsageError: no such recipe, or it says something that is not understood (all mistakes in one message).
    """
    path = Path(name_or_path)
    if path.suffix == ".onnx":
        raise UsageError(
            f"reading the recipe '{path}'",
            found="an ONNX file",
            accepted="a recipe, which is a YAML file, or the name of a built-in one",
            remedy="pass an ONNX file to 'lrd-deploy compress' or 'lrd-deploy bench'",
        )
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return parse_recipe(_decoded(path), source=str(path), folder=path.parent)
    known = builtin_recipes()
    if name_or_path in known:
        return parse_recipe(known[name_or_path], source=name_or_path, folder=None)
    nearest = get_close_matches(name_or_path, known, n=1)
    raise UsageError(
        f"looking for the recipe '{name_or_path}'",
        found="neither a file nor a built-in name",
        accepted=f"a path to a .yaml file, or one of: {', '.join(known)}",
        remedy=f"did you mean '{nearest[0]}'?" if nearest else "check the spelling",
    )


def _decoded(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"reading the recipe '{path}'",
            found=f"the byte 0x{exc.object[exc.start]:02x} at position {exc.start}",
            accepted="UTF-8 text",
            remedy="save the file as UTF-8",
        ) from exc


def builtin_recipes() -> dict[str, str]:
    """Returns the text of each recipe that is installed with the package, by name."""
    folder = resources.files("lrd_deploy.recipes")
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text("utf-8") for entry in sorted(files, key=lambda e: e.name)}


def parse_recipe(text: str, *, source: str, folder: Path | None) -> Recipe:
    """Returns the recipe in `text`; `folder` is what its relative paths start from.

    Raises:
        UsageError: as `load_recipe`.
    """
    doing = f"reading the recipe '{source}'"
    try:
        data = yaml.load(text, _UniqueKeyLoader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as exc:
        raise UsageError(
            doing, found=" ".join(str(exc).split()), accepted="a YAML mapping", remedy="mend the YAML"
        ) from exc
    if not isinstance(data, dict):
        raise UsageError(
            doing, found=f"a {type(data).__name__} at the top", accepted="a YAML mapping", remedy=_WHERE_KEYS_ARE_SAID
        )
    try:
        return Recipe.model_validate(data, context={"folder": folder})
    except ValidationError as exc:
        raise_all(doing, [_told(doing, error) for error in exc.errors()])


def _told(doing: str, error: ErrorDetails) -> LrdError:
    where = ".".join(str(part) for part in error["loc"] if not str(part).startswith("<"))
    doing = f"{doing}, at '{where}'" if where else doing
    context = error.get("ctx", {})
    if error["type"] == "unknown_key":
        return UsageError(doing, found=error["msg"], accepted=context["accepted"], remedy=context["remedy"])
    if error["type"] == "missing":
        return UsageError(doing, found="nothing", accepted="this key is required", remedy=_WHERE_KEYS_ARE_SAID)
    accepted = error["msg"].removeprefix("Value error, ")
    found = "a value that does not fit" if isinstance(error["input"], dict) else f"{error['input']!r}"
    return UsageError(doing, found=found, accepted=accepted[0].lower() + accepted[1:], remedy=_WHERE_KEYS_ARE_SAID)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is no text", key_node.start_mark)
            if key in seen:
                problem = f"the key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
