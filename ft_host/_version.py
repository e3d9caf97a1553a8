"""The version of the host, for whoever must not import the package for it."""

__version__ = "1.0.0"
