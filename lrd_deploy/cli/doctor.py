"""`lrd-deploy doctor`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Say what works on this machine, and what to install for the rest."""
    from lrd_deploy.bench.environment import environment
    from lrd_deploy.cli.console import show
    from lrd_deploy.engines import BACKENDS
    from lrd_deploy.engines.backend import BackendStatus
    from lrd_deploy.records import Environment, Record
    from lrd_deploy.report.terminal import table

    class Diagnosis(Record):
        """This machine, and each backend on it."""

        environment: Environment
        backends: dict[str, BackendStatus]

    found = Diagnosis(
        environment=environment(), backends={name: backend.describe() for name, backend in BACKENDS.items()}
    )
    here = found.environment
    rows = [("machine", f"{here.cpu}, {here.cores} cores", f"{here.system}, Python {here.python}")]
    rows += [("package", name, version) for name, version in here.packages.items()]
    rows += [
        ("backend", f"{status.name} {status.version or ''}", f"{_abilities(status)}{status.detail}")
        for status in found.backends.values()
    ]
    show(found, table(("", "what", "state"), rows), as_json=as_json)


def _abilities(status: object) -> str:
    able = [word for word, can in (("builds", status.builds), ("runs", status.runs)) if can]
    return f"{' and '.join(able) or 'unusable'}: "
