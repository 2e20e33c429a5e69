"""Triton's config.pbtxt: built as its protobuf message, written as text, read back and compared.

What a field means to Triton: its user guide, "Model Configuration" and "Batchers", and the README of its ONNX Runtime
backend, whose `parameters` are strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lrd_deploy.engines import SessionSettings
from lrd_deploy.errors import InputError, MissingPackage
from lrd_deploy.export.model_files import MODEL_NAME, PLAN_NAME
from lrd_deploy.files import read_bytes
from lrd_deploy.records import StoredInput
from lrd_deploy.serving.labels import LABELS_NAME, Labels
from lrd_deploy.serving.tensors import ServedGraph, ServedTensor

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG_NAME = "config.pbtxt"
Backend = Literal["onnxruntime", "tensorrt"]


@dataclass(frozen=True)
class ServingSettings:
    """How a model is served.

    Attributes:
        max_batch: the largest batch that Triton puts together; without effect on a model with a fixed batch.
        measured_batch: the batch that was measured: preferred, and warmed up.
        max_queue_delay_us: how long a request may wait for others to join it, in microseconds.
        instances: how many copies of the model run side by side.
        threads: of each of them, on a CPU.
        gpu: whether they run on GPUs.
    """

    max_batch: int = 64
    measured_batch: int = 8
    max_queue_delay_us: int = 100
    instances: int = 1
    threads: int = 1
    gpu: bool = False

    def batches(self, graph: ServedGraph) -> tuple[int, ...]:
        """Returns the batch sizes to warm up and to check: 1, and the measured one; 1 for a fixed batch."""
        return tuple(sorted({1, min(self.measured_batch, self.max_batch)})) if graph.batched else (1,)


def model_config(
    name: str,
    backend: Backend,
    graph: ServedGraph,
    settings: ServingSettings,
    inputs: Sequence[StoredInput],
    labels: Labels | None,
) -> ModelConfig:
    """Returns the configuration of a model.

    Args:
        name: of its folder.
        backend: which of Triton's backends runs it.
        graph: what it takes and gives.
        settings: how it is served.
        inputs: the stored warm-up inputs.
        labels: the classes of one output.

    Raises:
        MissingPackage: tritonclient is not installed.
    """
    pb = _messages()
    config = pb.ModelConfig(
        name=name,
        backend=backend,
        default_model_filename=PLAN_NAME if backend == "tensorrt" else MODEL_NAME,
        max_batch_size=settings.max_batch if graph.batched else 0,
    )
    config.version_policy.latest.num_versions = 1
    for tensor in graph.inputs:
        _describe(config.input.add(), tensor)
    for tensor in graph.outputs:
        output = config.output.add()
        _describe(output, tensor)
        if labels and labels.output == tensor.info.name:
            output.label_filename = LABELS_NAME
    kind = pb.ModelInstanceGroup.KIND_GPU if settings.gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=settings.instances)
    if graph.batched and settings.max_batch > 1:
        _batch_dynamically(config, settings)
    if backend == "onnxruntime" and not settings.gpu:
        config.parameters["intra_op_thread_count"].string_value = str(settings.threads)
        config.parameters["execution_mode"].string_value = "0"  # one node after the other, as it was measured
    for batch in settings.batches(graph):
        _warm_up(config, batch, graph, inputs)
    return config


def config_text(config: ModelConfig) -> str:
    """Returns a configuration as the text of config.pbtxt, after reading it back and comparing."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config)
    if text_format.Parse(text, _messages().ModelConfig()) != config:
        raise InputError(
            f"writing the configuration of '{config.name}'",
            found="text that reads back as another configuration",
            accepted="a configuration that survives being written",
            remedy="report this with the model",
        )
    return text


def read_config(path: Path) -> ModelConfig:
    """Returns the configuration in a file.

    Raises:
        StorageError: the file cannot be read.
        InputError: it holds no configuration.
        MissingPackage: tritonclient is not installed.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(read_bytes(path).decode(), _messages().ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        raise InputError(
            f"reading the configuration '{path}'",
            found=" ".join(str(exc).split())[:400],
            accepted="Triton's ModelConfig as text",
            remedy="package the model again",
        ) from exc


def session_settings(config: ModelConfig) -> SessionSettings:
    """Returns how ONNX Runtime runs a model under this configuration; 0 threads are as many as there are cores."""
    threads = config.parameters["intra_op_thread_count"].string_value if config.parameters else ""
    return SessionSettings(threads=int(threads or 0), spin_between_calls=True)


def interface(config: ModelConfig) -> tuple[object, ...]:
    """Returns what all versions of a model share, because they share one configuration: to be compared."""
    tensors = [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in (*config.input, *config.output)]
    return config.backend, config.max_batch_size > 0, len(config.input), tuple(tensors)


def _messages() -> type:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as exc:
        raise MissingPackage("tritonclient", extra="triton", purpose="writing a Triton model repository") from exc
    return model_config_pb2


def _describe(message: object, tensor: ServedTensor) -> None:
    message.name = tensor.info.name
    message.data_type = _messages().DataType.Value(tensor.data_type)
    message.dims.extend(tensor.dims)
    if tensor.lone_batch:
        message.reshape.SetInParent()  # an empty shape: the model has no dimension beside the batch


def _batch_dynamically(config: ModelConfig, settings: ServingSettings) -> None:
    config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    config.dynamic_batching.SetInParent()
    if 1 < settings.measured_batch <= settings.max_batch:
        config.dynamic_batching.preferred_batch_size.append(settings.measured_batch)


def _warm_up(config: ModelConfig, batch: int, graph: ServedGraph, inputs: Sequence[StoredInput]) -> None:
    warm_up = config.model_warmup.add(name=f"batch_{batch}" if graph.batched else "one_request", batch_size=batch)
    for tensor, stored in zip(graph.inputs, inputs, strict=True):
        entry = warm_up.inputs[stored.name]
        entry.data_type = _messages().DataType.Value(tensor.data_type)
        entry.dims.extend(stored.shape or (1,))
        entry.input_data_file = stored.file
