"""Writes docs/rules/ from the rules themselves: python docs/generate_rules.py"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from ft_host import registry
from ft_host.diagnostics.collect import HOST, rules_of
from ft_host.diagnostics.pages import STAGES, family_page, page
from ft_host.diagnostics.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "rules"
FAMILIES = {
    "CFG": "settings",
    "DATA": "rows and tokens, before a model is loaded",
    "PRB": "what must hold before the first update",
    "NUM": "numbers that aren't finite",
    "OPT": "loss, gradients, updates, evaluations",
    "MOE": "the balance of a mixture of experts",
    "ENG": "the sampler beside the trainer",
    "ASY": "rollouts that don't wait for training",
    "PERF": "memory and time",
    "SYS": "the machine",
    "SFT": "supervised fine-tuning",
    "DPO": "preferences",
    "ORPO": "preferences and fine-tuning in one",
    "SIMPO": "preferences without a reference",
    "KTO": "judged completions",
    "RM": "reward models",
    "GRPO": "GRPO",
    "RLOO": "RLOO",
    "ODPO": "online DPO",
    "BON": "best of n",
    "PPO": "PPO",
    "DIS": "distillation",
    "DIST": "distillation",
    "SDFT": "self-distillation from demonstrations",
    "SDPO": "self-distillation from feedback",
    "GOLD": "distillation across vocabularies",
}
# Of other letters, the heading is the letters alone.
HEAD = """\
# Rules

<!-- Written by docs/generate_rules.py from the rules themselves; change them there. -->

What a run can recognise by itself: {count} rules of the host and of the packages in this repository. `ft-host rules`
lists those that are installed, with other packages' too, `ft-host explain CODE` prints a page. Rules that several
methods have, each under a code of its own, share a page.
[diagnostics.md](../diagnostics.md) says how they are asked and what is done about what they find;
[metrics.md](../metrics.md) what the names are that they read.
"""


def owned() -> list[tuple[Rule, str]]:
    """Each rule of the host and of the packages in plugins/ that are installed, with its distribution. Raises
    SystemExit where one of them is broken."""
    names = [
        tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]
        for file in sorted(ROOT.glob("plugins/*/pyproject.toml"))
    ]
    infos = [info for info in registry.catalog() if info.kind == "diagnostics" and info.distribution in names]
    found, problems = rules_of(infos)
    if problems:
        raise SystemExit("\n".join(problems))
    labels = {registry.label(info): info.distribution for info in infos} | {HOST: HOST.split()[0]}
    return [(rule, labels[label]) for rule, label in found]


def generate() -> dict[str, str]:
    """The text of each file of docs/rules/, by its name."""
    rules = owned()
    every = [rule for rule, _ in rules]
    pages = {f"{rule.code}.md": page(rule, distribution, every) for rule, distribution in rules if not rule.family}
    shared: dict[str, list[tuple[Rule, str]]] = {}
    for rule, distribution in rules:
        if rule.family:
            shared.setdefault(f"{rule.family}.md", []).append((rule, distribution))
    pages |= {name: family_page(of, every) for name, of in shared.items()}
    return pages | {"README.md": index(rules)}


def index(rules: list[tuple[Rule, str]]) -> str:
    families: dict[str, list[tuple[Rule, str]]] = {}
    for rule, distribution in rules:
        families.setdefault(rule.code.rstrip("0123456789"), []).append((rule, distribution))
    ranks = list(FAMILIES)
    parts = [HEAD.format(count=len(rules))]
    for letters in sorted(families, key=lambda each: (ranks.index(each) if each in ranks else len(ranks), each)):
        distribution = families[letters][0][1]
        heading = f"## {letters}" + (f": {FAMILIES[letters]}" if FAMILIES.get(letters, letters) != letters else "")
        parts.append(table(f"{heading}\n\nFrom {distribution}.", [rule for rule, _ in families[letters]]))
    return "\n".join(parts)


def table(heading: str, rules: list[Rule]) -> str:
    lines = [heading, "", "| rule | trouble | severity | asked |", "| --- | --- | --- | --- |"]
    for rule in sorted(rules, key=lambda each: each.code):
        severity = rule.severity + (", error where it is grave" if rule.severe is not None else "")
        lines.append(f"| [{rule.code}]({Path(rule.page).name}) | {rule.title} | {severity} | {STAGES[rule.stage]} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Pages of rules that aren't there any more are deleted."""
    FOLDER.mkdir(exist_ok=True)
    texts = generate()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for file in FOLDER.glob("*.md"):
        if file.name not in texts:
            file.unlink()


if __name__ == "__main__":
    write()
    print(f"wrote {FOLDER}", file=sys.stderr)
