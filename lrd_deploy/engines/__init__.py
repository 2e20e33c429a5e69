"""Inference engines behind one protocol."""

from lrd_deploy.engines.backend import Backend, BuildSettings, Session, SessionSettings
from lrd_deploy.engines.catalogue import BACKENDS, builder, profiler, runtime

__all__ = ["BACKENDS", "Backend", "BuildSettings", "Session", "SessionSettings", "builder", "profiler", "runtime"]
