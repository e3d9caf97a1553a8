"""What a stable tag must have earned beside passing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.registry import catalog
from ft_host.registry.conformance import FILE as RECORD
from ft_host.registry.conformance import Recorded, recorded
from ft_host.registry.metadata import normalise
from ft_host.surface import changes, package_surface
from ft_host.surface.compare import MAJOR, version_key
from ft_host.surface.released import KEPT, last_contract
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.declared import FILE
from ft_host.testing.conformance.project import project_of

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

MOST_DECLARED = 2
URL = re.compile(r"https?://\S+\.\S+")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)")


def parity(subject: Subject) -> Figures:
    """Tests against another implementation, or the reason why there are none."""
    project, evidence = project_of(subject), subject.declared.evidence
    if "no_parity" in evidence:
        if len(str(evidence["no_parity"]).split()) < 3:
            raise NotMet(f"no_parity is {evidence['no_parity']!r}; expected the reason, in a sentence")
        return {"no_parity": evidence["no_parity"]}
    given = _asked(evidence, "parity", "a file of tests against another implementation, or no_parity with the reason")
    for name in given:
        if not URL.fullmatch(name) and not re.search(r"^\s*def test_", project.text("parity", name), re.MULTILINE):
            raise NotMet(f"parity: {name} has no test")
    return {"parity": given}


def documentation(subject: Subject) -> Figures:
    """A page with a run on real data: its name, and a curve that is there."""
    project, evidence = project_of(subject), subject.declared.evidence
    [page] = _asked(evidence, "docs", "the page with a run on real data and its curve")
    [data] = _asked(evidence, "data", "the name of the public data set of that run; a task that is made up shows less")
    if URL.fullmatch(page):
        return {"docs": page, "data": data}
    text = project.text("docs", page)
    if not re.search(rf"(?<!\w){re.escape(data)}(?!\w)", text):
        raise NotMet(f"docs: {page} doesn't name the data set {data!r}")
    curve = evidence.get("curve") or next(iter(IMAGE.findall(text)), None)
    if curve is None:
        raise NotMet(f"docs: {page} shows no image; expected the curve of the run")
    if curve not in IMAGE.findall(text):
        raise NotMet(f"curve: {page} doesn't show {curve!r}; it shows {', '.join(IMAGE.findall(text)) or 'none'}")
    folder = project.sources / Path(page).parent
    if not URL.fullmatch(curve) and not (folder / curve).is_file():
        raise NotMet(f"docs: {page} shows {curve}, and there is no such file")
    return {"docs": page, "data": data, "curve": curve}


def documented(subject: Subject) -> Figures:
    """Every field and metric of its own, by name, in the README or the page."""
    project, evidence = project_of(subject), subject.declared.evidence
    pages = [page for page in _list(evidence.get("docs", [])) if not URL.fullmatch(page)]
    text = "\n".join([project.readme, *(project.text("docs", page) for page in pages)])
    count, missing = 0, []
    surface = package_surface(subject.distribution)
    for kind in ("method", "backend", "diagnostics"):
        for plugin, said in surface[kind].items():
            for part, singular in (("fields", "field"), ("metrics", "metric")):
                names = list(said.get(part, ()))
                count += len(names)
                missing += [f"the {singular} {name} of {plugin}" for name in names if not _named(name, text)]
    if missing:
        raise NotMet(f"neither the README nor the page names {', '.join(missing)}")
    return {"names": count}


def maintainer(subject: Subject) -> Figures:
    project = project_of(subject)
    asked = project.toml.get("project", {})
    found = [project.said.get(name) for name in ("maintainer", "maintainer_email", "author", "author_email")]
    found += [
        each.get("name") or each.get("email") for part in ("maintainers", "authors") for each in asked.get(part, ())
    ]
    named = next((each for each in found if each and each.strip()), None)
    if named is None:
        raise NotMet("its metadata names nobody; expected maintainers or authors in pyproject.toml")
    return {"maintainer": named}


def changelog(subject: Subject) -> Figures:
    project = project_of(subject)
    version = project.said["version"]
    linked = [url for name, url in project.urls.items() if re.search(r"change|release notes|history", name)]
    if project.folder is None and linked:
        return {"changelog": linked[0]}
    file = project.sources / "CHANGELOG.md"
    if not file.is_file():
        raise NotMet(f"there is no {file}")
    section = re.search(
        rf"^## +\[?v?{re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)",
        file.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    if section is None or not re.search(r"^[-*] ", section[1], re.MULTILINE):
        raise NotMet(f"CHANGELOG.md has no section {version} with an entry")
    return {"entries": len(re.findall(r"^[-*] ", section[1], re.MULTILINE))}


def dependencies(subject: Subject) -> Figures:
    """Distributions with plugins, and the host."""
    from packaging.requirements import Requirement

    tags = {normalise(info.distribution): info for info in catalog()}
    needed = [Requirement(text) for text in project_of(subject).requires]
    names = [normalise(each.name) for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    found = [tags[name] for name in names if name in tags]
    experimental = [f"{info.distribution} {info.version}" for info in found if info.stability == "experimental"]
    if experimental:
        raise NotMet(f"it needs {', '.join(experimental)}, which is experimental: what that changes, this changes")
    return {"needs": [f"{info.distribution} {info.version}" for info in found]}


def few_declared(subject: Subject) -> Figures:
    declared = subject.declared
    found = list(dict.fromkeys([*declared.not_met, *(id for each in declared.not_met_by.values() for id in each)]))
    if len(found) > MOST_DECLARED:
        raise NotMet(f"it declares that it can't meet {len(found)}: {', '.join(found)}; at most {MOST_DECLARED} may be")
    return {"declared": found}


def unbroken(subject: Subject) -> Figures:
    """One release in a row: what the last one promised is all there."""
    project = project_of(subject)
    version = project.said["version"]
    found = last_contract(subject.distribution, version, subject.package)
    if found is None:
        raise NotMet(f"no contract of a release is recorded: neither {KEPT}/ of the repository nor the package has one")
    place, old = found
    new = package_surface(subject.distribution)
    broken = [str(each) for each in changes(old, new) if each.needs == MAJOR]
    moved = version_key(new["version"])[0] > version_key(old["version"])[0] > 0
    if broken and not moved:
        raise NotMet(
            f"since {old['version']} ({place.name}) it has broken {len(broken)}; one release must go by that breaks "
            f"nothing: {'; '.join(broken)}"
        )
    return {"since": old["version"], "broken": len(broken)}


def on_record(subject: Subject) -> Figures:
    if subject.recording:
        raise DoesNotApply("it is being recorded")
    project = project_of(subject)
    problem = not_recorded(recorded(subject.plugin), project.said["version"])
    if problem:
        raise NotMet(problem)
    found = recorded(subject.plugin)
    return {"recorded": found.as_text(found.version) if found else ""}


def not_recorded(found: Recorded | None, version: str) -> str:
    """Why a record doesn't bear out a stable tag of this version; empty where it does."""
    if found is None:
        return f"no {RECORD} in the package"
    if found.problem:
        return found.problem
    if found.version != version:
        return f"{RECORD} is of version {found.version}, and this is {version}"
    if found.tier != "stable":
        return f"{RECORD} is of the {found.tier} tier; expected the stable one"
    return ""


