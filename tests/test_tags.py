"""The tags of our packages: what READMEs say of them is what their metadata says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ft_host.registry.metadata import stability_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))
WORDS = {"3": "Alpha", "4": "Beta", "5": "stable"}  # of a classifier, in a README


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tag(folder: Path) -> str:
    found = project(folder)
    return stability_of(found["classifiers"], found["version"])[0]


def tags_in(readme: str) -> dict[str, str]:
    """The tags in the README's table, and in the line under it, by package."""
    rows = re.findall(r"^\| \[([\w-]+)\]\(plugins/\1\) \| (\w+) \|", readme, re.MULTILINE)
    return dict(rows + re.findall(r"^and \[([\w-]+)\]\(plugins/\1\) \((\w+)\)", readme, re.MULTILINE))


def test_the_readmes_table_has_each_package_with_its_tag():
    assert tags_in((ROOT / "README.md").read_text(encoding="utf-8")) == {each.name: tag(each) for each in PACKAGES}


def test_a_row_without_a_tag_is_missed():
    table = "| [ft-a](plugins/ft-a) | stable | `a` |\n| [ft-b](plugins/ft-b) | `b` |\n"
    text = f"{table}and [ft-c](plugins/ft-c) (experimental), a backend\n"
    assert tags_in(text) == {"ft-a": "stable", "ft-c": "experimental"}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_a_packages_readme_says_its_version_its_tag_and_what_stands(folder):
    text, found = (folder / "README.md").read_text(encoding="utf-8"), project(folder)
    [status] = [each for each in found["classifiers"] if each.startswith("Development Status")]
    word = WORDS[status.partition(":: ")[2][0]]
    top = " ".join(text.partition("\n## ")[0].split())
    assert f"{found['version']}, {word}." in top, f"{folder.name}/README.md: {found['version']}, {word}."
    section = re.search(r"^## Stability\n\n(\w+):", text, re.MULTILINE)
    assert section, f"{folder.name}/README.md has no section Stability"
    assert section[1].lower() == tag(folder)


@pytest.mark.parametrize("folder", [ROOT, *PACKAGES], ids=lambda folder: folder.name)
def test_version_and_classifier_agree(folder):
    found = project(folder)
    assert stability_of(found["classifiers"], found["version"])[1] == ()
