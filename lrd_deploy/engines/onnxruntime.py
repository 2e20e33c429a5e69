"""ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lrd_deploy.engines.artifact import artifact_of, check_optimised_model
from lrd_deploy.engines.backend import Arrays, BackendStatus, BuildSettings, SessionSettings
from lrd_deploy.engines.execution_provider import (
    check_device,
    check_placement,
    demand_placement_,
    operators_on_cpu,
    providers,
)
from lrd_deploy.engines.io_binding import BoundCall, outside_graphs
from lrd_deploy.engines.onnxruntime_profile import OnnxRuntimeProfile, profile_options
from lrd_deploy.engines.processor import processor
from lrd_deploy.errors import BackendError, LrdError
from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.export.tensor_data import all_tensors, as_in_file, folder_of, is_beside
from lrd_deploy.files import storage_errors, write_whole
from lrd_deploy.records import EngineArtifact, Execution

_SOURCE_LINE = re.compile(r"/\S+\.(?:cc|h):\d+ .*?\) ")  # where in ONNX Runtime's own source it was raised


class OnnxRuntime:
    """Builds by saving the graph that ONNX Runtime optimised for this processor; runs that, or any ONNX file."""

    name = "onnxruntime"

    def describe(self) -> BackendStatus:
        """Says which version is installed."""
        try:
            import onnxruntime
        except ImportError as exc:
            return BackendStatus(name=self.name, builds=False, runs=False, version=None, detail=str(exc))
        detail = "runs on this CPU"
        return BackendStatus(name=self.name, builds=True, runs=True, version=onnxruntime.__version__, detail=detail)

    def build(self, model: Path, engine: Path, settings: BuildSettings) -> EngineArtifact:  # noqa: ARG002, any batch
        """Writes the optimised graph; it takes any batch, and loads only on processors with the same instructions."""
        started = time.perf_counter()

        def save_optimised(target: Path) -> None:
            options = _options(SessionSettings())
            options.optimized_model_filepath = str(target)
            _session(model, options, Execution())

        write_whole(engine, save_optimised)
        seconds = time.perf_counter() - started
        return artifact_of(engine, model, self.describe(), target="cpu", seconds=seconds, built_on=processor())

    def load(self, model: Path, settings: SessionSettings) -> OnnxRuntimeSession:
        """Loads an ONNX file with every graph optimisation on, on the device that the settings say and no other.

        A file that `build` saved is loaded only where it fits.
        """
        check_optimised_model(model, self.describe(), processor())
        return _loaded(model, settings)

    def load_profiled(self, model: Path, settings: SessionSettings, folder: Path) -> OnnxRuntimeProfile:
        """Loads an ONNX file with the profiler on; trace and optimised graph go to `folder`."""
        options = profile_options(_options(settings), folder)
        session = OnnxRuntimeSession(_session(model, options, Execution()))
        return OnnxRuntimeProfile(session, session.session.end_profiling, model, folder)

    def load_in_memory(self, model: ModelProto, settings: SessionSettings) -> OnnxRuntimeSession:
        """Loads a model that is in no file."""
        return _loaded(model, settings)


@dataclass(frozen=True)
class OnnxRuntimeSession:
    """One `onnxruntime.InferenceSession`."""

    session: Any
    execution: Execution = field(default_factory=Execution)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Returns the outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, dict(inputs), outside_graphs(self.execution)), strict=True))
        except Exception as exc:  # ONNX Runtime's errors share no base class
            raise _refused("running the model", exc) from exc

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call on C-contiguous copies of the inputs.

        Outputs are allocated by ONNX Runtime, as in serving; with IO binding both stay on the device, in fixed places.
        """
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if self.execution.io_binding:
            return self._bound(feeds)
        self.run(feeds)  # a wrong shape is told here, not in the timed loop
        run = self.session.run
        return lambda: run(None, feeds)

    def copies(self, inputs: Arrays) -> tuple[Callable[[], object], Callable[[], object]]:
        """Returns a call that copies the inputs to the device, and one that copies the outputs back."""
        return self._bound(inputs).copies(inputs)

    def on_cpu(self) -> tuple[str, ...]:
        """Returns the operators that run on the CPU; known of sessions on a GPU."""
        return operators_on_cpu(self.session)

    def _bound(self, feeds: Arrays) -> BoundCall:
        try:
            return BoundCall.of(self.session, feeds, self.execution)
        except Exception as exc:  # ONNX Runtime's errors share no base class
            raise _refused("binding the model's inputs and outputs", exc) from exc


def _loaded(model: Path | ModelProto, settings: SessionSettings) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(_session(model, _options(settings), settings.execution), settings.execution)


def _options(settings: SessionSettings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if not settings.spin_between_calls:
        # Keeps parallelism within a call; threads that go on spinning after it would slow the other arm down.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(model: Path | ModelProto, options: Any, execution: Execution) -> Any:
    import onnxruntime

    check_device(execution)
    demand_placement_(options, execution, onnxruntime.InferenceSession)
    in_file = isinstance(model, Path)
    if in_file:
        with storage_errors("reading", model), model.open("rb"):  # an unreadable file is told as such
            pass
    doing = f"loading '{model if in_file else model.graph.name}'"
    try:
        with _source(model, options) as source:
            session = onnxruntime.InferenceSession(source, options, providers=providers(execution))
    except LrdError:
        raise
    except Exception as exc:  # ONNX Runtime's errors share no base class
        raise _refused(doing, exc) from exc
    check_placement(session, execution, doing)
    return session


@contextmanager
def _source(model: Path | ModelProto, options: Any) -> Iterator[str | bytes]:
    """What ONNX Runtime is given: a path, or a model's bytes with the one folder that its weights are in."""
    if isinstance(model, Path):
        yield str(model)
        return
    folders = {folder_of(tensor) for tensor in all_tensors(model) if is_beside(tensor)}
    if len(folders) <= 1:
        for folder in folders:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        yield as_in_file(model).SerializeToString() if folders else model.SerializeToString()
        return
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        yield str(write_model(model, Path(folder, "model.onnx")))


def _refused(doing: str, exc: Exception) -> BackendError:
    return BackendError(
        f"{doing} with ONNX Runtime",
        found=_SOURCE_LINE.sub("", " ".join(str(exc).split()))[:400],
        accepted="a model and inputs that ONNX Runtime takes",
        remedy="check the inputs' names and shapes, and the model's opset against the installed version",
    )
