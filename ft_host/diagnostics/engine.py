"""Applies rules to a run's facts and metrics as they come: the same during a run and on its folder. Imports
no torch.

    facts (`record_facts`) and lines of metrics (`add_metrics`)  ->  the test of each rule that reads them
    ->  a window of answers  ->  findings that open, get worse, are cleared, or are muted by their cause

Both methods return the findings that changed. Exceptions that are known to be harmless are in the rules' own tests.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from ft_host.diagnostics.ancestry import untried
from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.muting import Muting
from ft_host.diagnostics.remedies import usable
from ft_host.diagnostics.resolved import Accepts
from ft_host.diagnostics.rule import SEVERITIES, Rule
from ft_host.diagnostics.suspects import NOTES, Function, Suspects, with_suspects
from ft_host.diagnostics.view import View
from ft_host.diagnostics.watched import Watched
from ft_host.rundir.lines import number_of
from ft_host.rundir.series import Series

COOLDOWN = 100  # steps after a finding was cleared in which it isn't reported again, or a cause stays that isn't seen


class Engine:
    """`rules`: each with its distribution. `config`: the run's, as a dict. `strict`: errors of rules are raised, for
    tests. `accepts`: whether the run would take a patch of its config (`resolved.acceptance`).
    """

    def __init__(
        self,
        rules: Iterable[tuple[Rule, str]],
        config: dict[str, Any],
        strict: bool = False,
        not_about: dict[str, str] | None = None,
        suspects: Sequence[Function] = (),
        accepts: Accepts | None = None,
    ):
        self.config, self.strict, self.accepts = config, strict, accepts
        given = list(rules)
        said = not_about or {}
        self.not_about = {rule.code: said[rule.code] for rule, _ in given if rule.code in said}
        self.failed: dict[str, str] = {}  # codes of rules that raised, with the error
        self.view = View(config)
        self.suspects = Suspects(suspects, strict)
        self.rules = [each for each in given if each[0].code not in self.not_about]
        self._by_code = {rule.code: rule for rule, _ in self.rules}
        self.findings: dict[str, Finding] = {}  # by fingerprint
        self.told: dict[str, int] = {}  # the step after which each fact was last recorded
        starred = [
            (rule, plugin) for rule, plugin in self.rules if rule.of_facts and any("*" in name for name in rule.needs)
        ]
        self._of_facts = [
            Watched(rule, plugin, None)
            for rule, plugin in self.rules
            if rule.of_facts and (rule, plugin) not in starred
        ]
        self._starred = starred  # of facts: one for each matching fact, once it is recorded
        self._waiting = [(rule, plugin) for rule, plugin in self.rules if not rule.of_facts]
        self._watched: dict[tuple[str, str | None], Watched] = {}
        self._names: set[str] = set()  # names of metrics seen so far
        self._asked: set[str] = set()  # codes of rules that have given an answer
        self._moved = False  # whether a finding has come, gone or changed since they were last settled

    # -- what a run tells

    def record_facts(self, facts: dict[str, Any]) -> list[Finding]:
        """Record facts, new or changed. Tests the rules that read only facts, including one of these.

        Facts known already, as in a resumed run, report nothing.
        """
        new = [name for name, value in facts.items() if name not in self.view.facts or self.view.facts[name] != value]
        if not new:
            return []
        self.view.facts.update(facts)
        facts = facts | self.suspects.look_at(self.view)
        if self.suspects.failed and NOTES in self._by_code:
            self.failed.setdefault(NOTES, str(self.suspects.failed))
        self.told |= dict.fromkeys(new, self.view.step)
        for rule, plugin in self._starred:
            known = {watched.cause for watched in self._of_facts if watched.rule is rule}
            causes = self._causes(rule, self.view.facts.keys())
            self._of_facts += [Watched(rule, plugin, cause) for cause in causes if cause not in known]
        changed = []
        for watched in self._of_facts:
            ready = any(name in facts for name in watched.facts) and all(
                name in self.view.facts for name in watched.facts
            )
            if ready and watched.rule.stage != "after" and self._is_about(watched.rule):
                changed += self._ask(watched)
        return self._muted(changed)

    def add_metrics(self, entry: dict[str, Any]) -> list[Finding]:
        """Add a line of metrics.jsonl. Tests the rules whose metrics it contains."""
        evaluation = entry["kind"] == "eval"
        numbers = {}
        for name, value in entry.items():
            number = number_of(value)
            if number is not None and name not in ("kind", "step"):
                numbers[name] = number
        view = self.view
        view.step, view.entry = int(entry["step"]), numbers
        self._meet(numbers)
        for name, number in numbers.items():
            view.series.setdefault(name, Series()).put(view.step, number)
        changed = []
        if not evaluation and "start/loss" not in view.facts and view.step == 1:
            changed += self.record_facts({f"start/{name}": value for name, value in numbers.items()})
            view.step, view.entry = int(entry["step"]), numbers
        for watched in self._watched.values():
            if watched.rule.stage == "after" or watched.rule.of_evaluations != evaluation:
                continue
            here = all(
                name in numbers or (evaluation and not name.startswith("eval_") and name in view.series)
                for name in watched.metrics
            )
            if here and all(name in view.facts for name in watched.facts) and self._is_about(watched.rule):
                changed += self._ask(watched)
        return self._muted(changed)

    def finish(self, whole: bool = True) -> list[Finding]:
        """The run has ended. Tests the rules for its end, unless it was stopped and can be resumed; returns all
        findings.
        """
        for watched in [*self._of_facts, *self._watched.values()] if whole else ():
            known = all(name in self.view.facts for name in watched.facts)
            known = known and all(name in self.view.series for name in watched.metrics)
            if watched.rule.stage == "after" and known and self._is_about(watched.rule):
                self.view.entry = {}
                self._ask(watched)
        self._muted([])
        for finding in self.findings.values():
            finding.step = self.view.step
        return list(self.findings.values())

    def skipped(self) -> dict[str, str]:
        """Return the rules that gave no answer, by code, with the reason."""
        out = dict(self.not_about)
        for rule, _ in self.rules:
            if rule.code in self.failed:
                out[rule.code] = f"the rule failed: {self.failed[rule.code]}"
                continue
            if rule.code in self._asked:
                continue
            lacking = [name for name in rule.fields if name not in self.config]
            if lacking:
                out[rule.code] = f"about runs with {', '.join(lacking)}"
                continue
            seen = self._names | self.view.facts.keys()
            absent = [name for name in rule.needs if not fnmatch.filter(seen, name)]
            if absent:
                out[rule.code] = f"{', '.join(absent)} {'was' if len(absent) == 1 else 'were'} not produced"
            else:
                out[rule.code] = "too little to judge yet"
        return out

    # -- within

    def _is_about(self, rule: Rule) -> bool:
        return all(name in self.config for name in rule.fields)

    def _meet(self, numbers: dict[str, float]) -> None:
        """Instantiate waiting rules for metrics seen for the first time, one for each name that matches a star."""
        new = numbers.keys() - self._names
        if not new:
            return
        self._names |= new
        for rule, plugin in self._waiting:
            for cause in self._causes(rule, self._names):
                key = (rule.code, cause)
                if key not in self._watched:
                    self._watched[key] = Watched(rule, plugin, cause)

    def _causes(self, rule: Rule, names: Iterable[str]) -> list[str | None]:
        starred = [name for name in rule.needs if "*" in name]
        if not starred:
            return [None]
        before, _, after = starred[0].partition("*")
        names_found = fnmatch.filter(names, starred[0])
        return sorted(name[len(before) : len(name) - len(after)] for name in names_found)

    def _ask(self, watched: Watched) -> list[Finding]:
        """Return the findings that its answer changed. A rule that raises is switched off: it must not end a run of
        hours.
        """
        code = watched.rule.code
        if code in self.failed:
            return []
        if self.strict:
            return self._answered(watched)
        try:
            return self._answered(watched)
        except Exception as error:  # any error of a plugin's rule; `failed` and `skipped` report it
            self.failed[code] = f"{type(error).__name__}: {error}"
            return []

    def _answered(self, watched: Watched) -> list[Finding]:
        rule, view = watched.rule, self.view
        view.cause = watched.cause
        bad = rule.test(view)
        if bad is None:
            return []
        self._asked.add(rule.code)
        once = rule.of_facts or rule.stage == "after"
        if once:
            watched.answers.clear()
            watched.bad = 0
        watched.answer(bool(bad))
        view.window, view.share = len(watched.answers), watched.share
        finding = watched.finding
        # On a bad answer: what the message says of now, it says of a state that the test has found bad.
        opens = bool(bad) and (once or (len(watched.answers) >= rule.least and watched.share >= rule.share))
        if finding is not None and finding.state != "cleared":
            return self._go_on(watched, finding, bool(bad))
        if not opens:
            return []
        recent = watched.cleared_at is not None and view.step - watched.cleared_at < COOLDOWN
        again = finding is not None
        watched.finding = opened = self._make(watched)
        if again:
            opened.first_step, opened.count = finding.first_step, finding.count + 1
        self.findings[opened.fingerprint], self._moved = opened, True
        return [] if recent else [opened]

    def _make(self, watched: Watched) -> Finding:
        rule, view = watched.rule, self.view
        bad = [index for index, answer in enumerate(watched.answers) if answer]
        ago = len(watched.answers) - 1 - (bad[0] if bad else 0)
        view.read.clear()
        told = rule.message(view)
        read = list(view.read)
        behind = self.suspects.behind(rule.symptom_of(view), view)
        message, remedies = with_suspects(told, rule.remedies(view), behind)
        remedies, tried = untried(usable(remedies, self.config, view, self.accepts), view, rule.code)
        return Finding(
            code=rule.code,
            title=rule.title,
            severity=rule.severity_of(view),
            stage=rule.stage,
            level=rule.level_of(view),
            message=message + tried,
            why=rule.why,
            remedies=remedies,
            evidence=watched.evidence(view, read),
            cause=watched.cause,
            page=rule.page,
            plugin=watched.plugin,
            step=view.step,
            opened=view.step,
            first_step=watched.step_before(view, ago),
            last_step=view.step,
            count=watched.bad,
            window=view.window,
            share=view.share,
        )

    def _go_on(self, watched: Watched, finding: Finding, bad: bool) -> list[Finding]:
        """Update a finding: still bad, worse, cleared, or on its own since its cause has passed."""
        rule, view = watched.rule, self.view
        if bad:
            finding.last_step, finding.count = view.step, finding.count + 1
        finding.share, finding.window = view.share, view.window
        passed = watched.share < rule.share / 2 or (len(watched.answers) == 1 and not bad)
        if passed and not self._explains(finding):
            finding.state, finding.step = "cleared", view.step
            watched.cleared_at, self._moved = view.step, True
            return [finding]
        if bad and (finding.alone or SEVERITIES.index(rule.severity_of(view)) > SEVERITIES.index(finding.severity)):
            updated = self._make(watched)
            updated.first_step, updated.count, updated.opened = finding.first_step, finding.count, finding.opened
            if not finding.alone:
                updated.state, updated.muted_by = finding.state, finding.muted_by
            watched.finding = self.findings[updated.fingerprint] = updated
            self._moved = True
            return [updated]
        return []

    def _explains(self, finding: Finding) -> bool:
        """Whether what follows from it is still there: then it hasn't passed, though it isn't seen any more; for so
        long that what is left may have reasons of its own."""
        left = any(each.state == "muted" and each.muted_by == finding.code for each in self.findings.values())
        return left and self.view.step - finding.last_step < COOLDOWN

    def _muted(self, changed: list[Finding]) -> list[Finding]:
        """Return `changed`, and the findings that are muted or graver now, of which any may have been found before."""
        if not self._moved:
            return changed
        self._moved = False
        also = Muting(self._by_code, self.config, self.findings.values()).settle(self.view.step)
        return changed + [finding for finding in also if all(finding is not each for each in changed)]
