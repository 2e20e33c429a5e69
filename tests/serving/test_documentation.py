"""The client that the page on serving shows, run against a server that answers as Triton's protocol says."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from lrd_deploy.pipeline.packaging import PackageRequest, package_onnx
from lrd_deploy.serving.triton_config import read_config
from tests.serving.graphs import save

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
CLASSIFIER = "g (float[n,1,32,32] images) => (float[n,1024] logits) { logits = Flatten (images) }"


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Remembers requests, and gives every sample its first class."""

    def __init__(self):
        self.requests = []

    def ModelInfer(self, request, _context):  # noqa: N802, the protocol's name
        self.requests.append(request)
        batch = request.inputs[0].shape[0]
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="logits", datatype="BYTES", shape=[batch, 1])
        answer.raw_output_contents.append(batch * (b"\x0b\x00\x00\x00" + b"0.500:0:one"))
        return answer


def test_the_client_in_the_page_on_serving_sends_what_the_configuration_asks_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    package_onnx(save(tmp_path / "digits.onnx", CLASSIFIER), PackageRequest(tmp_path / "models"))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    triton, server = Triton(), grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        exec(code.replace("localhost:8001", f"localhost:{port}"), {})  # noqa: S102, our own page
    finally:
        server.stop(None).wait()
    (request,) = triton.requests
    config = read_config(tmp_path / "models" / "digits" / "config.pbtxt")
    assert (request.model_name, request.inputs[0].name) == (config.name, config.input[0].name)
    assert list(request.inputs[0].shape) == [8, *config.input[0].dims]
    assert len(request.raw_input_contents[0]) == 8 * 32 * 32 * np.dtype(np.float32).itemsize
    assert request.outputs[0].parameters["classification"].int64_param == 1
    assert "0.500:0:one" in capsys.readouterr().out


def test_every_line_of_a_configuration_is_explained():
    for name in ("backend", "default_model_filename", "max_batch_size", "input", "output", "label_filename",
                 "preferred_batch_size", "max_queue_delay_microseconds", "instance_group", "intra_op_thread_count",
                 "execution_mode", "version_policy", "model_warmup"):  # fmt: skip
        assert re.search(rf"[`.]{name}`", PAGE), name