# ---------------------------------------------------------------- what the evidence names


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _asked(evidence: dict[str, Any], name: str, what: str) -> list[str]:
    found = [each for each in _list(evidence.get(name, [])) if each.strip()]
    if not found:
        raise NotMet(f"{FILE} has no {name} under [evidence]; expected {what}")
    return found


def _named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w/]){re.escape(name)}(?![\w/])", text) is not None


CHECKS: list[Check] = [
    Check(
        id="stable-parity",
        title="It has been compared with another implementation, or says why not",
        about="package",
        tier="stable",
        why="A formula that nobody has compared may be another one than its paper's.",
        looks_at="`parity` under [evidence] of conformance.toml: files with tests, by their path from pyproject.toml, "
        "or URLs; or `no_parity`, the reason.",
        mend="Compare losses and gradient norms of a few steps: `ft_host.testing` has what TRL needs. If no other "
        'implementation is public, write that: no_parity = "…".',
        test=parity,
    ),
    Check(
        id="stable-docs",
        title="A page shows a run on real data, with its curve",
        about="package",
        tier="stable",
        why="That a loss falls on a tiny model doesn't say that the method learns what it is for.",
        looks_at="`docs` under [evidence]: a page, by its path from pyproject.toml, or a URL; `data`, the name of the "
        "public data set, which the page names; the first image of the page, or the one that `curve` names, is there.",
        mend="Train on a public data set, with held-out figures before and after, and publish the curve and the "
        "command. A README will do.",
        test=documentation,
    ),
    Check(
        id="stable-documented",
        title="Every field and metric has a line in its documentation",
        about="package",
        tier="stable",
        why="What is promised to stay must be known to be there.",
        looks_at="The names of the package's own fields and metrics, as `ft-host contract` lists them, in its README "
        "and in the page that `docs` under [evidence] names.",
        mend="Add the names, each with a few words, to the tables of the README.",
        test=documented,
    ),
    Check(
        id="stable-maintainer",
        title="Somebody answers for it",
        about="package",
        tier="stable",
        why="A promise is somebody's.",
        looks_at="Maintainer and author in the metadata.",
        mend='Write maintainers = [{name = "…"}] in pyproject.toml.',
        test=maintainer,
    ),
    Check(
        id="stable-changelog",
        title="The changelog has this version",
        about="package",
        tier="stable",
        why="Who moves to a new version looks there for what it does to a run.",
        looks_at="The section of this version in CHANGELOG.md beside pyproject.toml. Of a wheel there is at most a "
        "link to look at: that the section was there, its record says.",
        mend="Write a line for each change under ## VERSION.",
        test=changelog,
    ),
    Check(
        id="stable-dependencies",
        title="It needs no experimental package",
        about="package",
        tier="stable",
        why="What it needs may change in any release, and with it what this package promises.",
        looks_at="The tags of the installed packages with plugins, the host among them, that its metadata requires.",
        mend="Wait until they are stable, or copy what you need: `ft-host new --from` does.",
        test=dependencies,
    ),
    Check(
        id="stable-declared",
        title=f"At most {MOST_DECLARED} checks are declared as not met",
        about="package",
        tier="stable",
        why="Exceptions with reasons are part of honesty; many of them are another kind of package.",
        looks_at="[not_met] of conformance.toml.",
        mend="Meet them, or stay experimental.",
        test=few_declared,
    ),
    Check(
        id="stable-contract",
        title="A release has gone by that broke nothing",
        about="package",
        tier="stable",
        why="A surface that still moves can't be promised.",
        looks_at="`ft-host contract` of the package against that of its last release, in contracts/ of the repository "
        "or in the package: what is gone or changed, also where an experimental package may.",
        mend="Record the contract with each release, and publish one that breaks nothing; then change the tag.",
        test=unbroken,
    ),
    Check(
        id="stable-record",
        title="This version has passed the stable tier, and carries the record",
        about="package",
        tier="stable",
        why="`ft-host plugins show` tells users of it without running anything.",
        looks_at=f"{RECORD} in the package: its version and its tier.",
        mend="ft-host check --tier stable --record, and commit the file.",
        test=on_record,
    ),
]
