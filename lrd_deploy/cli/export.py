"""`lrd-deploy export`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption, OutOption, RecipeArgument, run_until


def export(recipe: RecipeArgument, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Write the dense and the low-rank model as ONNX, checked against PyTorch, ranks on the quantum."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import placed_model, written_model
    from lrd_deploy.export.names import refreshed_origins
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.report.terminal import table

    result = run_until("rewrite", recipe, out)
    file = result.folder / result.rewritten.report.path
    exported = result.exported.lowrank.model_copy(
        update={
            "sha256": result.rewritten.report.sha256,
            "origins": refreshed_origins(read_model(file), result.exported.lowrank.origins),
        }
    )
    wrote = [written_model(result.folder / "dense.onnx"), written_model(file)]
    exported = placed_model(exported, wrote[1])
    rows = [
        ("dense", str(result.folder / "dense.onnx"), f"{result.exported.dense.difference.relative_l2:.1e}"),
        ("low-rank", str(exported.path), f"{exported.difference.relative_l2:.1e}"),
    ]
    shown = table(("model", "file", "relative L2 difference to PyTorch, before padding"), rows)
    show(exported, shown, as_json=as_json, wrote=wrote)
