"""`ft-host config METHOD`: a config file to start from, with every field, its meaning and its default."""

from __future__ import annotations

import textwrap

from ft_host.config.fields import GROUPS, Field, fields_of
from ft_host.config.text import toml_text, type_text, yaml_text
from ft_host.config.words import bounds

WIDTH = 100
FORMATS = ("yaml", "toml")


def starter(method: str, config_class: type, form: str = "yaml") -> str:
    """Return the text of the file. Required fields come first and empty; remove the `#` of a line to set
    another field.

    Prose begins with "# ", a field that is commented out with "#" alone.
    """
    write, equals = (toml_text, " = ") if form == "toml" else (yaml_text, ": ")
    fields = fields_of(config_class)
    schema = f"{method}.schema.json"
    directive = f"#:schema ./{schema}" if form == "toml" else f"# yaml-language-server: $schema={schema}"
    lines = [
        directive,
        f"# That line lets an editor complete and check this file, once you call: ft-host schema {method} > {schema}",
        f"# Train with: ft-host train run.{form}. Flags override the file: ft-host train run.{form} --max-steps 10",
        f"# All other fields are commented out at their defaults. The same as flags: ft-host train {method} --help",
        "",
        f"method{equals}{write(method)}",
    ]
    for field in fields.values():
        if field.required:
            lines += ["", *prose(field), f"{field.name}{equals}{write(field.default)}"]
            lines[-1] += f"  # required, for instance {write(field.example)}" if field.example else "  # required"
    for group, title in GROUPS.items():
        members = [field for field in fields.values() if field.group == group and not field.required]
        if members:
            lines += ["", f"# ---- {f'of {method}' if group == 'method' else title}"]
        for field in members:
            lines += ["", *prose(field), f"#{field.name}{equals}{write(field.default)}"]
    return "\n".join(lines) + "\n"


def prose(field: Field) -> list[str]:
    """Return a field's meaning, and its allowed values where the default doesn't show them."""
    allowed = f"{type_text(field)}{bounds(field)}"
    shown = field.choices or field.default in (None, [], {}) or bounds(field)
    text = field.help + (f" ({allowed})" if shown and not field.required else "")
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False)]
