"""A finished run, or an ONNX file by itself, as models in a Triton model repository."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lrd_deploy.engines.difference import rounding_tolerance
from lrd_deploy.engines.inputs import random_inputs, repeated, stored_arrays
from lrd_deploy.errors import UsageError
from lrd_deploy.export.model_files import MODEL_NAME, PLAN_NAME, ModelFiles, onnx_files
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.pipeline.deployment_stages import engine_settings
from lrd_deploy.pipeline.finished_run import FinishedRun, in_pytorch_as, open_finished_run
from lrd_deploy.recipe.settings import DigitsData
from lrd_deploy.records import Arm, BundleSource, EngineArtifact, NotPackaged, PackageResult
from lrd_deploy.serving.bundle import Reference, Served, stage
from lrd_deploy.serving.labels import Labels, demanded_labels, labels_for, named_classes
from lrd_deploy.serving.repository import check_apart, check_name, staging
from lrd_deploy.serving.tensors import ServedGraph, served_graph
from lrd_deploy.serving.triton_config import ServingSettings

if TYPE_CHECKING:
    from torch import nn

_MAX_BATCH, _BATCH, _THREADS = 64, 8, 1
_RTX_REASON = "Triton's tensorrt backend loads plans of TensorRT, not of TensorRT-RTX"
_STALE_REASON = "it was built from another ONNX file than the run's: build it again with 'lrd-deploy run'"
_NO_GPU_REASON = "a plan runs only on the GPU it was built on; the ONNX file it was built from was checked"


@dataclass(frozen=True)
class PackageRequest:
    """What to put into which repository, and how it is to be served. None is what the run, or a default, says.

    Attributes:
        repository: Triton's.
        name: of the low-rank model, or of the ONNX file's; the others add `_dense` and `_trt` to it.
        arms: of a run.
        version: the number; None is the next one.
        max_batch: the largest batch; 0 serves requests as they come, one by one.
        batch: the one that was measured.
        max_queue_delay_us: how long a request may wait for others, in microseconds.
        instances: copies side by side.
        threads: of each, on a CPU.
        gpu: whether ONNX models run on GPUs.
        labels: a file of class names.
    """

    repository: Path
    name: str | None = None
    arms: tuple[Arm, ...] = ("lowrank",)
    version: int | None = None
    max_batch: int | None = None
    batch: int | None = None
    max_queue_delay_us: int = 100
    instances: int = 1
    threads: int | None = None
    gpu: bool = False
    labels: Path | None = None

    def settings(self, graph: ServedGraph, *, batch: int = _BATCH, threads: int = _THREADS) -> ServingSettings:
        """Returns how a model is served.

        Args:
            graph: of the model.
            batch: that was measured.
            threads: with which it was measured.

        Raises:
            UsageError: a largest batch was asked for, and the model's is fixed; or an option that would do nothing.
        """
        self._refuse_idle_options()
        if self.max_batch and not graph.batched:
            raise UsageError(
                "choosing the largest batch",
                found=f"--max-batch {self.max_batch} for a model with a fixed batch",
                accepted="a model whose every input and output starts with a free dimension",
                remedy="leave --max-batch out, or export the model with a dynamic batch",
            )
        measured = self.batch or batch
        return ServingSettings(
            max_batch=self.max_batch or max(_MAX_BATCH, measured),
            measured_batch=measured,
            max_queue_delay_us=self.max_queue_delay_us,
            instances=self.instances,
            threads=self.threads or threads,
            gpu=self.gpu,
        )

    def _refuse_idle_options(self) -> None:
        for option, value, other in (
            ("--threads", self.threads if self.gpu else None, "--gpu, whose work runs on no thread of the CPU"),
            ("--batch", self.batch if self.max_batch == 0 else None, "--max-batch 0, which batches nothing"),
            (
                "--batch",
                self.batch if self.max_batch and self.batch and self.batch > self.max_batch else None,
                f"--max-batch {self.max_batch}, below it",
            ),
        ):
            if value is not None:
                raise UsageError(
                    "choosing how a model is served",
                    found=f"{option} {value} beside {other}",
                    accepted="one of the two",
                    remedy=f"leave {option} out",
                )


def package_run(folder: Path, request: PackageRequest, observer: Observer | None = None) -> PackageResult:
    """Packages arms of a finished run, and their TensorRT engines where it has any.

    Every model is put together and checked against the trained PyTorch model before the first gets to its place.

    Args:
        folder: of the run; it is only read.
        request: what to package, and how.
        observer: hears of progress.

    Raises:
        LrdError: any of them; nothing was left in the repository, unless the disk refused while models moved there.
    """
    observer = observer or SilentObserver()
    run = open_finished_run(folder, observer)
    check_apart(request.repository, folder)
    models = (served for arm in request.arms for served in _served_of_run(run, arm, request))
    skipped = tuple(left_out for arm in request.arms for left_out in _left_out(run, arm))
    return _packaged(models, request, skipped, observer)


def package_onnx(
    path: Path, request: PackageRequest, inputs: Path | None = None, observer: Observer | None = None
) -> PackageResult:
    """Packages an ONNX file, whose external weights are copied and never loaded as a whole here.

    Args:
        path: of the file.
        request: how to package it.
        inputs: an .npz file of real inputs by name; None for random ones.
        observer: hears of progress.

    Raises:
        LrdError: any of them; nothing was left in the repository, unless the disk refused while models moved there.
    """
    model = read_model(path)
    graph, files = served_graph(model, may_batch=request.max_batch != 0), onnx_files(path, model)
    settings = request.settings(graph)
    infos = [tensor.info for tensor in graph.inputs]
    batch = max(settings.batches(graph))
    served = Served(
        name=check_name(path.stem if request.name is None else request.name),
        backend="onnxruntime",
        files=files,
        graph=graph,
        settings=settings,
        arrays=stored_arrays(inputs, infos) if inputs else random_inputs(infos, [batch], path)[0],
        inputs_from="file" if inputs else "random",
        labels=demanded_labels(graph, request.labels) if request.labels else None,
        source=BundleSource(digests=files.digests),
        reference=Reference(path, rounding_tolerance(model)),
    )
    return _packaged([served], request, (), observer or SilentObserver())


def _packaged(
    models: Iterable[Served], request: PackageRequest, skipped: tuple[NotPackaged, ...], observer: Observer
) -> PackageResult:
    """Stages all models, then moves all of them: a model that fails leaves none behind."""
    with staging(request.repository) as place:
        staged, notes = [], []
        for served in models:
            staged.append(stage(served, place, request.repository, request.version))
            notes += _notes(served, staged[-1].number, staged[-1].after.number)
            observer.note(f"checked {served.name}, version {staged[-1].number}")
        packaged = tuple(model.put_in_place() for model in staged)
    repository = request.repository.resolve()
    return PackageResult(repository=repository, models=packaged, skipped=skipped, notes=tuple(notes))


def _notes(served: Served, number: int, latest: int) -> list[str]:
    notes = []
    if number != latest:
        notes.append(f"{served.name}: Triton serves version {latest}, the latest, and not version {number}")
    if served.inputs_from == "random":
        notes.append(f"{served.name}: warm-up inputs are random; give real ones with --inputs X.npz")
    if served.settings.gpu and served.backend == "onnxruntime":
        notes.append(f"{served.name}: to be served on GPUs, and checked on this CPU")
    if served.source.recipe and not served.labels:
        notes.append(f"{served.name}: no labels.txt, since nobody named the classes; give a file with --labels")
    return notes


# Of a run ----------------------------------------------------------------------------------------------------------


def _served_of_run(run: FinishedRun, arm: Arm, request: PackageRequest) -> Iterator[Served]:
    onnx = _served_arm(run, arm, request)
    yield onnx
    engine = _engine(run, "tensorrt", arm)
    if engine and not _is_stale(run, engine, arm):
        yield _served_engine(run, engine, onnx)


def _served_arm(run: FinishedRun, arm: Arm, request: PackageRequest) -> Served:
    path, bench = run.model_file(arm), run.work.recipe.bench
    graph_proto = read_model(path)
    graph = served_graph(graph_proto, may_batch=request.max_batch != 0)
    model = run.model(arm)
    outputs = [output.info.name for output in graph.outputs]
    trained = in_pytorch_as(model, run.inputs(), outputs, bare_tensor=run.exported.bare_tensor)
    name = run.record.recipe if request.name is None else request.name
    return Served(
        name=check_name(name if arm == "lowrank" else f"{name}_{arm}"),
        backend="onnxruntime",
        files=onnx_files(path, graph_proto),
        graph=graph,
        settings=request.settings(graph, batch=bench.batch, threads=bench.threads),
        arrays=run.inputs() if graph.batched else {name: repeated(array, 1) for name, array in run.inputs().items()},
        inputs_from="run",
        labels=_labels(run, graph, model, request),
        source=BundleSource(recipe=run.record.recipe, arm=arm, digests=run.digests(arm)),
        reference=Reference(trained, rounding_tolerance(graph_proto)),
        accuracy=getattr(run.record.accuracy, arm),
        speedup=run.record.speedup if arm == "lowrank" else None,
    )


def _served_engine(run: FinishedRun, engine: EngineArtifact, onnx: Served) -> Served:
    graph = served_graph(read_model(onnx.files.files[MODEL_NAME]), "tensorrt", may_batch=onnx.graph.batched)
    largest = min(onnx.settings.max_batch, engine_settings(run.work.recipe).max_batch)
    path = run.engine_file(engine.path, engine.sha256)
    return replace(
        onnx,
        name=check_name(f"{onnx.name}_trt"),
        backend="tensorrt",
        files=ModelFiles({PLAN_NAME: path}),
        graph=graph,
        settings=replace(onnx.settings, gpu=True, max_batch=largest),
        source=onnx.source.model_copy(update={"digests": {**onnx.source.digests, str(engine.path): engine.sha256}}),
        reference=_NO_GPU_REASON,
        speedup=None,  # it was measured in ONNX Runtime
    )


def _labels(run: FinishedRun, graph: ServedGraph, model: nn.Module, request: PackageRequest) -> Labels | None:
    """The user's, else the names in the model's own config, else the digits where the data is handwritten digits."""
    if request.labels:
        return demanded_labels(graph, request.labels)
    names = named_classes(getattr(getattr(model, "config", None), "id2label", None))
    digits = tuple("0123456789") if isinstance(run.work.recipe.data, DigitsData) else ()
    return labels_for(graph, names or digits)


def _left_out(run: FinishedRun, arm: Arm) -> Iterator[NotPackaged]:
    if engine := _engine(run, "tensorrt-rtx", arm):
        yield NotPackaged(what=str(engine.path), reason=_RTX_REASON)
    if (engine := _engine(run, "tensorrt", arm)) and _is_stale(run, engine, arm):
        yield NotPackaged(what=str(engine.path), reason=_STALE_REASON)
    if refusal := run.built.refused.get(f"tensorrt {arm}"):
        yield NotPackaged(what=f"a TensorRT engine of the {arm} arm", reason=refusal)


def _engine(run: FinishedRun, backend: str, arm: Arm) -> EngineArtifact | None:
    return run.built.engines.get(f"{backend} {arm}")


def _is_stale(run: FinishedRun, engine: EngineArtifact, arm: Arm) -> bool:
    digest = run.exported.dense.sha256 if arm == "dense" else run.rewritten.report.sha256
    return engine.source_sha256 != digest
