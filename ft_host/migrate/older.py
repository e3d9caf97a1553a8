"""A run file of an older release with the names of this one: the same text, comments and all, but for names."""

from __future__ import annotations

import re
from pathlib import Path

from ft_host.config import RunConfig
from ft_host.config.fields import fields_of, names_of
from ft_host.config.files import ConfigFile
from ft_host.config.old_names import going, old_names

OF_FIELDS = "locked_fields"  # whose values are names of fields


def current_text(file: ConfigFile, config_class: type[RunConfig]) -> tuple[str, dict[str, str]]:
    """Return the text of the file with current names, and the names that were changed, old to new.

    Names of TRL's that a field answers to stay as they are. A name that no field has stays too, and is refused when the
    file is used.
    """
    fields, old = fields_of(config_class), old_names(config_class)
    names = names_of(fields)
    lines = Path(file.path).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    changed = {}
    for written in file.values:
        name = names.get(written)
        if name is None or written not in old:
            continue
        at = file.lines[written] - 1
        lines[at] = re.sub(rf"(?<![\w-]){re.escape(written)}(?=[\"']?\s*[:=])", name, lines[at], count=1)
        changed[written] = name
    for written in file.values:
        if names.get(written) == OF_FIELDS:
            changed |= renamed_items(lines, file, written, old)
    return "".join(lines), changed


def renamed_items(lines: list[str], file: ConfigFile, written: str, old: dict[str, str]) -> dict[str, str]:
    """Change the old names among the items of a list, which ends where the next field begins."""
    begin = file.lines[written]
    end = min((line for line in file.lines.values() if line > begin), default=len(lines) + 1)
    found = {str(item): old[str(item)] for item in file.values[written] or [] if str(item) in old}
    for was, name in found.items():
        for at in range(begin - 1, end - 1):
            body, mark, comment = lines[at].partition("#")
            lines[at] = re.sub(rf"(?<![\w-]){re.escape(was)}(?![\w-]|\s*:)", name, body) + mark + comment
    return found


def leaving(file: ConfigFile, config_class: type[RunConfig]) -> list[str]:
    """Return what is said of each field in the file that will go without a successor, with its line."""
    said = going(config_class)
    return [f"{file.where(name)}: {said[name]}" for name in file.values if name in said]
