"""A module of the host or of a package stays within 300 lines: then it has one subject and can be read at one sitting.
Up to 400 where its docstring says why, in a line "Longer than 300 lines: REASON"."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT, LONGEST = 300, 400
REASON = "Longer than 300 lines: "


def modules() -> list[Path]:
    packages = [ROOT / "ft_host", *ROOT.glob("plugins/*/ft_*")]
    return sorted(path for package in packages for path in package.rglob("*.py"))


def too_long(text: str) -> bool:
    """Whether a module has more lines than it may have."""
    lines = len(text.splitlines())
    reasons = [line for line in (ast.get_docstring(ast.parse(text)) or "").splitlines() if line.startswith(REASON)]
    return lines > (LONGEST if any(line.removeprefix(REASON).strip() for line in reasons) else LIMIT)


def test_no_module_is_too_long():
    sizes = {path: path.read_text(encoding="utf-8") for path in modules()}
    assert len(sizes) > 150
    found = [
        f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines" for path, text in sizes.items() if too_long(text)
    ]
    assert not found, f"split them, or say in the docstring '{REASON}...' (up to {LONGEST}):\n" + "\n".join(found)


def test_a_reason_allows_a_hundred_more():
    reason = f'"""What it is.\n\n{REASON}it is one table.\n"""\n'
    assert not too_long("x = 1\n" * 300) and too_long("x = 1\n" * 301)
    assert not too_long(reason + "x = 1\n" * 396) and too_long(reason + "x = 1\n" * 397)
    assert too_long(f'"""What it is.\n\n{REASON}\n"""\n' + "x = 1\n" * 300)
