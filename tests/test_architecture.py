"""The rules of the house that a machine can check: layers, light imports, public names, lengths."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lrd_deploy"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "accelerate", "onnxruntime", "onnx", "onnx_graphsurgeon", "tensorrt", "tensorrt_rtx",
         "scipy", "matplotlib", "sklearn", "polygraphy", "pydantic", "numpy"}  # fmt: skip

OPTIONAL = ("tensorrt", "tensorrt_rtx", "tritonclient", "lightning", "pytorch_lightning", "pynvml")


def imported_by(code):
    """Top-level packages that a fresh interpreter holds after running `code`."""
    script = f"import sys; {code}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_point_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_command_line_imports_nothing_heavy():
    assert not imported_by("import lrd_deploy.cli.main; lrd_deploy.cli.main.make_app()") & HEAVY


def test_the_errors_import_only_the_standard_library():
    found = imported_by("import lrd_deploy.errors") - set(sys.stdlib_module_names)
    assert {name for name in found if not name.startswith("_")} == {"lrd_deploy"}


@pytest.mark.parametrize(
    "module",
    [
        "ranks.choose",
        "bench.worker",
        "bench.profile_worker",
        "serving.worker",
        "rewrite.apply",
        "report.html",
        "pipeline",
        "pipeline.compressing",
        "pipeline.enforcing",
        "pipeline.merging_back",
        "pipeline.converting",
    ],
)
def test_what_needs_no_pytorch_does_not_import_it(module):
    assert "torch" not in imported_by(f"import lrd_deploy.{module}")


def test_every_module_imports_without_the_optional_packages():
    names = [str(path.relative_to(PACKAGE.parent).with_suffix("")).replace("/", ".") for path in MODULES]
    names.remove("lrd_deploy.train.adapters.lightning")  # its class is Lightning's
    blocked = f"sys.modules |= dict.fromkeys({OPTIONAL})"
    imports = "; ".join(f"import {name.removesuffix('.__init__')}" for name in names)
    imported_by(f"{blocked}; {imports}")


def test_public_names_are_what_the_package_promises():
    import lrd_deploy

    for name in lrd_deploy.__all__:
        assert getattr(lrd_deploy, name) is not None
    assert lrd_deploy.__all__ == sorted(lrd_deploy.__all__)
    assert set(lrd_deploy.__all__) == {
        "EnergyRank", "FakeBackend", "FreezingSchedule", "LatencyRank", "LrdError", "MeasuredLatency", "PaperRank",
        "RankPlan", "Recipe", "ScriptedClock", "SessionSettings", "UniformRank", "__version__", "compare", "decompose_",
        "decompose_checkpoint", "export_onnx", "freeze_", "gather_evidence", "load_lowrank_", "load_recipe", "merge_",
        "plan_ranks", "run", "survey",
    }  # fmt: skip


def test_no_module_has_a_name_that_says_nothing():
    vague = re.compile(r"^(utils?|helpers?|common|misc|base|core|manager|factory)$")
    assert [path for path in MODULES if vague.match(path.stem) or vague.match(path.parent.name)] == []


def test_modules_and_functions_stay_short():
    long_modules = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long_modules.items() if lines > 400} == {}
    long_functions = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    }
    assert long_functions == {}


def public_members(tree):
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            yield from public_members(node) if isinstance(node, ast.ClassDef) else ()


def test_every_public_function_and_class_has_a_docstring():
    bare = [
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in MODULES
        for node in public_members(ast.parse(path.read_text()))
        if not ast.get_docstring(node)
    ]
    assert bare == []


def test_only_the_edges_catch_everything():
    broad = {
        path.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception")
    }
    assert broad == {"main.py", "onnxruntime.py", "source.py", "torch_export.py"}
