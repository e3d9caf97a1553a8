"""Writes the files of a new package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from ft_host._version import __version__
from ft_host.errors import UsageError
from ft_host.scaffold.copied import copied, source_of
from ft_host.scaffold.names import Names, names_of

HERE = resources.files("ft_host.scaffold")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of package, a method's unless it says otherwise. `group`: of its entry point, without "ft_host.";
    `module`: what that names; `what`: what its README calls it; `more`: of the command in its README."""

    about: str
    summary: str
    more: str = ""
    group: str = "methods"
    module: str = "method"
    what: str = "method"

    @property
    def plugin(self) -> str:
        """As `ft-host plugins` calls it."""
        return "diagnostics" if self.group == "diagnostics" else self.group.removesuffix("s")


KINDS = {
    "offline": Kind(
        about="a method that learns from texts or completions of the data",
        summary="Supervised fine-tuning in which a row counts by a power of its length.",
    ),
    "pairs": Kind(
        about="a method that learns from pairs of completions, one better than the other",
        summary="Learning from pairs by the difference of their mean log-probs.",
    ),
    "rollouts": Kind(
        about="a method that learns from its own completions, which rewards score",
        summary="REINFORCE with the mean of a prompt's completions as the baseline.",
        more=" --reward rewards.py:right",
    ),
    "backend": Kind(
        about="what samples completions for methods with rollouts, and for evaluation",
        group="backends",
        module="backend",
        what="backend",
        summary="A sampler of one request at a time.",
    ),
    "diagnostics": Kind(
        about="rules by which a run finds out what is wrong with itself",
        group="diagnostics",
        module="rules",
        what="diagnostics plugin",
        summary="Held-out answers that grow longer and get no better.",
    ),
}
ABOUT = {
    "methods": (
        "Its fields are in [config.py]($package/config.py), the maths and the hooks in\n"
        "[method.py]($package/method.py), what a run may find wrong with itself in [rules.py]($package/rules.py).\n"
        "`ft-host train $name --help` lists the fields with their defaults."
    ),
    "backends": "What it samples by is in [backend.py]($package/backend.py).",
    "diagnostics": (
        "The rules are in [rules.py]($package/rules.py); `ft-host rules` lists them, `ft-host explain` explains one."
    ),
}


def new_package(given: str, kind: str, into: Path) -> Path:
    """Write the package `given` of a kind of `KINDS` into a folder of its name in `into`. Returns that folder. Raises
    UsageError where the name can't be used or the folder is there."""
    of = KINDS[kind]
    names = names_of(given, of.plugin)
    return write(into, names, common_files(names, values_of(names, of)) | own_files(names, kind))


def package_from(given: str, method: str, into: Path) -> Path:
    """The same, with the source of an installed method. Raises PluginNotFound where it isn't installed, UsageError
    where it can't be copied."""
    names = names_of(given, "method")
    source = source_of(method)
    values = values_of(names, KINDS[source.kind]) | {"summary": source.summary, "origin": source.origin}
    return write(into, names, common_files(names, values) | copied(source, names))


def write(into: Path, names: Names, files: dict[str, str]) -> Path:
    folder = into / names.distribution
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it, or choose another name")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def command(names: Names, kind: Kind) -> str:
    """The run of its README."""
    if kind.group != "methods":
        return f"ft-host train METHOD run.yaml --{kind.plugin} {names.name}"
    return f"ft-host train {names.name} --model path/or/hub-id --dataset rows.jsonl{kind.more} --max-steps 100"


def values_of(names: Names, kind: Kind) -> dict[str, str]:
    major, minor = (int(part) for part in re.findall(r"\d+", __version__)[:2])
    return {
        "name": names.name,
        "distribution": names.distribution,
        "package": names.package,
        "Class": names.config,
        "letters": names.letters,
        "group": kind.group,
        "module": kind.module,
        "what": kind.what,
        "summary": kind.summary,
        "origin": "",
        "host": f">={major}.{minor},<{major + 1}",
        "run": command(names, kind),
    }


def common_files(names: Names, values: dict[str, str]) -> dict[str, str]:
    """Return the files that every package has, by path."""
    values = values | {"about": Template(ABOUT[values["group"]]).substitute(values)}
    paths = {
        "pyproject.toml": "pyproject.toml.in",
        "README.md": "README.md.in",
        "CHANGELOG.md": "CHANGELOG.md.in",
        ".gitignore": "gitignore.in",
        ".github/workflows/ci.yml": "ci.yml.in",
        ".github/workflows/release.yml": "release.yml.in",
        f"{names.package}/conformance.toml": "conformance.toml.in",
        "tests/test_conformance.py": "conformance.py.in",
    }
    found = {path: filled(f"common/{name}", values) for path, name in paths.items()}
    return found | {f"{names.package}/__init__.py": f'"""{values["summary"]}"""\n'}


def own_files(names: Names, kind: str) -> dict[str, str]:
    """Return the files of a kind, by path: modules of the package, its test, and rows for its README's run."""
    values, found = values_of(names, KINDS[kind]), {}
    for file in sorted((HERE / "kinds" / kind).iterdir(), key=lambda file: file.name):
        name = file.name.removesuffix(".in")
        if name == "test.py":
            path = f"tests/test_{names.package}.py"
        else:
            path = f"{names.package}/{name}" if file.name.endswith(".py.in") else name
        found[path] = filled(f"kinds/{kind}/{file.name}", values)
    return found


def filled(path: str, values: dict[str, str]) -> str:
    """Return a file's text; of one that ends with .in, with the values in the places of `$$name`."""
    text = (HERE / path).read_text(encoding="utf-8")
    return Template(text).substitute(values) if path.endswith(".in") else text
