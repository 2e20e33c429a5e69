"""The version, in a module of its own so that the build and the command line read it without importing the package."""

__version__ = "0.1.0"
