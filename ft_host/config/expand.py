"""~ and $VARIABLES in the fields that name files and folders: one rule for all of them."""

from __future__ import annotations

import os
import re
from typing import Any

NO_PATHS = ("name", "split", "columns", "revision", "weight")  # keys of a data set that aren't files


class Unknown(Exception):
    """A user or a variable that there isn't. The text says which."""


def expand(value: Any) -> Any:
    """Return paths with ~ and $VARIABLES expanded, in a text, a list or a mapping. Raises Unknown for a user that there
    isn't and a variable that isn't set: a folder of that name would be made."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in NO_PATHS else expand(item) for key, item in value.items()}
    if not isinstance(value, str) or not (value.startswith("~") or "$" in value):
        return value
    whole = os.path.expandvars(value)
    unset = re.search(r"\$(\w+|\{\w*\})", whole)
    if unset is not None:
        raise Unknown(f"found the text {value!r}, and the environment variable {unset[1].strip('{}')} isn't set")
    out = os.path.expanduser(whole)
    if out.startswith("~"):
        user = out.partition("/")[0]
        raise Unknown(f"found the text {value!r}, and there is no user {user[1:]}; ./{out} is a folder here")
    return out
