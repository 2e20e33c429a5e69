import pytest

from lrd_deploy.errors import Problems, StorageError, UsageError
from lrd_deploy.recipe import LatencyRank, Recipe, builtin_recipes, load_recipe, parse_recipe
from lrd_deploy.recipe.settings import PythonModel, SequentialFreezing, TransformersConfig, TransformersPretrained

GOOD = """
name: mine
model: python:net:make
data: digits
ranks: {policy: uniform}
fine_tune: {epochs: 2, learning_rate: 1e-3}
"""


def parse(text, folder=None):
    return parse_recipe(text, source="mine.yaml", folder=folder)


def test_every_built_in_recipe_loads():
    for name in builtin_recipes():
        assert load_recipe(name).name == name


def test_a_recipe_survives_json():
    for recipe in (parse(GOOD), load_recipe("digits")):
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_short_forms_are_read():
    recipe = parse(GOOD.replace("1e-3", "1e-3, freezing: sequential"))
    assert recipe.model == PythonModel(python="net:make")
    assert recipe.fine_tune.freezing == SequentialFreezing()
    assert recipe.fine_tune.learning_rate == 0.001  # YAML 1.1 reads 1e-3 as text
    assert parse(GOOD.replace("python:net:make", "transformers:org/name")).model == TransformersPretrained(
        transformers="org/name"
    )


def test_paths_start_from_the_recipe(tmp_path):
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "model").mkdir()
    text = GOOD.replace("python:net:make", "{transformers: {model_type: resnet}, weights: w.safetensors}")
    model = parse(text, tmp_path).model
    assert isinstance(model, TransformersConfig)
    assert model.weights == tmp_path / "w.safetensors"
    assert parse(GOOD.replace("python:net:make", "transformers:model"), tmp_path).model.transformers == str(
        tmp_path / "model"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("data:", "dta:"),
            r"unknown key 'dta'; the keys here are bench, build, calibration, data, .*did you mean 'data'\?",
        ),
        (("epochs:", "epoch:"), r"at 'fine_tune': unknown key 'epoch'.*did you mean 'epochs'\?"),
        (("epochs: 2", "epochs: 0"), r"at 'fine_tune.epochs': 0; input should be greater than or equal to 1"),
        (("policy: uniform", "policy: magic"), "'uniform', 'energy', 'paper', 'latency'"),
        (("policy: uniform", "policy: uniform, alpha: 1"), r"'ranks.uniform.alpha': 1; input should be greater than 1"),
        (("policy: uniform", "policy: uniform, share: 0.5"), "unknown key 'share'"),
        (("python:net:make", "python:net"), r"'model.python': 'net'"),
        (("name: mine", "name: mine\nname: yours"), "the key 'name' is given twice"),
        (("name: mine", "name: [mine"), "a YAML mapping"),
        ((GOOD, "- a list"), "a list at the top"),
        ((GOOD, ""), "a NoneType at the top"),
        (("python:net:make", "{transformers: {model_type: resnet}}"), "a section 'dense' must say how to train it"),
        (("1e-3", ".nan"), "finite number"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_accepted(change, message):
    with pytest.raises((UsageError, Problems), match=f"(?s){message}"):
        parse(GOOD.replace(*change))


def test_all_mistakes_of_a_file_are_told_together():
    text = GOOD.replace("data:", "dta:").replace("epochs: 2", "epochs: x") + "bench: {launches: 5}\n"
    with pytest.raises(Problems) as caught:
        parse(text)
    assert len(caught.value.problems) == 4  # unknown key, missing key, no number, not a multiple of 2


def test_yaml_cannot_run_code():
    with pytest.raises(UsageError, match="could not determine a constructor"):
        parse("name: !!python/object/apply:os.system ['true']")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match=r"neither a file nor a built-in name; .* did you mean 'digits'\?"):
        load_recipe("digts")


def test_a_file_that_is_not_there_is_told():
    with pytest.raises(StorageError, match=r"reading 'none\.yaml': No such file"):
        load_recipe("none.yaml")


def test_a_parameter_budget_is_a_share():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        LatencyRank(target_speedup=2, max_parameters=50)
