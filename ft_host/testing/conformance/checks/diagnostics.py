"""Rules: that they find what they are about and nothing else, bear odd evidence, and say what helps."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ft_host.config.fields import Mismatch, fields_of, fit
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import installed_rules, not_about, own_diagnostics, rules_of
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.resolved import effective
from ft_host.diagnostics.rule import Remedy, Rule, is_fact
from ft_host.diagnostics.suspects import FACT as SUSPECT
from ft_host.diagnostics.view import View
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.ruled import FAULTY, Ruled, odd, ruled
from ft_host.testing.rules import Told, heard
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

SHOWN = 5  # of several that are wrong
LONGEST = 700  # letters of a message
NO_NUMBER = re.compile(r"\b(nan|inf|None)\b|<[\w. ]+ at 0x|[{}]")


def of_rules(test: Callable[[Ruled], Figures | None]) -> Callable[[Subject], Figures | None]:
    """A check of the rules of a plugin. One that has none, such as a sink, isn't asked."""

    def asks(subject: Subject) -> Figures | None:
        found = ruled(subject)
        if not found.rules:
            raise DoesNotApply("the plugin has no rules")
        return test(found)

    return asks


def told_to(found: Ruled, rule: Rule, told: Told, rules: list[Rule] | None = None) -> Engine:
    return heard(rules or [rule], told, found.config_class(rule, told), found.suspects)


def cases(found: Ruled) -> Figures:
    codes = [rule.code for rule in found.rules]
    without = [code for code in codes if code not in found.cases]
    if without:
        raise NotMet(f"without a case: {', '.join(without)}")
    of_none = [code for code in found.cases if code not in codes]
    if of_none:
        raise NotMet(f"CASES has {of_none[0]}, which is no rule of the plugin{nearest(of_none[0], codes)}")
    wrong = []
    for rule, name, told in found.each():
        engine = told_to(found, rule, told, found.rules)
        raised = {each.code for each in engine.findings.values()}
        if name == FAULTY and rule.code not in raised:
            wrong.append(f"the faulty run of {rule.code} raises {', '.join(sorted(raised)) or 'nothing'}")
        elif name != FAULTY and rule.code in raised:
            wrong.append(f"the healthy run of {rule.code} raises it")
        elif name != FAULTY and (missing := unread(engine, rule)):
            wrong.append(f"the healthy run of {rule.code} doesn't tell {', '.join(missing)}, which the rule reads")
    if wrong:
        raise NotMet("; ".join(wrong[:SHOWN]))
    return {"rules": len(codes)}


def unread(engine: Engine, rule: Rule) -> list[str]:
    """What the rule needs and the run hasn't told: the rule was never asked."""
    known = engine.view.series.keys() | engine.view.facts.keys()
    return [need for need in rule.needs if not need.startswith(SUSPECT) and not fnmatch.filter(known, need)]


def odd_evidence(found: Ruled) -> Figures:
    count = 0
    for rule, name, told in found.each():
        if name != FAULTY:
            continue
        for what, changed in odd(told, rule):
            count += 1
            try:
                told_to(found, rule, changed)
            except Exception as error:
                raise NotMet(f"{rule.code} raises {type(error).__name__}: {error}, where {what}") from error
    return {"runs": count}


def messages(found: Ruled) -> None:
    wrong = []
    for rule, name, told in found.each():
        if name != FAULTY:
            continue
        for each in told_to(found, rule, told).findings.values():
            text = each.message
            odd_part = NO_NUMBER.search(text)
            if not text.endswith((".", "?")):
                wrong.append(f"{rule.code}: {text!r} isn't a sentence")
            elif odd_part:
                wrong.append(f"{rule.code}: {text!r} has {odd_part[0]!r} in the place of a number")
            elif len(text) > LONGEST:
                wrong.append(f"{rule.code}: the message has {len(text)} letters; {LONGEST} are allowed")
            wrong += [
                f"{rule.code}: a remedy says {remedy.why!r}; expected a sentence without its full stop"
                for remedy in each.remedies
                if not remedy.why.strip() or remedy.why.endswith(".")
            ]
    if wrong:
        raise NotMet("; ".join(wrong[:SHOWN]))


