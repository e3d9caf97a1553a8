"""ft-host: a small plugin host for fine-tuning language models. Importing it loads nothing heavy."""

from __future__ import annotations

from ft_host.hooks import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
