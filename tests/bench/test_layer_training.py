import pytest
import torch

from lrd_deploy.bench.layer_forward import ForwardCalls
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.layer_training import TrainingCalls
from lrd_deploy.errors import BackendError
from lrd_deploy.recipe.settings import NoFreezing, RegularFreezing, SequentialFreezing
from lrd_deploy.records import SVD, ChannelSVD, Execution, KeepDense, LayerSignature, SpatialSVD, Tucker2

CONV = LayerSignature(kind="conv2d", in_channels=8, out_channels=8, kernel=(3, 3), padding=(1, 1), spatial=(6, 6))
LINEAR = LayerSignature(kind="linear", in_channels=8, out_channels=6, spatial=(5,))
FORMS = (
    KeepDense(),
    ChannelSVD(rank=2),
    ChannelSVD(rank=2, kernel_on="up"),
    SpatialSVD(rank=2),
    Tucker2(rank_in=2, rank_out=3),
)


@pytest.mark.parametrize("signature", [CONV, LINEAR], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_form_steps(signature, channels_last):
    choices = FORMS if signature is CONV else (KeepDense(), SVD(rank=2))
    with TrainingCalls(SequentialFreezing(), channels_last=channels_last).calls(signature, choices, 4, 1) as calls:
        assert calls.keys() == set(choices)
        for call in calls.values():
            call()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_computes_the_gradients_of_the_input_and_of_what_learns(monkeypatch, precision):
    found = []
    original = torch.autograd.grad

    def recorded(outputs, inputs, gradient):
        found.append((outputs.dtype, [tuple(tensor.shape) for tensor in inputs]))
        return original(outputs, inputs, gradient)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    layers = TrainingCalls(SequentialFreezing(), precision=precision)
    with layers.calls(LINEAR, (SVD(rank=2),), 4, 1) as calls:
        calls[SVD(rank=2)]()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    down, up, bias, x = (2, 8), (6, 2), (6,), (4, 5, 8)
    assert found == [(dtype, [x, up, bias]), (dtype, [x, down, bias])]  # A stands still, then B


@pytest.mark.parametrize("layers", [TrainingCalls(NoFreezing()), ForwardCalls()], ids=["training", "forward"])
def test_a_gpu_that_pytorch_does_not_have_is_told(layers):
    absent = type(layers)(**{**vars(layers), "execution": Execution.on("cuda:99")})
    with pytest.raises(BackendError, match="GPUs that PyTorch"), absent.calls(LINEAR, (KeepDense(),), 2, 1):
        pass


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_form_passes_forward(precision):
    layers = ForwardCalls(channels_last=True, precision=precision)
    for signature, choices in ((CONV, FORMS), (LINEAR, (KeepDense(), SVD(rank=2)))):
        with layers.calls(signature, choices, 4, 1) as calls:
            assert calls.keys() == set(choices)
            for call in calls.values():
                call()


def test_freezing_layout_and_precision_are_filed_apart(tmp_path):
    kinds = (
        TrainingCalls(NoFreezing()),
        TrainingCalls(SequentialFreezing()),
        TrainingCalls(SequentialFreezing(), channels_last=True),
        TrainingCalls(SequentialFreezing(), precision="bf16"),
        TrainingCalls(SequentialFreezing(), execution=Execution.on("cuda", tf32=True)),
    )
    found = {
        MeasuredLatency(batch=2, threads=1, store=tmp_path / "t.jsonl", layers=layers, work="training").conditions
        for layers in kinds
    }
    assert len(found) == len(kinds)


@pytest.mark.parametrize(("freezing", "steps"), [(NoFreezing(), 1), (RegularFreezing(), 1), (SequentialFreezing(), 2)])
def test_a_call_is_one_step_of_every_phase(freezing, steps):
    assert TrainingCalls(freezing).per_call == steps


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with TrainingCalls(NoFreezing()).calls(LINEAR, (KeepDense(),), 2, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_training_latencies_are_filed_apart_from_those_of_inference(tmp_path):
    source = MeasuredLatency(
        batch=2, threads=1, store=tmp_path / "t.jsonl", layers=TrainingCalls(SequentialFreezing()), work="training"
    )
    latencies = source.latencies_ms({LINEAR: (KeepDense(),)})
    assert latencies[LINEAR, KeepDense()] > 0
    assert {row.conditions.work for row in source.table.rows.values()} == {"training"}
