"""The documentation, held against the code: hooks with their signatures, snippets, commands, links.

That docs/config.md is current is tested in test_settings.py.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft_host.hooks import data, diagnostics, generation, loss

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/rules/README.md",
        "docs/checks/README.md",
        "plugins/*/*.md",
        "examples/*/*.md",
        "benchmarks/*.md",
    )
    for path in ROOT.glob(pattern)
)
HOOKS = {
    name: function
    for family in (data, loss, generation, diagnostics)
    for name, function in vars(family).items()
    if name.startswith("ft_")
}
FENCE = re.compile(r"^```(?P<language>\w+)(?: (?P<name>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def snippets(page: Path, language: str) -> list[tuple[str | None, str]]:
    """(name, text) of each fenced block in a language."""
    return [(found["name"], found["text"]) for found in FENCE.finditer(read(page)) if found["language"] == language]


METHODS = [
    name
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))
    for name in tomllib.loads(read(path))["project"].get("entry-points", {}).get("ft_host.methods", {})
]


def fields_of_method(name: str) -> dict[str, Any]:
    """The fields of a method in this repository, of ft-sft for any other word (METHOD), and of rollouts for a file."""
    from ft_host import registry
    from ft_host.config import RolloutConfig
    from ft_host.config.fields import fields_of

    if name.endswith(".py"):
        return fields_of(RolloutConfig)
    return fields_of(registry.config_class(registry.find("method", name if name in METHODS else "sft")))


def signature(name: str) -> str:
    found = inspect.signature(HOOKS[name])
    arguments = ", ".join(f"{each.name}: {each.annotation}" for each in found.parameters.values())
    return f"{name}({arguments}) -> {found.return_annotation}"


def commands() -> Iterator[tuple[Path, str]]:
    """What follows `ft-host` or `-m ft_host` in the sh blocks of all pages, with continuation lines, without
    comments."""
    for page in PAGES:
        for _, text in snippets(page, "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\||>", line.partition(" #")[0]):
                    found = re.match(r"\s*(?:ft-host|\S.* -m ft_host) (.*)", part)
                    if found:
                        yield page, found[1].strip()


# ---------------------------------------------------------------- hooks


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_described_with_its_exact_signature(name):
    text = read(ROOT / "docs" / "hooks.md")
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/hooks.md has no section {name}"
    assert signature(name) in section[1], f"docs/hooks.md doesn't have the literal\n{signature(name)}"


def test_no_hook_is_described_that_does_not_exist():
    described = set(re.findall(r"^## (ft_\w+)$", read(ROOT / "docs" / "hooks.md"), re.MULTILINE))
    assert described == set(HOOKS)


def test_what_the_table_says_of_who_implements_a_hook_is_so():
    from ft_host.registry.session import OWNERS

    rows = re.findall(r"^\| \[`(ft_\w+)`\]\(#\w+\) \| ([\w ]+?) \|", read(ROOT / "docs" / "hooks.md"), re.MULTILINE)
    told = {name: who.removeprefix("the ") for name, who in rows}
    assert told == {name: OWNERS.get(name, "any plugin") for name in HOOKS}


def test_the_pictures_of_a_run_show_every_hook():
    pictures = "".join(text for _, text in snippets(ROOT / "docs" / "hooks.md", "mermaid"))
    assert set(re.findall(r"\bft_\w+", pictures)) == set(HOOKS)


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([\w./-]+)", read(ROOT / "docs" / "README.md")))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked, f"docs/README.md doesn't link {sorted(pages - linked)}"


# ---------------------------------------------------------------- snippets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_a_page_compiles(page):
    for name, text in snippets(page, "python"):
        compile(textwrap.dedent(text), f"{page.name}:{name or 'snippet'}", "exec")


METHODS_PAGE = ROOT / "docs" / "write-a-method.md"


def method_files(folder: Path) -> dict[str, str]:
    """The named files of the page about methods, written to a folder, and their text."""
    files = {name: text for name, text in snippets(METHODS_PAGE, "python") if name}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return files


def run_in_folder(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A module of Python run in a folder, as its reader would."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FT_HOST_CACHE": str(folder / "cache")},
    )


def test_the_two_first_methods_of_the_page_are_short(tmp_path):
    files = method_files(tmp_path)
    assert set(files) == {"simpo.py", "reinforce.py", "test_simpo.py", "test_simpo_trl.py"}
    statements = re.sub(r'^""".*?"""$', "", files["simpo.py"], flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in statements.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(lines) <= 25


@pytest.mark.slow
def test_the_method_for_pairs_passes_the_tests_of_the_page(tmp_path):
    method_files(tmp_path)
    done = run_in_folder(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_simpo.py", "test_simpo_trl.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_method_with_rollouts_trains_and_its_loss_is_the_formula(tmp_path):
    """A rollout is one step, so the policy is the one that sampled: its log-probs are in the checkpoint's rows."""
    from ft_host.testing import save_tiny, write_rows

    method_files(tmp_path)
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("a fox", "the dog", "apples", "step by")])
    reward = "def vowels(completions, **columns):\n    return [sum(map(text.count, 'aeiou')) for text in completions]\n"
    (tmp_path / "rewards.py").write_text(reward, encoding="utf-8")
    words = ["--model", "model", "--dataset", "prompts.jsonl", "--reward", "rewards.py:vowels", "--use-cpu"]
    words += ["--max-steps", "2", "--save-steps", "1", "--max-completion-length", "8", "--output-dir", "run"]
    words += ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2", "--progress", "quiet"]
    done = run_in_folder(tmp_path, "ft_host", "train", "./reinforce.py", *words)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in read(tmp_path / "run" / "metrics.jsonl").splitlines()]
    assert [line["step"] for line in steps] == [1, 2]
    assert {"reward", "frac_reward_zero_std", "rewards/vowels/mean"} <= steps[0].keys()
    rows = json.loads(read(tmp_path / "run" / "checkpoints" / "step-1" / "buffer-0.json"))["rows"]
    assert len(rows) == 8 and any(row["advantage"] for row in rows)
    tokens = sum(len(row["sampling_logps"]) for row in rows)
    expected = -sum(row["advantage"] * sum(row["sampling_logps"]) for row in rows) / tokens
    assert math.isclose(steps[0]["loss"], expected, rel_tol=1e-4, abs_tol=1e-6)
    samples = [json.loads(line) for line in read(tmp_path / "run" / "samples.jsonl").splitlines()]
    assert {"prompt", "completion", "rewards", "advantage"} <= samples[0].keys()


