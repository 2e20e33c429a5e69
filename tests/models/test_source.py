import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.models.data import Data, batches, load_data
from lrd_deploy.models.fit import check_fit
from lrd_deploy.models.source import load_model, load_weights_, logits, make_importable, save_weights
from lrd_deploy.recipe.settings import (
    Digits,
    DigitsData,
    PythonData,
    PythonModel,
    TransformersConfig,
    TransformersPretrained,
)

CONFIG = {
    "model_type": "resnet",
    "layer_type": "basic",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "num_labels": 10,
}


def test_a_config_makes_new_weights():
    loaded = load_model(TransformersConfig(transformers=CONFIG))
    assert not loaded.trained
    assert logits(loaded.module, torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_a_local_folder_is_a_trained_model(tmp_path):
    module = load_model(TransformersConfig(transformers=CONFIG)).module
    module.save_pretrained(tmp_path)
    loaded = load_model(TransformersPretrained(transformers=str(tmp_path)))
    assert loaded.trained
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, loaded.module.state_dict()[name])


def test_weights_from_safetensors_are_used_as_trained(tmp_path):
    module = load_model(TransformersConfig(transformers=CONFIG)).module
    save_weights(module, tmp_path / "w.safetensors")
    loaded = load_model(TransformersConfig(transformers=CONFIG, weights=tmp_path / "w.safetensors"))
    assert loaded.trained
    assert torch.equal(loaded.module.classifier[1].weight, module.classifier[1].weight)


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "./missing"])
def test_a_model_that_is_not_there_is_told_in_one_line(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"loading the transformers model .* a relative path starts from"):
        load_model(TransformersPretrained(transformers=name))


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"a folder without a \.safetensors file"):
        load_model(TransformersPretrained(transformers=str(tmp_path)))


def test_a_config_of_a_text_model_gives_a_classifier_of_sequences():
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 8, "vocab_size": 9, "num_labels": 3}  # fmt: skip
    module = load_model(TransformersConfig(transformers=config)).module
    ids = torch.ones(2, 5, dtype=torch.long)
    assert logits(module, {"input_ids": ids, "attention_mask": ids}).shape == (2, 3)


def test_a_model_type_without_a_classifier_is_refused():
    with pytest.raises(UsageError, match=r"VitsConfig has no model for image or sequence .* choose another model"):
        load_model(TransformersConfig(transformers={"model_type": "vits"}))


def test_a_saved_model_without_a_classifier_is_told_as_such_and_not_as_a_wrong_path(tmp_path):
    from transformers import VitsConfig

    VitsConfig().save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="VitsConfig has no model for image or sequence") as caught:
        load_model(TransformersPretrained(transformers=str(tmp_path)))
    assert "choose another model" in caught.value.remedy


def test_an_unknown_model_type_is_refused():
    with pytest.raises(UsageError, match="transformers model of type 'resnot'"):
        load_model(TransformersConfig(transformers={"model_type": "resnot"}))


