"""The three doors, `ft_host.api`, `ft_host.diagnostics` and `ft_host.testing`: packages and docs come in by them alone,
and what they offer is there, once, and described."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ft_host
from ft_host import api, testing

ROOT = Path(__file__).resolve().parent.parent
DOORS = ("ft_host.api", "ft_host.diagnostics", "ft_host.testing")
LAZY = (api, testing)
PYTHON = re.compile(r"^( *)```python[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Constants, and functions and classes that are made where they stand: a comment or their module says what they are.
UNDESCRIBED = {
    "CHAT_TEMPLATE",  # that of the tiny tokenizer
    "END",
    "FAMILIES",
    "FixedCompletion",
    "IGNORE",
    "LONGEST",
    "TOLERANCES",
    "hookimpl",  # pluggy's marker
}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of the host in a piece of Python; "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ft_host":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "ft_host")


def by_another_way(source: str) -> list[str]:
    """What a piece of Python imports of the host past its doors. `import ft_host` is for `ft_host.train`."""
    found = []
    for module, name in imports(source):
        through = module in DOORS or (module, name) in (("ft_host", ""), ("ft_host", "hookimpl"))
        of_a_door = module == "ft_host" and f"ft_host.{name}" in DOORS
        if not through and not of_a_door:
            found.append(f"{name or 'it'} of {module}")
    return found


def templates(source: str) -> Iterator[str]:
    """Modules that a test writes: string constants with an import of the host at the beginning of a line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = re.findall(r"^(?:from ft_host\S* import [^\n(]+|import ft_host\S*)$", node.value, re.MULTILINE)
            if re.fullmatch(r"ft_host(\.\w+){2,}", node.value):  # a name to be patched
                lines.append(f"import {node.value}")
            if lines:
                yield "\n".join(lines)


@pytest.mark.parametrize("package", sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()))
def test_packages_and_their_tests_come_in_by_the_doors(package):
    files = [path for path in (ROOT / "plugins" / package).rglob("*.py") if "environment" not in path.parts]
    assert files
    found = []
    for file in files:
        source = file.read_text(encoding="utf-8")
        for text in (source, *templates(source)):
            found += [f"{file.relative_to(ROOT)} imports {what}" for what in by_another_way(text)]
    assert found == [], "\n".join(found)


PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "plugins/*/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)
)


def test_snippets_of_the_docs_come_in_by_the_doors():
    found, seen = [], 0
    for page in PAGES:
        for block in PYTHON.finditer(page.read_text(encoding="utf-8")):
            seen += 1
            text = textwrap.dedent(block["text"])
            found += [f"{page.relative_to(ROOT)} imports {what}" for what in by_another_way(text)]
    assert seen > 20
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("door", LAZY, ids=lambda door: door.__name__)
def test_table_types_and_all_agree(door):
    """A name stands in the table, which fetches it, and among the imports that a type checker reads."""
    tree = ast.parse(Path(door.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)
    table = {name: home for home, names in door._HOMES.items() for name in names.split()}
    assert typed == table
    assert door.__all__ == sorted(table) and set(dir(door)) == set(table)
    assert sum(len(names.split()) for names in door._HOMES.values()) == len(table), "a name has two homes"
    for name, home in table.items():
        assert getattr(door, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match=f"module '{door.__name__}' has no attribute 'nothing'"):
        door.nothing  # noqa: B018


def test_the_front_door_is_narrow():
    assert 60 <= len(api.__all__) <= 100


@pytest.mark.parametrize("door", DOORS)
def test_every_name_is_described(door):
    module = importlib.import_module(door)
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        if name in UNDESCRIBED or name.isupper():
            continue
        text = inspect.getdoc(inspect.unwrap(value))
        # a dataclass without a docstring gets one that is its signature
        if not text or text.startswith(f"{name}("):
            missing.append(f"{value.__module__}.{name}")
    assert missing == []


@pytest.mark.parametrize("door", DOORS)
def test_a_door_loads_no_torch(door):
    """Nor does a name of it that needs none."""
    first = "RunConfig" if door == "ft_host.api" else "tiny_run" if door == "ft_host.testing" else "Rule"
    code = f"import sys, {door}; from {door} import {first}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- fixtures for everybody's tests

PROJECT_TEST = """
import os, sys

def test_it(request):
    assert "{cache}" == ("of its own" if "cache_of_its_own" in request.fixturenames else "shared")
    assert {heavy} or not ({{"torch", "ft_host.config", "ft_host.testing.fixtures"}} & set(sys.modules))
"""


@pytest.mark.parametrize(
    "pyproject, cache, heavy",
    [
        ('[project]\nname = "mine"\ndependencies = ["ft-host>=0.5,<2"]\n', "of its own", True),
        ('[project]\nname = "theirs"\ndependencies = ["requests"]\n', "shared", False),
        (None, "shared", False),
    ],
)
def test_fixtures_are_there_for_projects_that_name_the_host_alone(pyproject, cache, heavy, tmp_path):
    """In others the plugin that pytest finds by its entry point loads nothing."""
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    (tmp_path / "test_it.py").write_text(PROJECT_TEST.format(cache=cache, heavy=heavy))
    code = (
        "import os; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'; import pytest, sys; "
        f"sys.exit(pytest.main(['-q', '-p', {plugin()!r}, '-p', 'no:cacheprovider', '--rootdir', '.', 'test_it.py']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def plugin() -> str:
    """The entry point in pyproject.toml."""
    (found,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"].values()
    return found


def test_the_host_exports_three_names():
    assert ft_host.__all__ == ["__version__", "hookimpl", "train"]
