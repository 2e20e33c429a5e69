"""A finished run's PyTorch model, called as the run called it."""

import numpy as np
import pytest
from torch import nn

from lrd_deploy.pipeline.finished_run import in_pytorch_as


class ByKeyword(nn.Module):
    def forward(self, *, images):
        return {"doubled": 2 * images}


class ByPosition(nn.Module):
    def forward(self, x, /):
        return 2 * x


@pytest.mark.parametrize(("module", "bare_tensor"), [(ByKeyword(), False), (ByPosition(), True)])
def test_an_input_called_images_is_passed_in_the_form_of_the_run(module, bare_tensor):
    batch = {"images": np.ones((2, 3), np.float32)}
    found = in_pytorch_as(module, batch, ["y"], bare_tensor=bare_tensor)(batch)
    np.testing.assert_array_equal(found["y"], np.full((2, 3), 2, np.float32))
