"""The floors: each room of the host imports only rooms below it, at the top of a file and within functions alike.

`hooks/` and `run.py` speak of everything, so what they import for types alone may be above them; nothing else may.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ft_host

HOST = Path(ft_host.__file__).parent
# From the ground up. A room is a folder or a loose module.
FLOORS = [
    "_version",
    "errors",
    "hooks",
    "util",
    "metrics",
    "types",
    "batch",
    "config",
    "distributed",
    "contract",
    "run",
    "registry",
    "data",
    "models",
    "generation",
    "rundir",
    "rewards",
    "diagnostics",
    "report",
    "monitor",
    "rollouts",
    "scheduling",
    "autopilot",
    "training",
    "surface",
    "scaffold",
    "migrate",
    "api",
    "ft_host",  # its __init__
    "cli",
    "__main__",
    "testing",  # runs command lines
]
TYPES_FROM_ABOVE = ("hooks", "run")
LOOSE = {"api", "batch", "errors", "metrics", "run", "types", "_version"}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(module, name, for types alone) of each import of the host in a file, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ft_host":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                where = HOST.parent / inner.replace(".", "/")
                is_module = where.is_dir() or where.with_suffix(".py").is_file()
                yield inner if is_module else node.module, alias.name, id(node) in typed
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ft_host":
                    yield alias.name, "", id(node) in typed


def breaches(path: Path, module: str) -> list[str]:
    """What a file of the host imports from its own floor or above, in words."""
    room, found = room_of(module), []
    for target, name, typed in imports(path):
        other = room_of(target)
        if other == room or FLOORS.index(other) < FLOORS.index(room) or (typed and room in TYPES_FROM_ABOVE):
            continue
        kind = " for types" if typed else ""
        found.append(f"{module} ({room}) imports {name or target} of {target} ({other}){kind}, which is above it")
    return found


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(HOST.rglob("*.py")):
        parts = ("ft_host", *path.relative_to(HOST).with_suffix("").parts)
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_each_room_imports_only_rooms_below_it():
    assert [line for path, module in modules() for line in breaches(path, module)] == []


def test_every_room_has_a_floor_and_few_modules_stand_loose():
    rooms = {room_of(module) for _, module in modules()}
    assert rooms == set(FLOORS)
    loose = {path.stem for path in HOST.glob("*.py")} - {"__init__", "__main__"}
    assert loose == LOOSE and len(LOOSE) <= 7


def test_a_breach_is_named_with_both_files(tmp_path):
    file = tmp_path / "order.py"
    file.write_text(
        "from ft_host.errors import ConfigError\n"
        "def late():\n    from ft_host.training.loop import fit\n    import ft_host.cli\n",
        encoding="utf-8",
    )
    assert breaches(file, "ft_host.data.order") == [
        "ft_host.data.order (data) imports fit of ft_host.training.loop (training), which is above it",
        "ft_host.data.order (data) imports ft_host.cli of ft_host.cli (cli), which is above it",
    ]


def test_the_picture_in_the_docs_shows_these_floors():
    page = (HOST.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"^```mermaid$(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert re.findall(r'^ +n\d+\["(\w+)"\]$', picture, re.MULTILINE) == FLOORS[::-1]  # drawn from the top down