def test_the_table_of_helpers_has_every_name_of_the_api():
    from ft_host import api

    section = re.search(r"^## Helpers$(.*?)(?=^## |\Z)", read(METHODS_PAGE), re.DOTALL | re.MULTILINE)[1]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(named) == sorted(api.__all__), "docs/write-a-method.md, Helpers: a line for each name, once"


def test_the_complete_rules_are_found_installed_and_pass_their_own_tests(tmp_path):
    from ft_host.testing.distributions import make_distribution

    page = ROOT / "docs" / "diagnostics.md"
    files = {name: text for name, text in snippets(page, "python") if name}
    assert set(files) == {"house_rules.py", "test_house_rules.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    make_distribution(
        tmp_path,
        "house-rules",
        entry_points={"ft_host.diagnostics": {"house": "house_rules"}},
        requires=["ft-host>=0.4,<2"],
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_house_rules.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, "-m", "ft_host", "explain", "HOUSE001"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Answers grow and get no better" in done.stdout and "From house-rules 0.1.0" in done.stdout


# ---------------------------------------------------------------- commands


def test_there_are_commands_to_check():
    assert len(list(commands())) > 10


@pytest.mark.parametrize(("page", "command"), list(commands()), ids=lambda value: str(value)[-50:])
def test_a_command_is_one_of_ours_and_its_flags_exist(page, command):
    from ft_host.cli import COMMANDS

    name, *words = re.split(r"""\s+(?=(?:[^"]*"[^"]*")*[^"]*$)""", command)  # what is in quotes is another tool's
    if name.startswith("-"):
        assert name in ("--version", "--help")
        return
    assert name in COMMANDS, f"{page.name}: {command}"
    flags = {word.partition("=")[0].removeprefix("--no-") for word in words if word.startswith("--")}
    flags = {flag.removeprefix("--").replace("-", "_") for flag in flags}
    if name in ("train", "data"):
        fields = fields_of_method(words[0] if words else "")
        known = {*fields, *(alias for field in fields.values() for alias in field.aliases)}
        own = {"train": "dry_run resume replay restart take_over allow_changed", "data": "rows count color"}
        unknown = flags - known - {"help", *own[name].split()}
        assert not unknown, f"{page.name}: {command}: no field {', '.join(sorted(unknown))}"
        return
    help_text = subprocess.run(
        [sys.executable, "-m", "ft_host", name, "--help"], capture_output=True, text=True, check=True
    ).stdout.replace("-", "_")
    for flag in flags:
        assert f"__{flag}" in help_text, f"{page.name}: {command}: `ft-host {name}` has no --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_config_files_in_a_page_have_fields_that_exist(page):
    """Of the method that the file names, or that the page is about."""
    import yaml

    for _, text in snippets(page, "yaml"):
        given = yaml.safe_load(text)
        method = given.get("method") or next(
            (name for name in METHODS if name in (page.stem, page.parent.name[3:])), ""
        )
        assert set(given) <= {*fields_of_method(method), "method"}, text


def test_example_configs_have_fields_that_exist():
    import yaml

    for path in sorted(ROOT.glob("examples/*/*.yaml")):
        method = path.stem if path.stem in METHODS else "sft"
        assert set(yaml.safe_load(read(path))) <= {*fields_of_method(method), "method"}, path


# ---------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", read(page))
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page.relative_to(ROOT)}: {target} is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.relative_to(ROOT)}: {target}: no such heading"


# ---------------------------------------------------------------- dependencies


def test_each_dependency_is_justified():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    needed = {re.split(r"[<>=!~ \[]", requirement)[0].lower() for requirement in project["dependencies"]}
    text = read(ROOT / "docs" / "architecture.md")
    section = re.search(r"^## Dependencies$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    told = set(re.findall(r"^\| (\w[\w-]*) \|", section, re.MULTILINE))
    assert {name.lower() for name in told} == needed
