"""`lrd-deploy`: the table of verbs, and the one place where errors become messages and exit codes.

Exit codes: 0 done or passed · 1 a check failed · 2 usage, bad input, a missing package or a crash · 3 inconclusive ·
130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from lrd_deploy.cli import (
    baseline,
    bench,
    build,
    calibrate,
    compress,
    convert,
    decompose,
    doctor,
    export,
    gate,
    package,
    plan,
    profile,
    report,
    rewrite,
    run,
    train,
    verify,
)
from lrd_deploy.cli.console import keep_stdout_for_results
from lrd_deploy.errors import LrdError
from lrd_deploy.processes import leave
from lrd_deploy.version import __version__

_INTERRUPTED = 130

VERBS = (
    ("run", run.run),
    ("plan", plan.plan),
    ("train", train.train),
    ("export", export.export),
    ("decompose", decompose.decompose),
    ("compress", compress.compress),
    ("rewrite", rewrite.rewrite),
    ("convert", convert.convert),
    ("build", build.build),
    ("bench", bench.bench),
    ("profile", profile.profile),
    ("verify", verify.verify),
    ("gate", gate.gate),
    ("package", package.package),
    ("report", report.report),
    ("doctor", doctor.doctor),
)
GROUPS = (
    ("calibrate", "Measure once, and keep it.", (("latency", calibrate.latency), ("ranges", calibrate.ranges))),
    ("baseline", "What a gate compares with.", (("promote", baseline.promote), ("history", baseline.history))),
)


def _version_wanted(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def make_app() -> typer.Typer:
    """Returns the application with every verb."""
    app = typer.Typer(
        name="lrd-deploy",
        help="Low-rank networks that are measurably faster, with proof.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would cost --help a tenth of a second
    )

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=_version_wanted, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        pass

    for name, function in VERBS:
        app.command(name)(function)
    for name, help_text, verbs in GROUPS:
        group = typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
        group.callback()(lambda: None)  # a group of one verb is still a group
        for verb, function in verbs:
            group.command(verb)(function)
        app.add_typer(group, name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    keep_stdout_for_results()
    code = exit_code(list(arguments) if arguments is not None else sys.argv[1:])
    leave()
    sys.exit(code)


def exit_code(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code; every error ends here."""
    try:
        code = make_app()(arguments, standalone_mode=False) or 0
    except LrdError as problem:
        print(f"lrd-deploy: {problem.complaint}\n  → {problem.remedy}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except typer.Exit as leaving:
        code = leaving.exit_code
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as problem:  # a full disk under stdout; files of ours raise StorageError
        with contextlib.suppress(OSError):
            print(f"lrd-deploy: writing the output: {problem.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    except Exception as problem:
        return _told(problem)
    if code == _INTERRUPTED:  # typer turns Ctrl-C within a verb into this code
        print("lrd-deploy: interrupted; what was finished is kept", file=sys.stderr)  # noqa: T201
    return code


def _told(problem: Exception) -> int:
    """A usage error in click's own words, or a crash with all that a bug report needs."""
    show = getattr(problem, "show", None)
    if show is not None:
        show()
    else:
        traceback.print_exc()
        print("lrd-deploy: this is a bug; please report the lines above", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
