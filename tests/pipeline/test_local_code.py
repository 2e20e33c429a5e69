"""Which files a stage depends on: those that a factory's module imports, found without running any."""

import pytest

from lrd_deploy.pipeline.local_code import local_files, source_digest

FILES = {
    "net.py": "import torch\nfrom parts import blocks\n\ndef model():\n    import late\n",
    "late.py": "x = 1\n",
    "unrelated.py": "print(1)\n",
    "parts/__init__.py": "from .shared import *\n",
    "parts/blocks.py": "from . import norm\nfrom .deep.inner import f\nfrom net import nothing\n",
    "parts/norm.py": "import parts.blocks\n",
    "parts/shared/__init__.py": "__all__ = ['listed']\n",
    "parts/shared/listed.py": "",
    "parts/deep/inner.py": "from ..shared import listed\n",
    "parts/unused.py": "raise SystemExit\n",
}
USED = FILES.keys() - {"unrelated.py", "parts/unused.py"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place, text in FILES.items():
        path = tmp_path / "recipe" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "recipe"


def test_imports_are_followed_through_packages_and_circles(folder):
    assert set(local_files("net", [folder])) == USED


@pytest.mark.parametrize("place", FILES)
def test_the_digest_changes_with_the_files_that_are_used_and_no_others(folder, place):
    before = source_digest("net:model", folder)
    (folder / place).write_text(FILES[place] + "# changed\n")
    (folder / "new.py").write_text("print(1)\n")
    assert (source_digest("net:model", folder) != before) == (place in USED)


def test_a_module_of_a_package_depends_on_the_package(folder):
    assert "parts/__init__.py" in local_files("parts.deep.inner", [folder])


@pytest.mark.parametrize(
    "text",
    [
        "import importlib\n",
        "from importlib import import_module as load\n",
        "__import__('late')\n",
        "exec(open('late.py').read())\n",
        "this is no Python\n",
        "x = '\0'\n",
    ],
)
def test_all_files_beside_one_that_cannot_be_followed_count(folder, text):
    (folder / "net.py").write_text(text)
    assert {"net.py", "late.py", "unrelated.py"} <= local_files("net", [folder]).keys()


def test_a_module_s_own_eval_method_is_no_reason_to_watch_all(folder):
    (folder / "net.py").write_text("def model(net):\n    return net.eval()\n")
    assert set(local_files("net", [folder])) == {"net.py"}


def test_the_recipe_s_folder_comes_before_the_current_one(folder, monkeypatch):
    (folder.parent / "elsewhere" / "late.py").write_text("x = 2\n")
    (folder.parent / "elsewhere" / "only_here.py").write_text("import late\n")
    roots = [folder, folder.parent / "elsewhere"]
    assert local_files("only_here", roots) == {"only_here.py": roots[1] / "only_here.py", "late.py": folder / "late.py"}
    digest = source_digest("net:model", folder)
    monkeypatch.chdir(folder)
    assert source_digest("net:model", folder) == digest


def test_code_that_is_installed_has_no_digest(folder):
    assert source_digest("torchvision.models:resnet18", folder) == ""
