"""Which findings of a run speak: a cause mutes what follows from it, and no two ask for contrary changes of a field.
Imports no torch.

Findings are gone through from cause to consequence (`order.LEVELS`). What a finding asks for stands, unless one before
it asks for the contrary: then it loses that remedy, and is muted by the other where it was the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.order import PLACES
from ft_host.diagnostics.rule import SEVERITIES, Remedy, Rule, follows


class Muting:
    """`rules`: by code. `config`: the run's. `findings`: all of the run, whatever their state."""

    def __init__(self, rules: dict[str, Rule], config: dict[str, Any], findings: Iterable[Finding]):
        self.rules, self.config = rules, config
        self.findings = sorted(findings, key=_from_cause_to_consequence)
        self.by: dict[str, Finding] = {}  # fingerprints, and what mutes each

    def settle(self, step: int) -> list[Finding]:
        """Bring states and remedies up to date; return the open findings that are muted or graver now.

        A muted one whose cause is gone stays so until its rule finds it again (`Finding.alone_since`).
        """
        active = [finding for finding in self.findings if finding.state != "cleared"]
        graver = self._explain(active)
        self._reconcile(active)
        changed = []
        for finding in active:
            by = self.by.get(finding.fingerprint)
            if by is None:
                if finding.state == "muted" and finding.alone_since is None:
                    finding.alone_since = step
                continue
            finding.muted_by, finding.alone_since = by.code, None
            if finding.state == "open":
                finding.state, finding.step = "muted", step
                changed.append(finding)
        return changed + [finding for finding in graver if finding.state == "open"]

    # -- causes

    def _explain(self, active: list[Finding]) -> list[Finding]:
        """Find the cause of each, an open one where there are several. Return the open ones that are graver now: a
        cause is as grave as what follows from it."""
        found: dict[str, list[Finding]] = {}
        for finding in reversed(active):  # of two that name each other, the later one follows
            causes = [each for each in active if self._follows(finding, each) and not self._leads_to(each, finding)]
            if causes:
                found[finding.fingerprint], self.by[finding.fingerprint] = causes, causes[0]
        for fingerprint, causes in found.items():
            self.by[fingerprint] = min(causes, key=lambda each: each.fingerprint in self.by)
        graver = []
        for finding in active:
            head = self._head(finding)
            if head is not finding and SEVERITIES.index(finding.severity) > SEVERITIES.index(head.severity):
                head.severity = finding.severity
                graver += [] if head in graver else [head]
        return graver

    def _follows(self, finding: Finding, cause: Finding) -> bool:
        """A rule that mutes "ALL" mutes what comes after it: what came before may be its cause."""
        rule, other = self.rules[finding.code], self.rules[cause.code]
        if not follows(rule, other, finding.level, cause.level):
            return False
        return other.mutes != ("ALL",) or finding.opened >= cause.opened

    def _leads_to(self, cause: Finding, finding: Finding) -> bool:
        return finding in self._upwards(cause)

    def _head(self, finding: Finding) -> Finding:
        *_, head = self._upwards(finding)
        return head

    def _upwards(self, finding: Finding) -> Iterator[Finding]:
        """It, its cause, the cause of that, and so on."""
        yield finding
        while finding.fingerprint in self.by:
            finding = self.by[finding.fingerprint]
            yield finding

    # -- contrary advice

    def _reconcile(self, active: list[Finding]) -> None:
        """Give each finding the remedies that are contrary to none before it. Those that speak come first; an error is
        not muted by contrary advice, and a remark (`info`) gives way to a warning."""
        speaking = [each for each in active if each.fingerprint not in self.by]
        standing: list[tuple[Finding, Remedy]] = []
        for finding in speaking:
            first = _first(finding)
            against = self._against(first, standing)
            if against and finding.severity != "info" and all(_is_remark(*each) for each in against):
                for other, _ in against:
                    self.by[other.fingerprint] = finding
                return self._reconcile(active)  # what the remark stood against may stand now
            if against and finding.severity != "error":
                self.by[finding.fingerprint] = against[0][0]
            else:
                self._keep(finding, standing)
        silent = [each for each in self.findings if each.fingerprint in self.by or each.state == "cleared"]
        for finding in silent:
            self._keep(finding, standing)

    def _keep(self, finding: Finding, standing: list[tuple[Finding, Remedy]]) -> None:
        finding.remedies = [each for each in finding.offered if not self._against(each, standing)]
        standing += [(finding, each) for each in finding.remedies]

    def _against(self, remedy: Remedy | None, standing: list[tuple[Finding, Remedy]]) -> list[tuple[Finding, Remedy]]:
        return [] if remedy is None else [each for each in standing if contrary(remedy, each[1], self.config)]


def contrary(one: Remedy, other: Remedy, config: dict[str, Any]) -> bool:
    """Return whether two remedies move a field in opposite directions: a number up and down, anything else to different
    values. Changes of fields that are locked count too, since their sentences are still read."""
    first, second = one.patch | one.locked, other.patch | other.locked
    return any(_apart(config.get(name), first[name], second[name]) for name in first.keys() & second.keys())


def _apart(now: object, one: object, other: object) -> bool:
    if now in (one, other) or one == other:
        return False
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in (now, one, other)):
        return (one > now) != (other > now)
    return True


def _first(finding: Finding) -> Remedy | None:
    """The remedy that `ft-host patch` applies."""
    return next((each for each in finding.offered if each.patch or each.locked), None)


def _is_remark(finding: Finding, remedy: Remedy) -> bool:
    return finding.severity == "info" and remedy is _first(finding)


def _from_cause_to_consequence(finding: Finding) -> tuple[int, int, int, str]:
    """The order in which findings are gone through; within a level the graver one first, then the earlier one."""
    return PLACES[finding.level], -SEVERITIES.index(finding.severity), finding.opened, finding.fingerprint
