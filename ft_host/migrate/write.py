"""A run file from what was translated, with a comment wherever something is otherwise."""

from __future__ import annotations

from ft_host._version import __version__
from ft_host.config.text import yaml_text
from ft_host.migrate.translate import Translated


def run_file(method: str, source: str, found: Translated, computed: list[str], tool: str = "TRL") -> str:
    """Return the text of a YAML file. `source`: what it was made from; `computed`: what a script computes."""
    lines = [f"# Made from {source} by ft-host {__version__}", f"method: {method}", ""]
    for name, (value, comment) in found.taken.items():
        lines.append(f"{name}: {yaml_text(value)}" + (f"  # {comment}" if comment else ""))
    if found.defaults:
        lines += ["", f"# Defaults of {tool}'s that are others here; without these lines it is another run."]
        lines += [f"{name}: {yaml_text(value)}  # {comment}" for name, (value, comment) in found.defaults.items()]
    if computed:
        lines += ["", "# The script computes these: set them yourself.", *(f"#   {said}" for said in computed)]
    if found.missing:
        lines += ["", "# Still to be said.", *(f"#   {said}" for said in found.missing)]
    if found.left:
        lines += ["", "# Without a counterpart."]
        lines += [f"#   {name}: {yaml_text(value)}  ({why})" for name, value, why in found.left]
    if found.same:
        lines += ["", f"# Done here anyway: {', '.join(sorted(found.same))}"]
    return "\n".join(lines) + "\n"