def remedies(found: Ruled) -> Figures:
    """Of a run that has the trouble: what a remedy changes is a field, takes the value, and makes another run."""
    wrong: list[str] = []
    seen = patched = 0
    for rule, name, told in found.each():
        if name != FAULTY:
            continue
        said = proposed(found, rule, told)
        seen += len(said)
        patched += sum(bool(each.patch) for each, _ in said)
        wrong += [f"{rule.code}: {each}" for _, faulty in said for each in faulty]
    if wrong:
        raise NotMet("; ".join(wrong[:SHOWN]))
    return {"remedies": seen, "patches": patched}


def proposed(found: Ruled, rule: Rule, told: Told) -> list[tuple[Remedy, list[str]]]:
    """The remedies of a rule when it last spoke, before the engine leaves any out, each with what is wrong with it."""
    config_class = found.config_class(rule, told)
    last: list[tuple[Remedy, list[str]]] = []

    def asked(view: View) -> list[Remedy]:
        last[:] = [(each, faults(each, view, config_class)) for each in rule.remedies(view)]
        return []

    told_to(found, replace(rule, remedies=asked), told)
    return last


def faults(remedy: Remedy, view: View, config_class: type) -> list[str]:
    """What is wrong with the patch of a remedy in a run."""
    known = fields_of(config_class)
    config = vars(view.config)
    found = []
    for name, value in remedy.patch.items():
        if name not in known:
            found.append(f"it patches {name!r}, which is no field{nearest(name, known)}")
            continue
        try:
            fit(known[name], value)
        except Mismatch as error:
            found.append(f"it sets {name} to {value!r}: {error}")
    if remedy.patch and not found and effective(config | remedy.patch, view) == effective(config, view):
        found.append(f"{remedy.why!r} ({remedy.patch}) leaves the run as it is")
    return found


def needs(subject: Subject) -> Figures:
    from ft_host.surface.metric_names import unnamed

    found = ruled(subject)
    config_class = found.configs[0]
    if not found.of_method:
        raise DoesNotApply("the rules are of no method of the package, and each method logs what it does")
    wrong = []
    for rule in found.rules:
        names = {need.removeprefix("start/").replace("*", "x") for need in rule.needs}
        metrics = [name for name in names if not is_fact(name)]
        missing = unnamed(metrics, config_class.metrics, rollouts=issubclass(config_class, RolloutConfig))
        wrong += [f"{rule.code} needs {name}" for name in missing]
    if wrong:
        raise NotMet(f"{'; '.join(wrong[:SHOWN])}, which neither the host nor {config_class.__name__}.metrics names")
    return {"rules": len(found.rules)}


def imports(subject: Subject) -> None:
    place = subject.plugin.value.partition(":")[0]
    if not subject.distribution:
        raise DoesNotApply("rules in one file are beside what needs torch")
    code = f"import sys, importlib; importlib.import_module({place!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_with_paths(), timeout=300, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"{place} imports torch"]
        raise NotMet(last[0])


