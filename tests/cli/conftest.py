import pytest

from lrd_deploy.cli.main import exit_code


@pytest.fixture
def call(capfd):
    """Runs the command line in this process; returns its exit code, what it wrote to stdout, and to stderr."""

    def run(*arguments):
        capfd.readouterr()
        code = exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
