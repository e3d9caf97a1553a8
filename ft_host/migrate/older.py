"""A run file of an older release with the names of this one: the same text, comments and all, but for names."""

from __future__ import annotations

import re
from pathlib import Path

from ft_host.config import RunConfig
from ft_host.config.fields import fields_of, names_of
from ft_host.config.files import ConfigFile


def current_text(file: ConfigFile, config_class: type[RunConfig]) -> tuple[str, dict[str, str]]:
    """Return the text of the file with current names, and the names that were changed, old to new.

    Names of TRL's that a field answers to stay as they are. A name that no field has stays too, and is refused when the
    file is used.
    """
    fields = fields_of(config_class)
    names = names_of(fields)
    lines = Path(file.path).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    changed = {}
    for written in file.values:
        name = names.get(written)
        if name is None or written not in fields[name].was:
            continue
        at = file.lines[written] - 1
        lines[at] = re.sub(rf"(?<![\w-]){re.escape(written)}(?=[\"']?\s*[:=])", name, lines[at], count=1)
        changed[written] = name
    return "".join(lines), changed
