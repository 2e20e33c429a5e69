"""ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lrd_deploy.engines.artifact import artifact_of, check_optimised_model
from lrd_deploy.engines.backend import Arrays, BackendStatus, BuildSettings, SessionSettings
from lrd_deploy.engines.onnxruntime_profile import OnnxRuntimeProfile, profile_options
from lrd_deploy.engines.processor import processor
from lrd_deploy.errors import BackendError
from lrd_deploy.files import read_bytes, write_whole
from lrd_deploy.records import EngineArtifact

_PROVIDER = "CPUExecutionProvider"


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
            _session(model, options)

        write_whole(engine, save_optimised)
        seconds = time.perf_counter() - started
        return artifact_of(engine, model, self.describe(), target="cpu", seconds=seconds, built_on=processor())

    def load(self, model: Path, settings: SessionSettings) -> OnnxRuntimeSession:
        """Loads an ONNX file with every graph optimisation on; one that `build` saved only where it fits."""
        check_optimised_model(model, self.describe(), processor())
        return OnnxRuntimeSession(_session(model, _options(settings)))

    def load_profiled(self, model: Path, settings: SessionSettings, folder: Path) -> OnnxRuntimeProfile:
        """Loads an ONNX file with the profiler on; trace and optimised graph go to `folder`."""
        session = OnnxRuntimeSession(_session(model, profile_options(_options(settings), folder)))
        return OnnxRuntimeProfile(session, session.session.end_profiling, model, folder)

    def load_in_memory(self, model: ModelProto, settings: SessionSettings) -> OnnxRuntimeSession:
        """Loads a model that is in no file."""
        return OnnxRuntimeSession(_session(model, _options(settings)))


@dataclass(frozen=True)
class OnnxRuntimeSession:
    """One `onnxruntime.InferenceSession`."""

    session: Any

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Returns the outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        except Exception as exc:  # ONNX Runtime's errors share no base class
            raise _refused("running the model", exc) from exc

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call on C-contiguous copies of the inputs; outputs are allocated by ONNX Runtime, as in serving."""
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self.run(feeds)  # a wrong shape is told here, not in the timed loop
        run = self.session.run
        return lambda: run(None, feeds)


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


def _session(model: Path | ModelProto, options: Any) -> Any:
    import onnxruntime

    in_file = isinstance(model, Path)
    if in_file:
        read_bytes(model)[:0]  # an unreadable file is told as such
    try:
        source = str(model) if in_file else model.SerializeToString()
        return onnxruntime.InferenceSession(source, options, providers=[_PROVIDER])
    except Exception as exc:  # ONNX Runtime's errors share no base class
        raise _refused(f"loading '{model if in_file else model.graph.name}'", exc) from exc


def _refused(doing: str, exc: Exception) -> BackendError:
    return BackendError(
        f"{doing} with ONNX Runtime",
        found=" ".join(str(exc).split())[:400],
        accepted="a model and inputs that ONNX Runtime takes",
        remedy="check the inputs' names and shapes, and the model's opset against the installed version",
    )
