"""What every inference engine offers here: build an artefact, load it, run it, say what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lrd_deploy.records import DimensionRange, EngineArtifact, Execution, Record

Arrays = Mapping[str, NDArray[np.generic]]


class TimingCache(Record):
    """Where TensorRT keeps what it measured: a file that ends in .cache, or a folder with one file per environment.

    `miss_is_error` fails a build that would measure anything anew: locked builds in CI.
    """

    path: Path
    miss_is_error: bool = False


class BuildSettings(Record):
    """How to build: the batches an engine must take, and the GPU generations it is for, such as "8.6".

    `dimensions` holds the sizes of dynamic dimensions, by name or as "input[axis]"; one that the batch does not cover
    must be there. `tf32` lets float32 products be rounded to TF32, as TensorRT does unless told otherwise.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    dimensions: dict[str, DimensionRange] = Field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = True
    version_compatible: bool = False
    refittable: bool = False
    timing_cache: TimingCache | None = None


class SessionSettings(Record):
    """How to run. `spin_between_calls` is ONNX Runtime's default, and slows every other session on the machine."""

    threads: int = 1
    spin_between_calls: bool = False
    execution: Execution = Execution()


class BackendStatus(Record):
    """Whether a backend works on this machine, and what to do where it does not; `missing` names each lack."""

    name: str
    builds: bool
    runs: bool
    version: str | None
    detail: str
    missing: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded engine."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Returns the outputs by name."""

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call that runs on these inputs with nothing else in it: this is what gets timed.

        On a GPU the call returns when the GPU is done.
        """

    def copies(self, inputs: Arrays) -> tuple[Callable[[], object], Callable[[], object]]:
        """Returns a call that copies the inputs to the device, and one that copies the outputs back."""

    def on_cpu(self) -> tuple[str, ...]:
        """Returns the operators that run on the CPU; asked of sessions on a GPU."""


class Backend(Protocol):
    """Common to every backend."""

    name: str

    def describe(self) -> BackendStatus:
        """Says what works here; never raises."""


class Builder(Backend, Protocol):
    """A backend that turns an ONNX file into an engine on this machine."""

    def build(self, model: Path, engine: Path, settings: BuildSettings) -> EngineArtifact:
        """Writes an engine.

        Raises:
            MissingPackage: the backend is not installed.
            BackendError: the backend refuses the model.
        """


class Runtime(Backend, Protocol):
    """A backend that runs models on this machine."""

    def load(self, model: Path, settings: SessionSettings) -> Session:
        """Loads an ONNX file, or an engine that this backend built.

        Raises:
            BackendError: the backend refuses the file.
        """
