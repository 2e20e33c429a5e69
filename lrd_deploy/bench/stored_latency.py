"""Latencies from a table that was measured elsewhere: planning for a machine that is not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrd_deploy.bench.latency_table import Conditions, LatencyTable
from lrd_deploy.errors import InputError
from lrd_deploy.records import Choice, Environment, KeepDense, LayerSignature


@dataclass(frozen=True)
class StoredLatency:
    """Answers from one machine's rows and measures nothing; ranks between stored ones are predicted from those."""

    table: LatencyTable
    conditions: Conditions
    environment: Environment

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan should know about its latencies."""
        machine = self.environment
        names = [gpu.name for gpu in machine.gpus if self.conditions.execution.gpu is not None]
        return (f"latencies were measured on another machine: {', '.join((*names, machine.cpu, machine.system))}",)

    def latencies_ms(
        self, requests: Mapping[LayerSignature, Sequence[Choice]]
    ) -> Mapping[tuple[LayerSignature, Choice], float]:
        """Returns every row under the conditions.

        Raises:
            InputError: a layer asked for has no dense row; all such layers are named.
        """
        known = self.table.usable(self.conditions)
        missing = [str(signature) for signature in requests if (signature, KeepDense()) not in known]
        if missing:
            raise InputError(
                "planning from a stored latency table",
                found=f"no rows for {'; '.join(missing[:5])}{f' and {len(missing) - 5} more' if missing[5:] else ''}",
                accepted="a dense row for every layer of the model",
                remedy="run 'lrd-deploy calibrate latency' with this recipe on the machine that the table is for",
            )
        return known


def stored_conditions(table: LatencyTable, wanted: Conditions) -> Conditions:
    """Returns the conditions of the table's rows that agree with `wanted` in all but the machine.

    Raises:
        InputError: there are none, or those of several machines.
    """
    alike = {
        conditions
        for conditions, _, _ in table.rows
        if conditions.model_copy(update={"fingerprint": wanted.fingerprint}) == wanted
    }
    if wanted in alike:
        return wanted
    if len(alike) == 1:
        return alike.pop()
    found = {conditions.model_dump_json(exclude_defaults=True) for conditions, _, _ in table.rows}
    machines = [table.environments[one.fingerprint].cpu for one in alike if one.fingerprint in table.environments]
    raise InputError(
        "planning from a stored latency table",
        found=f"rows of {len(alike)} machines ({', '.join(sorted(machines))})" if alike else _few(found),
        accepted="rows of one machine for " + wanted.model_dump_json(exclude={"fingerprint"}),
        remedy="pass one machine's file, with the recipe's batch and threads"
        if alike
        else "set 'bench' in the recipe to what the table was measured for, or calibrate again",
    )


def _few(found: set[str]) -> str:
    return f"rows for {'; '.join(sorted(found)[:3])}" if found else "no rows"
