"""The settings that a recipe's engines are built with, for every size of input that the data has."""

import numpy as np
import pytest

from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.export.onnx_file import write_model
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.deployment_stages import _settings_for
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.recipe import load_recipe
from lrd_deploy.records import DimensionRange
from tests.rewrite.graph_text import model


@pytest.fixture
def settings(tiny_recipe, tmp_path):
    """Settings for a model of two inputs, by the recipe's `build`."""
    graph = model("y = MatMul (z, x)", inputs="float[n,s,4] x, float[n,m,n] z", outputs="float[n,m,4] y")
    (tmp_path / "run" / "export").mkdir(parents=True)
    write_model(graph, tmp_path / "run" / "dense.onnx")
    arrays = {"x": np.ones((3, 7, 4), np.float32), "z": np.ones((3, 5, 3), np.float32)}
    save_arrays(tmp_path / "run" / "export" / "inputs.npz", arrays)

    def of(backend="tensorrt-rtx", **build):
        path = tiny_recipe(build=build)
        work = Workspace(load_recipe(str(path)), path.parent, tmp_path / "run", SilentObserver())
        return _settings_for(backend, work)

    return of


def test_a_dimension_without_sizes_may_have_up_to_that_of_the_data_and_the_batch_is_none(settings):
    up_to = {name: DimensionRange(min=1, opt=size, max=size) for name, size in {"s": 7, "m": 5}.items()}
    assert settings().dimensions == up_to


def test_sizes_in_the_recipe_come_first(settings):
    found = settings(dimensions={"s": [2, 8, 16]}).dimensions
    assert found == {"s": DimensionRange(min=2, opt=8, max=16), "m": DimensionRange(min=1, opt=5, max=5)}


def test_named_gpus_are_those_of_tensorrt_rtx(settings):
    assert settings(compute_capabilities=["8.6"]).compute_capabilities == ("8.6",)
    assert settings("tensorrt", compute_capabilities=["8.6"]).compute_capabilities == ()
