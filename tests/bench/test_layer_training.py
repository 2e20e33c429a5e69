import pytest
import torch

from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.layer_training import TrainingCalls
from lrd_deploy.recipe.settings import NoFreezing, RegularFreezing, SequentialFreezing
from lrd_deploy.records import SVD, ChannelSVD, KeepDense, LayerSignature, SpatialSVD, Tucker2

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
