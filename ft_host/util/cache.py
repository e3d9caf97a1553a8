"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `FT_HOST_CACHE`, or ft-host's folder in the user's cache."""
    if folder := os.environ.get("FT_HOST_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ft-host"