def test_all_misfits_of_weights_are_told_together(tmp_path):
    save_file({"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_weights_(nn.Linear(2, 3), tmp_path / "w.safetensors")
    for part in ("'bias' is missing", "'extra' is not in the model", "'weight' is (3, 3) where the model has (3, 2)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_torch_save_are_refused_with_how_to_save_them(tmp_path, zipped):
    torch.save(nn.Linear(9, 9).state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"a file of torch\.save.*safetensors\.torch\.save_file"):
        load_weights_(nn.Linear(9, 9), tmp_path / "w.pt")


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    save_weights(nn.Linear(9, 9), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="a whole safetensors file"):
        load_weights_(nn.Linear(9, 9), tmp_path / "w.safetensors")


@pytest.fixture
def module_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"user_{tmp_path.name.replace('-', '_')}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        make_importable(tmp_path)
        return name

    return write


def test_a_python_factory_makes_the_model_with_its_arguments(module_file):
    name = module_file("from torch import nn\ndef make(width): return nn.Linear(width, 2)")
    assert load_model(PythonModel(python=f"{name}:make", arguments={"width": 5})).module.in_features == 5


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("def other(): pass", UsageError, "no function 'make' in .* one of: other"),
        ("import not_a_package_at_all", UsageError, "No module named 'not_a_package_at_all'"),
        ("def make(): return 3", InputError, r"an object of type int; a torch\.nn\.Module"),
        ("def make(a): return 3", UsageError, "missing 1 required positional argument"),
        (
            "import torch\ndef make():\n m = torch.nn.Linear(2, 2); m.weight.data[0, 0] = float('nan'); return m",
            InputError,
            "1 values of 'weight' are NaN or infinite",
        ),
    ],
)
def test_a_factory_that_does_not_work_is_told(module_file, text, error, match):
    name = module_file(text)
    with pytest.raises(error, match=match):
        load_model(PythonModel(python=f"{name}:make"))


def test_digits_are_split_alike_for_one_seed_and_do_not_overlap():
    one, other = (load_data(DigitsData(digits=Digits(image_size=8)), seed=3) for _ in range(2))
    test_images = torch.cat([inputs for inputs, _ in batches(one.test)])
    assert torch.equal(test_images, torch.cat([inputs for inputs, _ in batches(other.test)]))
    assert len(one.train.dataset) + len(test_images) == 1797
    different = load_data(DigitsData(digits=Digits(image_size=8)), seed=4)
    assert not torch.equal(test_images, torch.cat([inputs for inputs, _ in batches(different.test)]))


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        ("([], [1])", "the train data: no batch"),
        ("(iter([1]), [1])", "without a length"),
        ("[1]", r"a list; \(train_loader, test_loader\)"),
    ],
)
def test_data_that_cannot_be_used_is_told(module_file, returned, match):
    name = module_file(f"def make(): return {returned}")
    with pytest.raises(InputError, match=match):
        load_data(PythonData(python=f"{name}:make"), seed=0)


def test_batches_come_as_pairs_or_dictionaries():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert [len(batch) for batch in batches([(x, y), {"pixel_values": x, "labels": y}])] == [2, 2]
    with pytest.raises(InputError, match=r"a tuple of 3; \(inputs, labels\)"):
        list(batches([(x, y, y)]))


def test_of_a_dictionary_all_but_the_labels_are_inputs_by_name_and_pixels_come_alone():
    ids, labels = torch.ones(2, 3, dtype=torch.long), torch.zeros(2)
    by_name = {"input_ids": ids, "attention_mask": ids, "labels": labels}
    pixels = {"pixel_values": ids, "index": labels, "labels": labels}
    (inputs, first), (alone, second) = batches([by_name, pixels])
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert alone is ids
    assert first is second is labels
    with pytest.raises(InputError, match="a dictionary of inputs by name and 'labels'"):
        list(batches([{"labels": labels}]))


def test_an_output_without_logits_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"a": x}

    with pytest.raises(InputError, match="an output of type dict without logits"):
        logits(Odd(), torch.zeros(1))


@pytest.mark.parametrize(
    ("inputs", "labels", "match"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), r"shape \(4, 3\), torch.float32: .*; data of the shape"),
        (torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.long), r"torch.float64"),
        (torch.zeros(4, 2), torch.zeros(4), r"labels of torch.float32; class numbers"),
        (torch.zeros(4, 2), torch.tensor([0, 1, 2, 5]), r"labels from 0 to 5; 0 to 2, as the model has 3 outputs"),
        (torch.zeros(4, 2), torch.tensor([0, 1, -1, 2]), r"labels from -1 to 2"),
        (torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.long), "inputs that are NaN or infinite"),
        (np.zeros((4, 2), np.float32), np.zeros(4), "inputs of type ndarray; torch tensors"),
        ({"input": torch.zeros(4, 2), "mask": [1]}, torch.zeros(4, dtype=torch.long), "'mask' of type list"),
        ({"input": torch.full((4, 2), torch.nan)}, torch.zeros(4, dtype=torch.long), "inputs that are NaN or infinite"),
    ],
)
def test_data_that_does_not_fit_the_model_is_told(inputs, labels, match):
    with pytest.raises(InputError, match=match):
        check_fit(nn.Linear(2, 3), Data([(inputs, labels)], [(inputs, labels)]))


def test_an_output_that_is_no_logits_per_sample_is_told():
    batch = (torch.zeros(4, 5, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match=r"the model's output: shape \(4, 5, 3\); \(4, classes\)"):
        check_fit(nn.Linear(2, 3), Data([batch], [batch]))


def test_a_model_of_two_inputs_is_told():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    batch = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match="a model that takes one tensor"):
        check_fit(Two(), Data([batch], [batch]))
