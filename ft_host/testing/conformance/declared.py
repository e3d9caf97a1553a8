"""`conformance.toml` in a package: what its runs need, and what it can't meet, with the reason. Reading it imports
nothing.

    [config]                        # fields of the tiny runs, for each method of the package
    teacher_model_name_or_path = "{teacher}"

    [config.gkd]                    # of one method alone; of a backend, its backend_config
    lmbda = 0.5

    [not_met]                       # by check
    loss-additive = "the KL estimate is one number of the step (eq. 7)"

    [not_met.gkd]                   # of one plugin alone
    loss-row-order = "..."

    [evidence]                      # for the stable tier; paths from pyproject.toml, or URLs
    parity = "tests/test_parity.py" # tests against another implementation; or no_parity = "the reason"
    docs = "README.md"              # the page with a run on real data
    data = "GSM8K"                  # the public data set of that run
    curve = "docs/gsm8k.svg"        # the page's picture of it; its first one, if left out

    [needs]                         # modules without which its backends can't run, and what to do
    vllm = "a CPU or GPU with 3 GB to spare; environment/make.sh installs it"

`{model}`, `{teacher}`, `{other_teacher}`, `{scorer}` and `{rewards}` in a value are what the suite makes: see
`Materials`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_host.errors import PluginBroken
from ft_host.util.text import nearest

FILE = "conformance.toml"
PARTS = ("config", "not_met", "evidence", "needs")
EVIDENCE = (
    "parity",
    "no_parity",
    "docs",
    "curve",
    "data",
)  # of the stable tier's: checks/maturity.py says what each is


@dataclass(frozen=True)
class Declared:
    """What a package says of itself. Empty where it has no file."""

    config: dict[str, Any] = field(default_factory=dict)
    not_met: dict[str, str] = field(default_factory=dict)
    not_met_by: dict[str, dict[str, str]] = field(default_factory=dict)  # of one plugin alone
    evidence: dict[str, Any] = field(default_factory=dict)  # what the stable tier asks for and no run can show
    needs: dict[str, str] = field(default_factory=dict)  # module -> what to do where a backend misses it

    def reason(self, check: str, plugin: str) -> str | None:
        """Why a plugin can't pass a check, or None."""
        return self.not_met_by.get(plugin, {}).get(check) or self.not_met.get(check)

    def fields_of(self, method: str, methods: set[str]) -> dict[str, Any]:
        """The fields of the tiny runs of one method."""
        common = {name: value for name, value in self.config.items() if name not in methods}
        return common | self.config.get(method, {})


def declared(folder: Path | None, known: set[str], plugins: set[str]) -> Declared:
    """Read the file of the package in `folder` (None: a method in one file has none). `known`: ids of checks;
    `plugins`: names of the package's. Raises PluginBroken where it can't be read, or names what there isn't."""
    file = folder / FILE if folder else None
    if file is None or not file.is_file():
        return Declared()
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginBroken(f"{file}: {error}") from error
    for part, value in found.items():
        if part not in PARTS:
            raise PluginBroken(f"{file}: {part!r}{nearest(part, PARTS)}; expected {', '.join(PARTS)}")
        if not isinstance(value, dict):
            raise PluginBroken(f"{file}: {part}: expected a table, found {value!r}")
    for name, value in found.get("evidence", {}).items():
        if name not in EVIDENCE:
            raise PluginBroken(f"{file}: evidence: {name!r}{nearest(name, EVIDENCE)}; expected {', '.join(EVIDENCE)}")
        several = isinstance(value, list) and name == "parity"
        if not all(isinstance(each, str) for each in (value if several else [value])):
            wanted = "text, or a list of texts" if name == "parity" else "text"
            raise PluginBroken(f"{file}: evidence: {name}: expected {wanted}, found {value!r}")
    said = found.pop("not_met", {})
    by = {name: reasons for name, reasons in said.items() if isinstance(reasons, dict)}
    common = {id: reason for id, reason in said.items() if id not in by}
    for name in by:
        if name not in plugins:
            raise PluginBroken(f"{file}: not_met: the package has no plugin {name!r}{nearest(name, plugins)}")
    for where, reasons in {"not_met": common, **{f"not_met.{name}": each for name, each in by.items()}}.items():
        for id, reason in reasons.items():
            if id not in known:
                raise PluginBroken(f"{file}: {where}: there is no check {id!r}{nearest(id, known)}")
            if not isinstance(reason, str) or not reason.strip():
                raise PluginBroken(f"{file}: {where}: {id}: expected the reason as text, found {reason!r}")
    return Declared(**found, not_met=common, not_met_by=by)
