import pytest
import yaml

TINY = {
    "name": "tiny",
    "model": {
        "transformers": {
            "model_type": "resnet",
            "layer_type": "basic",
            "num_channels": 1,
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_labels": 10,
        }
    },
    "data": {"digits": {"image_size": 8, "batch_size": 128}},
    "dense": {"epochs": 2, "learning_rate": 0.05},
    "ranks": {"policy": "uniform", "alpha": 2, "round_to": 4},
    "fine_tune": {"epochs": 2, "learning_rate": 0.02, "freezing": "sequential"},
    "rewrite": {"quantum": 8},
    "bench": {"batch": 2, "launches": 4, "rounds": 4},
}


@pytest.fixture
def tiny_recipe(tmp_path):
    """Writes a recipe whose whole run takes seconds; keyword arguments replace sections, None drops one."""

    def write(**changes):
        recipe = {key: value for key, value in (TINY | changes).items() if value is not None}
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write
