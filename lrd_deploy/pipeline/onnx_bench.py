"""The deployment that an ONNX file is timed for: its batch, its threads, and where its latencies come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx import ModelProto

from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.errors import UsageError
from lrd_deploy.export.onnx_file import graph_inputs
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.planning import with_tables
from lrd_deploy.ranks.source import LatencySource
from lrd_deploy.recipe.settings import Bench


def deployed_bench(model: ModelProto, batch: int | None, threads: int | None, *, launches: int = 8) -> Bench:
    """Returns the deployment that was asked for; a batch that the model fixes need not be asked for.

    Raises:
        UsageError: the model fixes another batch.
    """
    inputs = graph_inputs(model)
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    fixed = first if isinstance(first, int) else None
    if fixed is not None and batch not in (None, fixed):
        raise UsageError(
            f"choosing the batch for the graph '{model.graph.name}'",
            found=f"--batch {batch}",
            accepted=f"{fixed}, which the input '{inputs[0].name}' fixes",
            remedy="leave out --batch, or export the model with a dynamic batch",
        )
    chosen = {"batch": fixed or batch, "threads": threads}
    return Bench(launches=launches, **{name: value for name, value in chosen.items() if value is not None})


@contextmanager
def chain_latencies(table: Path | None, bench: Bench, observer: Observer) -> Iterator[LatencySource]:
    """Yields latencies from a stored table; of this machine's what it lacks is measured, and added to it.

    A table that is not there yet is made; without one, measurements are forgotten afterwards. A table of another
    machine is only read.

    Raises:
        InputError: the file is no table, or has no rows for this deployment.
    """
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        store = table or Path(folder, "latency.jsonl")
        measured = MeasuredLatency(batch=bench.batch, threads=bench.threads, store=store, observer=observer)
        yield with_tables(measured, [table] if table is not None and table.exists() else [])
