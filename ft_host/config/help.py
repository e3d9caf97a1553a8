"""`ft-host train METHOD --help`: the method's own fields first, then those of every run."""

from __future__ import annotations

import shutil
import sys
import textwrap

from ft_host.config.fields import GROUPS, Field, fields_of
from ft_host.config.text import default_text, type_text
from ft_host.config.words import bounds

USAGE = """\
usage: ft-host train {method} [CONFIG] [--field value ...] [--dry-run]
       ft-host train --resume RUN [--field value ...]
"""
ABOUT = """\
CONFIG is a YAML, TOML or JSON file with the fields below; flags override it. `ft-host config {method}` prints one to \
start from. A switch is turned on by its flag alone and off by --no-...; a list takes several values after its flag; \
none unsets a field that may be unset; [...] and {{...}} are written as JSON or YAML. --dry-run checks everything that \
needs no model and prints the config with where each value came from.
"""


def method_help(method: str, config_class: type) -> str:
    """Return the whole text, wrapped to the terminal's width."""
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    fields = fields_of(config_class)
    about = (config_class.__doc__ or "").strip().partition("\n\n")[0]
    parts = [
        USAGE.format(method=method),
        textwrap.fill(" ".join(about.split()), width) + "\n",
        textwrap.fill(ABOUT.format(method=method), width) + "\n",
    ]
    for group, title in GROUPS.items():
        members = [field for field in fields.values() if field.group == group]
        if members:
            heading = f"{method}'s own fields" if group == "method" else title
            parts.append(f"{bold[0]}{heading}{bold[1]}\n" + "".join(describe(field, width) for field in members))
    return "\n".join(parts)


def describe(field: Field, width: int) -> str:
    """Return one field: its flag, its type and its default, then its meaning, indented."""
    type_of_value = f"[{type_text(field)}]" if field.arms == (bool,) else type_text(field)
    details = "; ".join(part for part in (default_text(field), bounds(field).strip()) if part)
    lines = textwrap.wrap(
        f"{field.flag} {type_of_value}  ({details})", width - 2, subsequent_indent="    ", break_on_hyphens=False
    )
    meaning = textwrap.wrap(meaning_of(field), width - 6, break_on_hyphens=False)
    return "".join([f"  {line}\n" for line in lines] + [f"      {line}\n" for line in meaning])


def meaning_of(field: Field) -> str:
    """Return the field's text, with its aliases and an example where it has them."""
    text = field.help
    if field.aliases:
        text += " Also: " + ", ".join(field.aliases) + "."
    text += "".join(f" {each.said()}." for each in field.deprecated if each.new is None)
    old = [f"{each.old} (until {each.removed_in})" for each in field.deprecated if each.new]
    if old:
        text += f" Once {', '.join(old)}."
    if field.example:
        text += f" Example: {field.example}"
    return text
