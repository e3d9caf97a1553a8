"""Fake installed distributions: a .dist-info folder and modules, to be put on sys.path.

For tests of how plugins are found, without pip and without changing the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def make_distribution(
    folder: str | Path,
    name: str,
    version: str = "0.1.0",
    *,
    entry_points: Mapping[str, Mapping[str, str]] | str = "",
    requires: Sequence[str] = (),
    classifiers: Sequence[str] = (),
    modules: Mapping[str, str] | None = None,
    summary: str = "",
    headers: Sequence[str] = (),
    description: str = "",
) -> Path:
    """Write a distribution into `folder` as pip would have installed it, and return its .dist-info folder.

    `entry_points` is {group: {name: value}}, or the text of entry_points.txt, which may then be as wrong as a test
    needs it. `requires` are Requires-Dist lines, `classifiers` Classifier lines, `headers` others, each whole
    ("License-Expression: MIT"); `description` is the text of a README. `modules` is {dotted name: source};
    packages above a module are made, empty, unless they are given themselves.
    """
    folder = Path(folder)
    stem = name.replace("-", "_")
    info = folder / f"{stem}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *headers]
    lines += [f"Summary: {summary}"] if summary else []
    lines += [f"Classifier: {text}" for text in classifiers]
    lines += [f"Requires-Dist: {text}" for text in requires]
    lines += ["", description] if description else []
    _write(info / "METADATA", "\n".join(lines) + "\n")
    if not isinstance(entry_points, str):
        entry_points = "\n".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in entry_points.items()
        )
    _write(info / "entry_points.txt", entry_points)
    modules = dict(modules or {})
    for dotted in list(modules):
        parts = dotted.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), "")
    for dotted, source in modules.items():
        path = folder.joinpath(*dotted.split("."))
        is_package = any(other.startswith(dotted + ".") for other in modules)
        _write(path / "__init__.py" if is_package else path.with_suffix(".py"), source)
    return info


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
