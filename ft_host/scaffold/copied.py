"""The source of an installed method, under another name: what `ft-host new --from` begins with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ft_host import registry
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import HOST, own_diagnostics, rules_of
from ft_host.errors import UsageError
from ft_host.registry.metadata import headers_of, normalise
from ft_host.scaffold.names import Names

DECLARED = "conformance.toml"
EVIDENCE = re.compile(r"^\[evidence.*?(?=^\[(?!evidence)|\Z)", re.MULTILINE | re.DOTALL)  # a table, and those in it


@dataclass(frozen=True, kw_only=True)
class Source:
    """An installed method that can be copied."""

    folder: Path
    package: str
    config: str
    letters: str  # what codes of its rules begin with; empty where it has none
    kind: str  # of ft_host.scaffold.KINDS
    summary: str
    origin: str


def source_of(method: str) -> Source:
    """Return what is installed under this name. Raises PluginNotFound where nothing is, and UsageError where it isn't a
    package with this method alone."""
    info = registry.find("method", method)
    folder, package = Path(info.location).parent, info.value.partition(".")[0]
    if not info.distribution or folder.name != package:
        raise UsageError(f"--from {method}: {info.location} isn't a package of its own; copy the file")
    beside = [
        each.name for each in registry.catalog() if each.kind == "method" and each.distribution == info.distribution
    ]
    if len(beside) > 1:
        raise UsageError(
            f"--from {method}: {info.distribution} has several methods ({', '.join(sorted(beside))}); copy what you"
            " need"
        )
    config = registry.config_class(info)
    kind = "pairs" if "preference" in config.formats else "offline"
    return Source(
        folder=folder,
        package=package,
        config=config.__name__,
        letters=letters_of(info),
        kind="rollouts" if issubclass(config, RolloutConfig) else kind,
        summary=f"{info.summary.rstrip('.')}.",
        origin=f"\nIt began as a copy of {info.distribution} {info.version} ({licence_of(info.distribution)}).\n",
    )


def licence_of(distribution: str) -> str:
    from importlib_metadata import distribution as find

    headers = headers_of(find(normalise(distribution)))
    named = headers.get("license-expression") or headers.get("license")
    return f"licence: {named[0]}" if named else "it names no licence: ask before you publish"


def letters_of(info: registry.PluginInfo) -> str:
    owned, _ = rules_of(own_diagnostics(info))
    found = {re.sub(r"[0-9]", "", rule.code) for rule, owner in owned if owner != HOST}
    return min(found, key=len, default="")


def copied(source: Source, names: Names) -> dict[str, str]:
    """Return its modules by path, renamed: package, config class, letters of rules; and what it says of itself for
    `ft-host check`. What was recorded of the original isn't taken over."""
    found = {}
    for file in sorted([*source.folder.rglob("*.py"), *source.folder.glob(DECLARED)]):
        path = f"{names.package}/{file.relative_to(source.folder).as_posix()}"
        text = renamed(file.read_text(encoding="utf-8"), source, names)
        found[path] = EVIDENCE.sub("", text) if file.name == DECLARED else text
    return found


def renamed(text: str, source: Source, names: Names) -> str:
    text = re.sub(rf"\b{source.package}\b", names.package, text)
    text = re.sub(rf"\b{source.config}\b", names.config, text)
    if source.letters:
        text = re.sub(rf"\b{source.letters}(?=[0-9]{{3}}\b)", names.letters, text)
        text = text.replace(f'"{source.letters}"', f'"{names.letters}"')  # what rules of a family are given
    return text
