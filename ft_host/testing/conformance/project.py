"""What a distribution's metadata says, and its sources where they lie beside the package. Imports nothing of it."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.registry.metadata import normalise
from ft_host.testing.conformance.check import DoesNotApply, NotMet

if TYPE_CHECKING:
    from ft_host.registry import PluginInfo
    from ft_host.testing.conformance.subject import Subject

FENCE = re.compile(r"^ *(?:```|~~~)(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *(?:```|~~~)\s*$", re.MULTILINE | re.DOTALL)
ENDS = ("&&", "||", "|", ";", ">", ">>", "&")  # words that end a command of a shell


@dataclass(frozen=True)
class Project:
    """An installed distribution. `folder` has the sources, of one installed with `pip install -e`."""

    said: dict[str, Any]  # the core metadata as JSON (PEP 566)
    folder: Path | None
    toml: dict[str, Any]  # pyproject.toml of the folder

    @property
    def classifiers(self) -> list[str]:
        return self.said.get("classifier", [])

    @property
    def requires(self) -> list[str]:
        return self.said.get("requires_dist", [])

    @property
    def urls(self) -> dict[str, str]:
        """Links by their name in lower case."""
        pairs = (each.partition(",") for each in self.said.get("project_url", []))
        return {name.strip().lower(): url.strip() for name, _, url in pairs}

    @property
    def readme(self) -> str:
        """Of the sources, where they are there: what is installed may be older."""
        named = self.toml.get("project", {}).get("readme", "")
        named = named.get("file", "") if isinstance(named, dict) else named
        if self.folder and named and (self.folder / named).is_file():
            return (self.folder / named).read_text(encoding="utf-8")
        return self.said.get("description", "")

    @property
    def sources(self) -> Path:
        """The folder of pyproject.toml. Raises DoesNotApply where a wheel was installed."""
        if self.folder is None:
            raise DoesNotApply("it is installed without its sources, in which the paths of conformance.toml are")
        return self.folder

    def text(self, field: str, name: str) -> str:
        """The text of a file of the sources that a field of conformance.toml names. Raises NotMet where it isn't
        there."""
        file = self.sources / name
        if not file.is_file():
            raise NotMet(f"{field}: there is no file {name} in {self.folder}")
        return file.read_text(encoding="utf-8")


def project_of(subject: Subject) -> Project:
    """Raises DoesNotApply for a method in one file."""
    if not subject.distribution:
        raise DoesNotApply("a method in one file has no metadata")
    from importlib_metadata import metadata

    said = metadata(subject.distribution).json
    for folder in sources_may_be(subject.package):
        toml = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        if normalise(toml.get("project", {}).get("name", "")) == normalise(subject.distribution):
            return Project(said, folder, toml)
    return Project(said, None, {})


def sources_may_be(package: Path | None) -> Iterator[Path]:
    """Folders with a pyproject.toml above a package: `ft-x/ft_x`, or `ft-x/src/ft_x`."""
    for folder in list(package.parents)[:2] if package else ():
        if (folder / "pyproject.toml").is_file():
            yield folder


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of these languages."""
    for found in FENCE.finditer(text):
        if found["language"].lower() in languages:
            yield found["text"]


def runs_in(readme: str) -> Iterator[list[str]]:
    """The words after `ft-host train`, of each such command in the README's blocks for a shell."""
    for block in blocks(readme, "sh", "bash", "shell", "console", "zsh"):
        for line in block.replace("\\\n", " ").splitlines():
            if "ft-host train" not in line:
                continue
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            for begin in range(len(words) - 1):
                if words[begin : begin + 2] == ["ft-host", "train"]:
                    rest = words[begin + 2 :]
                    ends = [place for place, word in enumerate(rest) if word in ENDS]
                    yield rest[: ends[0]] if ends else rest


def offered(subject: Subject) -> list[PluginInfo]:
    """What the package has entry points for. Diagnostics of the name of a method or a backend belong to it."""
    named = [info for info in subject.plugins if not info.implied]
    others = {info.name for info in named if info.kind != "diagnostics"}
    return [info for info in named if info.kind != "diagnostics" or info.name not in others]
