"""Latency tables: what layers took, measured once and kept, as JSON lines that merge by union.

A line is either an environment or a row that names the environment's fingerprint. The file format is the contract
between machines: `calibration/README.md` describes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, write_text
from lrd_deploy.records import Choice, Environment, Execution, LayerSignature, Record
from lrd_deploy.records.record import first_mistake


class Conditions(Record):
    """What a latency depends on besides the layer; rows of other conditions are not comparable."""

    backend: str
    work: Literal["inference", "training"] = "inference"
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    batch: int
    threads: int
    fingerprint: str
    execution: Execution = Execution()


class LatencyRow(Record):
    """One measured latency. `spread` is the interquartile range of its samples over their median.

    A row that is not `settled` spread more than a rank decision can stand; it is kept, and not used.
    """

    kind: Literal["latency"] = "latency"
    schema_version: Literal[1] = 1
    conditions: Conditions
    signature: LayerSignature
    choice: Choice
    latency_ms: float = Field(gt=0.0)
    spread: float = Field(ge=0.0)
    settled: bool
    samples: int = Field(ge=1)


class MeasuredEnvironment(Record):
    """The machine that the rows of its fingerprint were measured on."""

    kind: Literal["environment"] = "environment"
    schema_version: Literal[1] = 1
    environment: Environment


_LINE = TypeAdapter(Annotated[LatencyRow | MeasuredEnvironment, Field(discriminator="kind")])
Key = tuple[Conditions, LayerSignature, Choice]


@dataclass
class LatencyTable:
    """Rows by what they are of, and the machines they come from."""

    rows: dict[Key, LatencyRow] = field(default_factory=dict)
    environments: dict[str, Environment] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Reads a table; of rows with the same key the last counts.

        Raises:
            StorageError: the file cannot be read.
            InputError: a line is cut short, malformed or of another schema.
        """
        table = cls()
        lines = read_bytes(path).decode(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                table.add(_LINE.validate_json(line))
            except ValidationError as exc:
                raise InputError(
                    f"reading the latency table '{path}'",
                    found=f"line {number} of {len(lines)}: {first_mistake(exc)}",
                    accepted="JSON lines of schema 1, as 'lrd-deploy calibrate latency' writes them",
                    remedy="restore the file, or delete it to measure again",
                ) from exc
        return table

    @classmethod
    def read_all(cls, paths: Iterable[Path]) -> LatencyTable:
        """Returns the union of several tables; a folder stands for its `*.jsonl` files."""
        table = cls()
        for path in paths:
            for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
                table.merge(cls.read(file))
        return table

    def add(self, line: LatencyRow | MeasuredEnvironment) -> None:
        """Adds a row or an environment, in the place of an older one."""
        if isinstance(line, MeasuredEnvironment):
            self.environments[line.environment.fingerprint] = line.environment
        else:
            self.rows[line.conditions, line.signature, line.choice] = line

    def merge(self, other: LatencyTable) -> None:
        """Adds all of another table."""
        self.rows |= other.rows
        self.environments |= other.environments

    def usable(self, conditions: Conditions) -> dict[tuple[LayerSignature, Choice], float]:
        """Returns the settled latencies under exactly these conditions."""
        return {key: row.latency_ms for key, row in self._under(conditions) if row.settled}

    def unsettled(self, conditions: Conditions) -> dict[tuple[LayerSignature, Choice], float]:
        """Returns the spread of the rows that did not settle, under exactly these conditions."""
        return {key: row.spread for key, row in self._under(conditions) if not row.settled}

    def write(self, path: Path) -> Path:
        """Writes the whole table, environments first; whole or not at all."""
        lines = [MeasuredEnvironment(environment=environment) for environment in self.environments.values()]
        return write_text(path, "".join(line.model_dump_json() + "\n" for line in (*lines, *self.rows.values())))

    def _under(self, conditions: Conditions) -> Iterator[tuple[tuple[LayerSignature, Choice], LatencyRow]]:
        for (found, signature, choice), row in self.rows.items():
            if found == conditions:
                yield (signature, choice), row