def _with_paths() -> dict[str, str]:
    """Where this process imports from: a package may stand where no installer has put it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def rule_codes(subject: Subject) -> Figures:
    found = ruled(subject)
    if not found.rules:
        raise DoesNotApply("the plugin has no rules")
    codes = [rule.code for rule in found.rules]
    letters = sorted({re.sub(r"\d", "", code) for code in codes})
    if len(letters) > 1:
        raise NotMet(f"its codes begin with {', '.join(letters)}; expected the same letters for all")
    twice = {code for code in codes if codes.count(code) > 1}
    if twice:
        raise NotMet(f"two rules have the code {', '.join(sorted(twice))}")
    _, problems = rules_of([subject.plugin])
    if problems:
        raise NotMet("; ".join(problems))
    others, _ = installed_rules()
    taken = {rule.code: label for rule, label in others if not label.startswith(f"{subject.distribution} ")}
    clash = next((label for code, label in taken.items() if re.sub(r"\d", "", code) == letters[0]), None)
    if clash and subject.distribution:
        raise NotMet(f"its codes begin with {letters[0]}, and so do those of {clash}, installed here; choose others")
    for method in [each for each in subject.plugins if each.kind == "method"]:
        not_about(method, rules_of(own_diagnostics(method))[0])  # raises what is wrong with it
    return {"letters": letters[0], "rules": len(codes)}


CHECKS: list[Check] = [
    Check(
        id="rule-cases",
        title="Each rule has a run that raises it, and one that looks alike and doesn't",
        about="diagnostics",
        why="A rule that never speaks is believed to have found nothing, and one that always speaks isn't believed.",
        looks_at="`CASES` of `cases.py` beside the rules: what each of the two runs of a rule raises, and that the "
        "healthy one has what the rule reads.",
        mend="Describe two runs in a few words with `Told` and `steps` of ft_host.testing, from numbers of real runs.",
        test=of_rules(cases),
    ),
    Check(
        id="rule-odd-evidence",
        title="No rule raises, whatever a run tells",
        about="diagnostics",
        why="A rule that raises is switched off for the rest of the run, and says nothing when it would be needed.",
        looks_at="The faulty run of each rule with metrics that are NaN, infinite, 0, huge, missing, told seldom or "
        "not to the end, and without facts.",
        mend="Ask `view.get(name)` and `view.count(name)` for what isn't in `needs`; divide by nothing that can be 0; "
        "return None where it can't be told.",
        test=of_rules(odd_evidence),
    ),
    Check(
        id="rule-needs",
        title="Rules need metrics that the method logs",
        about="diagnostics",
        why="A rule that waits for a metric of another name is never asked, and nobody notices.",
        looks_at="`needs` of each rule beside `metrics` of the method's config, and the names that the host logs.",
        mend="Write the name as it is logged; add what the method logs to `metrics` of its config.",
        test=needs,
    ),
    Check(
        id="rule-messages",
        title="Messages are sentences with numbers in them",
        about="diagnostics",
        why="The message is all that most people read.",
        looks_at="What each rule says of its faulty run, and each remedy's sentence.",
        mend="Write a sentence or two that end with a full stop; use `percent`, `short` and `went` of "
        "ft_host.diagnostics for numbers.",
        test=of_rules(messages),
    ),
    Check(
        id="rule-remedies",
        title="Remedies change fields that there are, and make another run",
        about="diagnostics",
        why="`ft-host autopilot` applies patches: one without an effect costs a run and shows nothing.",
        looks_at="The patches of each rule in its faulty run: each names fields of the config with values "
        "that they take, and the run as resolved is another one.",
        mend="Compare with the run's config in `remedies`, and propose what differs; a remedy that no field makes has "
        "no patch.",
        test=of_rules(remedies),
    ),
    Check(
        id="rule-codes",
        title="Codes begin with the package's letters, which nobody else has",
        about="diagnostics",
        why="`rules_ignore`, `stop_on` and pages go by codes; of two rules with one code the second is left out.",
        looks_at="Codes of the plugin's rules, of the host's and of all installed packages; `NOT_ABOUT` names rules "
        "that there are.",
        mend="Take two to six capital letters that no other package has, and three digits.",
        test=rule_codes,
    ),
    Check(
        id="rule-imports",
        title="Rules import no torch",
        about="diagnostics",
        why="`ft-host diagnose`, `rules` and `explain` read folders on machines without a GPU, in a second.",
        looks_at="The modules that importing the rules leaves in a new process.",
        mend="Compute with the View's own functions; import what needs torch in the method.",
        test=imports,
    ),
]
