"""Which findings of a run speak: a cause mutes what follows from it, and no two ask for contrary changes of a field.
Imports no torch.

Findings are gone through from cause to consequence (`order.LEVELS`). What a finding asks for stands, unless one before
it asks for the contrary: then it loses that remedy, and is muted by the other where it was the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.order import PLACES
from ft_host.diagnostics.rule import SEVERITIES, Remedy, Rule, follows


class Asked(NamedTuple):
    """A remedy that stands; `first`: it is the one that `ft-host patch` applies."""

    finding: Finding
    remedy: Remedy
    first: bool


class Muting:
    """`rules`: by code. `config`: the run's. `findings`: all of the run, whatever their state."""

    def __init__(self, rules: dict[str, Rule], config: dict[str, Any], findings: Iterable[Finding]):
        self.rules, self.config = rules, config
        self.findings = sorted(findings, key=_from_cause_to_consequence)
        self.by: dict[str, Finding] = {}  # fingerprints, and what mutes each
        self.dropped: list[Remedy] = []  # that gave way to a first remedy of a finding after it

    def settle(self, step: int) -> list[Finding]:
        """Bring states and remedies up to date; return the open findings that are muted or graver now.

        A muted one whose cause is gone stays so until its rule finds it again (`Finding.alone`).
        """
        active = [finding for finding in self.findings if finding.state != "cleared"]
        graver = self._explain(active)
        self._reconcile(active)
        changed = []
        for finding in active:
            by = self.by.get(finding.fingerprint)
            if by is None:
                finding.alone = finding.state == "muted"
                continue
            finding.muted_by, finding.alone = by.code, False
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
        """Give each finding the remedies that are contrary to none before it. Those that speak come first.

        Three things outweigh the order. A remark (`info`) gives way to a warning. What a finding asks for first
        outweighs what one before it asks for besides; not if all it says is that nothing is learnt. An error is not
        muted by advice.
        """
        standing: list[Asked] = []
        for finding in [each for each in active if each.fingerprint not in self.by]:
            against = self._against(_first(finding), standing)
            remarks = [each for each in against if each.finding.severity == "info" and each.first]
            if against and len(remarks) == len(against) and finding.severity != "info":
                self.by |= {each.finding.fingerprint: finding for each in remarks}
                return self._reconcile(active)  # what gave way to the remark may stand now
            if against and not any(each.first for each in against) and PLACES[finding.level] < PLACES["standstill"]:
                self.dropped += [each.remedy for each in against]
                return self._reconcile(active)
            if against and finding.severity != "error":
                self.by[finding.fingerprint] = against[0].finding
            else:
                self._keep(finding, standing)
        for finding in self.findings:
            if finding.fingerprint in self.by or finding.state == "cleared":
                self._keep(finding, standing)

    def _keep(self, finding: Finding, standing: list[Asked]) -> None:
        left = [each for each in finding.offered if all(each is not other for other in self.dropped)]
        finding.remedies = [each for each in left if not self._against(each, standing)]
        standing += [Asked(finding, each, each is _first(finding)) for each in finding.remedies]

    def _against(self, remedy: Remedy | None, standing: list[Asked]) -> list[Asked]:
        return [] if remedy is None else [each for each in standing if contrary(remedy, each.remedy, self.config)]


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


def _from_cause_to_consequence(finding: Finding) -> tuple[int, int, int, str]:
    """The order in which findings are gone through; within a level the graver one first, then the earlier one."""
    return PLACES[finding.level], -SEVERITIES.index(finding.severity), finding.opened, finding.fingerprint
