"""The version of the host, for whoever must not import the package for it."""

__version__ = "0.9.0"
