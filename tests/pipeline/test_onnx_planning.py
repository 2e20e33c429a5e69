"""What the plan of an ONNX file is timed on."""

import numpy as np
import pytest

from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import UsageError
from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline import onnx_planning
from lrd_deploy.pipeline.onnx_planning import plan_onnx
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import DimensionRange
from tests.rewrite.graph_text import model


class Reached(Exception):
    """Everything before the measurement is done."""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plans a model up to its measurement, and returns the shapes that it would be timed at; None of no timing."""
    graph = model(
        '["fc"] a = MatMul (x, w)',
        "y = MatMul (z, a)",
        inputs="float[n,s,16] x, float[n,s,s] z",
        outputs="float[n,s,16] y",
        weights=(("w", (16, 16)),),
    )
    path, timed = write_model(graph, tmp_path / "m.onnx"), []

    def timer(_model, inputs, _bench):
        timed.append({name: array.shape for name, array in inputs.items()})

    class Planner:
        def __init__(self, *_given):
            pass

        def plan(self, _timer):
            raise Reached

    monkeypatch.setattr(onnx_planning, "model_timer", timer)
    monkeypatch.setattr(onnx_planning, "LatencyPlanner", Planner)

    def plan(**options):
        policy = LatencyRank(target_speedup=1.5)
        with pytest.raises(Reached):
            plan_onnx(path, policy, Bench(batch=8), tmp_path / "run", SilentObserver(), **options)
        return timed[0] if timed else None

    return plan


def test_the_whole_model_is_timed_at_the_batch_asked_for_with_fewer_samples_too(planned, tmp_path):
    arrays = {"x": np.ones((3, 5, 16), np.float32), "z": np.ones((3, 5, 5), np.float32)}
    data = save_arrays(tmp_path / "data.npz", arrays)
    assert planned(calibration_data=data) == {"x": (8, 5, 16), "z": (8, 5, 5)}


def test_sizes_that_are_given_are_those_of_the_timing(planned):
    sizes = {"s": DimensionRange(min=6, opt=6, max=6)}
    assert planned(dimensions=sizes) == {"x": (8, 6, 16), "z": (8, 6, 6)}
    with pytest.raises(UsageError, match="a size for 'n', which is the batch"):
        planned(dimensions={**sizes, "n": DimensionRange(min=4, opt=4, max=4)})


def test_no_inputs_are_made_where_a_table_replaces_the_measurement(planned, monkeypatch):
    monkeypatch.setattr(onnx_planning, "with_tables", lambda _measured, _tables: object())
    monkeypatch.setattr(onnx_planning, "random_batches_of", lambda *_: pytest.fail("made inputs"))
    assert planned(dimensions={"s": DimensionRange(min=6, opt=6, max=6)}) is None
