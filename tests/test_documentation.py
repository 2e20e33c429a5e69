"""What the documentation shows is run, and what it lists is complete."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lrd_deploy.cli.main import GROUPS, VERBS, make_app
from lrd_deploy.recipe import Recipe, parse_recipe, policies, settings
from tests.train import hosts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trained = []
    names = {
        "model": nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 4)),
        "example": torch.randn(2, 3, 8, 8),
        "train_one_epoch": lambda model, _: trained.append(model),
    }
    (code,) = blocks("python")
    exec(code, names)  # noqa: S102, our own README
    assert len(trained) == 10
    assert (tmp_path / "lowrank.onnx").is_file()


def test_the_python_in_the_page_on_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    own, hosts_model, module = hosts.convolutional(), hosts.WithLoss(), hosts.Classifier()
    trained = []
    names = {
        "epochs": 4,
        "train_one_epoch": lambda model, _: trained.append(model),
        "dataset": hosts.Images(),
        "loader": hosts.loader(),
        "module": module,
    }
    code = blocks("python", (ROOT / "docs" / "training.md").read_text())
    for block, model in zip(code, (own, hosts_model, module), strict=True):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        exec(block, names | {"model": model, "optimizer": torch.optim.AdamW(model.parameters())})  # noqa: S102
        assert model is own or not any(map(torch.equal, before, model.parameters()))
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(trained) == 4


def test_the_python_in_the_page_on_measuring_runs():
    (code,) = blocks("python", (ROOT / "docs" / "measuring.md").read_text())
    exec(code, {})  # noqa: S102


def test_the_recipe_in_the_readme_is_one():
    (text,) = blocks("yaml")
    assert parse_recipe(text, source="README", folder=None).name == "mine"


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md", "docs/precision.md", "docs/profile.md"])
def test_every_command_in_the_documentation_has_the_options_it_shows(page):
    text = "\n".join(blocks("sh", (ROOT / page).read_text()))
    commands = re.findall(r"^lrd-deploy (\w+)([^#\n]*)", text, flags=re.MULTILINE)
    assert len(commands) >= 2
    groups = {name: [verb for verb, _ in verbs] for name, _, verbs in GROUPS}
    for verb, rest in commands:
        called = [verb, rest.split()[0]] if verb in groups else [verb]
        assert set(called[1:]) <= set(groups.get(verb, []))
        shown = CliRunner().invoke(make_app(), [*called, "--help"]).output
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown, f"{verb} {option}"


def test_every_make_target_in_the_documentation_exists():
    makefile = (ROOT / "Makefile").read_text()
    texts = [
        README,
        *(path.read_text() for path in (ROOT / "docs").glob("*.md")),
        (ROOT / "CONTRIBUTING.md").read_text(),
    ]
    for target in {name for text in texts for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)}:
        assert f"\n{target}:" in makefile, target


def test_every_link_in_the_documentation_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def every_settings_type():
    types = [value for module in (settings, policies) for value in vars(module).values()]
    return [Recipe, *(t for t in types if isinstance(t, type) and issubclass(t, settings.Settings))]


@pytest.mark.parametrize("section", every_settings_type(), ids=lambda section: section.__name__)
def test_every_key_of_a_recipe_is_documented(section):
    text = (ROOT / "docs" / "recipe.md").read_text()
    missing = [name for name in section.model_fields if not re.search(rf"\b{name}\b", text)]
    assert missing == []


def test_every_verb_is_documented():
    text = (ROOT / "docs" / "command-line.md").read_text()
    verbs = [name for name, _ in VERBS] + [f"{group} {verb}" for group, _, verbs in GROUPS for verb, _ in verbs]
    assert [name for name in verbs if f"`{name}" not in text] == []
