"""The stages of a run in their order; every command-line verb that takes a recipe runs them up to its own."""

from lrd_deploy.pipeline.run import STAGES, RunResult, run

__all__ = ["STAGES", "RunResult", "run"]
