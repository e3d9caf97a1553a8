"""What can be seen without importing a package: names, entry points, versions, licence, README."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host._version import __version__
from ft_host.registry.metadata import host_requirement, normalise, stability_of
from ft_host.registry.modules import locate
from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.project import blocks, offered, project_of, runs_in
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.registry import PluginInfo
    from ft_host.testing.conformance.subject import Subject

STATUS = "Development Status ::"
PREFIX = "ft-"


def names(subject: Subject) -> None:
    """ft-x, ft_x and x: three spellings of one name."""
    project = project_of(subject)
    distribution = project.said["name"]
    bare = normalise(distribution).removeprefix(PREFIX)
    if not normalise(distribution).startswith(PREFIX):
        raise NotMet(f"the distribution is called {distribution!r}; expected {PREFIX}{bare}")
    package = f"ft_{bare.replace('-', '_')}"
    for info in offered(subject):
        module = info.value or info.config
        found = re.split(r"[.:\[]", module)[0].strip()
        if found != package:
            raise NotMet(f"the {info.kind} {info.name!r} is in the package {found!r} ({module}); expected {package!r}")
    named = list(dict.fromkeys(info.name for info in offered(subject)))
    if bare not in map(normalise, named):
        raise NotMet(f"{distribution} offers {', '.join(named)}; expected that one is called {bare!r}")


def entry_points(subject: Subject) -> None:
    project_of(subject)
    for info in subject.plugins:
        if info.state == "broken":  # one that is incompatible has its own check, of the range
            raise NotMet(f"the {info.kind} {info.name!r}: {info.problem}")
        missing = _missing_class(info)
        if missing:
            raise NotMet(f"the config of the {info.kind} {info.name!r}: {missing}")


def _missing_class(info: PluginInfo) -> str:
    """Why `module:Class` isn't there, by the text of the module; empty where it is, or can't be told by the text."""
    module, _, name = info.config.partition(":")
    name = name.partition("[")[0].strip().partition(".")[0]
    file = locate(module.strip(), attr=False)[0] if name else None
    if file is None or not file.endswith(".py"):
        return ""
    there = _defined(ast.parse(Path(file).read_bytes()).body)
    if name in there or "*" in there:
        return ""
    return f"{info.config}, and {file} has no {name!r}{nearest(name, there)}"


def _defined(body: Iterable[ast.AST]) -> set[str]:
    """The names that a module has after its import."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            found |= _defined(ast.iter_child_nodes(node))
        else:
            found |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found


def version(subject: Subject) -> Figures:
    """The classifier is the tag; the version says the same."""
    from packaging.version import InvalidVersion, Version

    project = project_of(subject)
    found = project.said["version"]
    try:
        Version(found)
    except InvalidVersion:
        raise NotMet(f"the version is {found!r}; expected one like 0.1.0 (PEP 440)") from None
    tags = [text for text in project.classifiers if text.startswith(STATUS)]
    if not tags:
        raise NotMet(f"no classifier {STATUS!r}; expected one, such as '{STATUS} 3 - Alpha' of an experimental package")
    stability, notes = stability_of(project.classifiers, found)
    if notes:
        raise NotMet("; ".join(notes))
    asked = project.toml.get("project", {})
    for field, installed in (("version", found), ("classifiers", project.classifiers)):
        if field in asked and asked[field] != installed:
            raise NotMet(
                f"installed with the {field} {installed!r}, and pyproject.toml has {asked[field]!r}; install it again"
            )
    return {"version": found, "stability": stability}


def host_range(subject: Subject) -> Figures:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    project = project_of(subject)
    major, minor = (int(part) for part in re.findall(r"\d+", __version__)[:2])
    wanted = f"expected a lower bound and the next major version, such as ft-host>={major}.{minor},<{major + 1}"
    text, fits, unreadable = host_requirement(tuple(project.requires))
    if unreadable:
        raise NotMet(unreadable)
    if not text:
        raise NotMet(f"its dependencies don't name ft-host; {wanted}")
    bounds = {each.operator: each.version for each in SpecifierSet(text)}
    if "~=" in bounds:  # ~=1.4 is >=1.4,<2
        parts = Version(bounds["~="]).release
        bounds |= {">=": bounds.pop("~="), "<": f"{parts[0] + 1}" if len(parts) == 2 else ".".join(map(str, parts))}
    if set(bounds) - {"!="} != {">=", "<"}:
        raise NotMet(f"it needs ft-host{text}; {wanted}")
    upper = Version(bounds["<"]).release
    if any(upper[1:]):
        raise NotMet(f"it needs ft-host{text}: minor versions break nothing, and this shuts them out; {wanted}")
    if upper[0] > major + 1:
        raise NotMet(f"it needs ft-host{text}: nobody knows what {upper[0] - 1}.0 will be like; {wanted}")
    if not fits:
        raise NotMet(f"it needs ft-host{text}, and this is {__version__}")
    return {"requires_host": text}


