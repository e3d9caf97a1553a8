"""The page of a rule: `ft-host explain CODE`, docs/rules/CODE.md, and the help in SARIF. Imports no torch."""

from __future__ import annotations

import re

from ft_host.diagnostics.order import LEVELS
from ft_host.diagnostics.rule import Rule, chosen, follows, is_fact
from ft_host.diagnostics.view import percent

STAGES = {
    "before": "before a model is loaded",
    "probe": "before the first update",
    "train": "while training",
    "after": "at the end of the run",
}


def page(rule: Rule, plugin: str, others: list[Rule]) -> str:
    """Return the page in Markdown. `others`: all rules, some of which may mute this one."""
    muting = [each.code for each in others if _explains(each, rule)]
    parts = [
        f"# {rule.code}: {rule.title}",
        f"{severity(rule)}. From {plugin}, asked {STAGES[rule.stage]}.",
        *(_section(heading, text) for heading, text in _texts(rule)),
        _section("What it reads", f"{_capital(' and '.join(_reads(rule)))}.{_about(rule)}"),
        _section("Level", _level(rule)),
        _section("What it mutes", _muted(rule, others)),
        _section("What mutes it", f"{', '.join(muting)}, where open." if muting else ""),
        _section("Source", rule.source),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def family_page(rules: list[tuple[Rule, str]], others: list[Rule]) -> str:
    """The page of rules that are one, each over the names of a method: what they share once, and a table of what they
    don't. Each with the package that it is from."""
    rules = sorted(rules, key=lambda each: each[0].code)
    first = rules[0][0]
    lines = ["| rule | from | reads | mutes | muted by |", "| --- | --- | --- | --- | --- |"]
    for rule, plugin in rules:
        muting = [each.code for each in others if _explains(each, rule)]
        muted = [each.code for each in others if _explains(rule, each)]
        cells = (rule.code, plugin, "; ".join(_reads(rule)), ", ".join(muted), ", ".join(muting))
        lines.append(f"| {' | '.join(cells)} |")
    headings = [heading for heading, _ in _texts(first)]
    texts = [{rule.code: dict(_texts(rule))[heading] for rule, _ in rules} for heading in headings]
    parts = [
        f"# {first.title}",
        f"{_differing({rule.code: severity(rule) for rule, _ in rules})} Asked {STAGES[first.stage]}.",
        "\n".join(lines),
        *(_section(heading, _differing(each)) for heading, each in zip(headings, texts, strict=True)),
        _section("Level", _level(first)),
        _section("Source", _differing({rule.code: rule.source for rule, _ in rules})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def severity(rule: Rule) -> str:
    said = rule.severity.capitalize() + ("" if rule.notable is None else ", warning where it is more than that")
    return said + ("" if rule.severe is None else ", error where it is grave")


def _texts(rule: Rule) -> list[tuple[str, str]]:
    when = f"{rule.when} {window(rule)}".strip()
    return [("When", when), ("Why", rule.why), ("What to do", rule.remedy)]


def _reads(rule: Rule) -> list[str]:
    facts = [f"`{name}`" for name in rule.needs if is_fact(name)]
    metrics = [f"`{name}`" for name in rule.needs if not is_fact(name)]
    found = [f"facts {', '.join(facts)}"] if facts else []
    return found + ([f"metrics {', '.join(metrics)}"] if metrics else [])


def _differing(texts: dict[str, str]) -> str:
    """What all have, once; else each text, with the codes that have it."""
    codes: dict[str, list[str]] = {}
    for code, text in texts.items():
        codes.setdefault(text if text.endswith(".") else f"{text}.", []).append(code)
    if len(codes) == 1:
        return next(iter(codes))
    return "\n\n".join(f"{', '.join(which)}: {text}" for text, which in codes.items())


def window(rule: Rule) -> str:
    """Say how many of the answers must be bad; empty for a rule that is tested once."""
    if rule.of_facts or rule.stage == "after":
        return ""
    what = "evaluations" if rule.of_evaluations else "steps that log what it reads"
    if rule.window == 1:
        return f"One of the {what} is enough."
    if rule.least == 1:
        return f"It opens once {percent(rule.share)} of the last {rule.window} {what} are so."
    return f"It opens once {percent(rule.share)} of the last {rule.window} {what} are so, {rule.least} at the least."


def terminal_text(markdown: str) -> str:
    """For a terminal: headings as words in capitals, no marks around names."""
    text = re.sub(r"^# (.*)$", r"\1", markdown, flags=re.MULTILINE)
    text = re.sub(r"^## (.*)$\n\n", lambda found: f"{found[1].upper()}\n", text, flags=re.MULTILINE)
    return text.replace("`", "")


def _muted(rule: Rule, others: list[Rule]) -> str:
    """What it names and the rules that name it as their cause, as far as the order of levels lets them follow."""
    if rule.mutes == ("ALL",):
        return "Everything that is found after it: it may follow from this."
    muted = [each.code for each in others if _explains(rule, each)]
    return f"{', '.join(muted)}: what they find follows from this." if muted else ""


def _explains(cause: Rule, rule: Rule) -> bool:
    """Whether `cause` mutes `rule` in a run that has both: rules of two methods only meet where one names the other."""
    from ft_host.diagnostics.rules import RULES

    if not follows(rule, cause):
        return False
    host, letters = {_letters(each) for each in RULES}, {_letters(cause), _letters(rule)}
    named = chosen(rule.code, list(cause.mutes)) or chosen(cause.code, list(rule.follows_from))
    return named or len(letters) == 1 or bool(letters & host)


def _letters(rule: Rule) -> str:
    return rule.code.rstrip("0123456789")


def _level(rule: Rule) -> str:
    """Where it stands in the order of causes and consequences."""
    said = [f"`{level}`: {LEVELS[level]}" for level in rule.levels]
    return ". In cases that follow from something else, or are slight: ".join(said)


def _about(rule: Rule) -> str:
    fields = [f"`{name}`" for name in rule.fields]
    return f" It is about runs with the fields {', '.join(fields)}." if fields else ""


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text if text.endswith('.') else text + '.'}" if text else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
