"""The host knows no method by name: what it has to know of one, the method's package declares.

Looked for in code and in texts, docstrings and comments apart: those may give examples, and point to where something is
written twice on purpose.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ft_host

HOST = Path(ft_host.__file__).parent
NAMES = "sft dpo kto grpo rloo ppo gkd gold sdft sdpo distill orpo simpo online-dpo bon".split()
WORD = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])|(?<![a-z])(dis|rm)\d{{3}}|train reward", re.IGNORECASE)

# (file, what it may say): why. A file with a slash at the end is a folder.
ALLOWED = {
    ("testing/", WORD.pattern): "makes cases and folders of runs for tests of this repository, of its own packages",
    ("config/renamed.py", r"(dpo|kto|ppo|sft)_\w+|\[sigmoid, sft\], the weight of sft"): (
        "what fields of other tools, which have the methods' names in theirs, are called here"
    ),
    ("config/absent.py", r"num_ppo_epochs|simpo_gamma"): "fields of other tools that have a method's name in theirs",
    ("config/reference.py", "TR-DPO"): "a paper",
    (
        "cli/",
        r"ft-host (config|schema) sft|sft.schema|sft, ft-sft:sft|ft-(sft|dpo)|sft-2026|method: sft|grpo,num001|grpo001",
    ): ("examples in help, of the first method that a reader of the quickstart has"),
    ("cli/migrate.py", r"trl dpo"): "a command line of another tool, in help",
    (
        "migrate/",
        r"trl dpo|^sft$",
    ): "the same in a refusal; a loss of another tool's, which that tool adds with rpo_alpha",
    **{
        (
            f"migrate/{name}.py",
            WORD.pattern,
        ): "another tool's values and fields, which have the methods' names in theirs"
        for name in ("axolotl", "axolotl_data", "axolotl_tables")
    },
    **{
        (
            f"migrate/{name}.py",
            r"older_ppo|(num_)?ppo_epochs|rloo_k",
        ): "fields and a class of another tool's, by its names"
        for name in ("forms", "methods")
    },
    ("config/run.py", r"ft-sft>=0.1,<1"): "an example in help",
    ("config/diagnostics_fields.py", r"\(grpo\)"): "an example in help",
    ("registry/", r"ft-sft|ft_sft|sftconfig"): "an example of a requirement or of a line to write in a refusal",
    ("diagnostics/rule.py", "such as grpo001"): "an example of a code in a refusal",
    ("diagnostics/shared/signal.py", r"\(grpo016\)"): "the first of the family that has the rule; its page names all",
    (
        "diagnostics/shared/",
        r"\(sft\)|an sft term|gkd 2306|simpo 2405|dapo",
    ): "SFT, GKD as what is done, and papers: no package",
    ("config/builtin_rewards.py", r"gold"): "a reward's word for the right answer, as math-verify has it",
    ("monitor/reward_check.py", r"gold"): "the same word",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each name and each string of a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def allowed(file: str) -> list[str]:
    return [said for place, said in ALLOWED if file == place or (place.endswith("/") and file.startswith(place))]


def found_in(path: Path, file: str) -> list[str]:
    out = []
    for line, text in texts(path):
        rest = text
        for said in allowed(file):
            rest = re.sub(said, "", rest, flags=re.IGNORECASE)
        if WORD.search(rest):
            out.append(f"{file}:{line}: {' '.join(text.split())[:100]}")
    return out


def test_no_method_is_named_in_the_host():
    found = [each for path in sorted(HOST.rglob("*.py")) for each in found_in(path, str(path.relative_to(HOST)))]
    assert not found, "let the method's package declare it, or say here why not:\n" + "\n".join(found)


def test_a_name_is_found_and_a_docstring_is_not(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""As in GRPO."""\nMUTES = ("DPO003", "OPT005")\nif loss_type == "grpo":\n    kto = 1\n')
    assert [each.split(":")[1] for each in sorted(found_in(file, "x.py"))] == ["2", "3", "4"]


def test_each_exception_is_needed():
    for place, said in ALLOWED:
        files = HOST.rglob("*.py") if place.endswith("/") else [HOST / place]
        some = [text for path in files if path.is_relative_to(HOST / place) for _, text in texts(path)]
        assert any(re.search(said, text, re.IGNORECASE) for text in some), f"{place} says no {said} any more"