def licence(subject: Subject) -> Figures:
    said = project_of(subject).said
    classifier = next((text for text in said.get("classifier", []) if text.startswith("License ::")), "")
    found = said.get("license_expression") or said.get("license") or classifier
    if not found:
        raise NotMet('its metadata names no licence; expected one in pyproject.toml, such as license = "Apache-2.0"')
    return {"licence": found.splitlines()[0]}


def summary(subject: Subject) -> None:
    said = project_of(subject).said
    found = said.get("summary", "").strip()
    if found in ("", "UNKNOWN"):
        raise NotMet("its metadata has no summary; expected a description of one line in pyproject.toml")
    words = set(re.findall(r"\w+", found.lower())) - set(re.findall(r"\w+", said["name"].lower()))
    if len(words) < 3:
        raise NotMet(f"its summary is {found!r}; expected what it does, in a few words")


def readme(subject: Subject) -> Figures:
    """A run of each method and backend, or of each diagnostics plugin that has none."""
    text = project_of(subject).readme
    runs = list(runs_in(text))
    if not text.strip():
        raise NotMet('its metadata has no description; expected readme = "README.md" in pyproject.toml')
    for info in offered(subject):
        found = [words for words in runs if _is_of(info, words)]
        in_file = rf"^{info.kind}: *\[? *['\"]?{re.escape(info.name)}\b"
        if info.kind != "method" and any(re.search(in_file, each, re.MULTILINE) for each in blocks(text, "yaml")):
            found = runs
        if not found:
            command = info.name if info.kind == "method" else f"METHOD run.yaml --{info.kind} {info.name}"
            there = "; ".join(" ".join(each) for each in runs)
            raise NotMet(
                f"its README has no run of the {info.kind} {info.name!r} in a block of sh; expected ft-host train "
                f"{command}" + (f" (it has {there})" if runs else "")
            )
    return {"runs": len(runs)}


def _is_of(info: PluginInfo, words: list[str]) -> bool:
    if info.kind == "method":
        return words[:1] == [info.name]
    return any(info.name in words[at + 1 :] for at, word in enumerate(words) if word == f"--{info.kind}")


CHECKS: list[Check] = [
    Check(
        id="metadata-names",
        title="Distribution, package and plugin have one name: ft-x, ft_x, x",
        about="package",
        why="Who reads `ft-host train x` in a paper must guess what to install, and who sees a module in a traceback "
        "whose it is. Two packages with a module of the same name overwrite each other's files.",
        looks_at="The name of the distribution, the modules of its entry points, and their names.",
        mend="Call the distribution ft-x, its package ft_x, and one of its plugins x. `ft-host new x` does.",
        test=names,
    ),
    Check(
        id="metadata-entry-points",
        title="Every entry point leads to a module, every method to a config",
        about="package",
        why="A plugin whose entry point leads nowhere is listed, and can't be used.",
        looks_at="entry_points.txt, the files of the modules that it names and, in their text, the classes.",
        mend="Correct the entry point in pyproject.toml and install the package again: entry points are written when "
        "it is installed.",
        test=entry_points,
    ),
    Check(
        id="metadata-version",
        title="The version and the classifier say the same of its stability",
        about="package",
        why="The classifier Development Status is the tag that users see, and a version below 1.0 is what pip and they "
        "take for a promise that isn't given yet.",
        looks_at="Version and classifiers of the metadata; and pyproject.toml, where it lies beside the package, since "
        "what is installed may be older.",
        mend="Give one classifier: 3 - Alpha or 4 - Beta with a version 0.y, 5 - Production/Stable from 1.0 on. After "
        "a change of pyproject.toml, `pip install -e .` again.",
        test=version,
    ),
    Check(
        id="metadata-host-range",
        title="It names the versions of ft-host that it works with, up to the next major one",
        about="package",
        why="Without a lower bound an old host is installed and fails; without an upper one, a host that has changed "
        "what it promised. A bound on a minor version shuts out hosts that break nothing.",
        looks_at="Requires-Dist of ft-host.",
        mend="Write >= the lowest version that you test with, and < the next major version.",
        test=host_range,
    ),
    Check(
        id="metadata-licence",
        title="Its metadata names a licence",
        about="package",
        why="What has none may not be used, copied or begun from with `ft-host new --from`.",
        looks_at="License-Expression, License, and the classifiers.",
        mend='Write license = "Apache-2.0", or another SPDX expression, in pyproject.toml.',
        test=licence,
    ),
    Check(
        id="metadata-summary",
        title="A summary of one line says what it does",
        about="package",
        why="It is what `ft-host plugins` and the package index show beside the name.",
        looks_at="Summary.",
        mend="Write description in pyproject.toml: what is learnt from what.",
        test=summary,
    ),
    Check(
        id="metadata-readme",
        title="Its README shows a run",
        about="package",
        why="The first thing that a user looks for is a command that works.",
        looks_at="The blocks of sh in the README: `ft-host train` with each method, or with the backend or the "
        "diagnostics by their flag or in a block of yaml.",
        mend="Put the shortest command that trains at the top of the README, in a block of sh.",
        test=readme,
    ),
]
