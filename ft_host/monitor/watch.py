"""The rule engine in a run: it reports findings as they are made, and says when the run must stop for one."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import TYPE_CHECKING, Any

from ft_host.config.declared import declared_facts
from ft_host.diagnostics.ancestry import ancestors
from ft_host.diagnostics.collect import Owned, all_rules, check_codes, not_about, selected, suspects_of
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.finding import Finding, at_least
from ft_host.diagnostics.replay import feed
from ft_host.diagnostics.resolved import acceptance
from ft_host.diagnostics.rule import chosen
from ft_host.diagnostics.suspects import FACT
from ft_host.errors import StoppedByFinding
from ft_host.hooks import hookimpl
from ft_host.util.console import mode, tell, tell_finding
from ft_host.util.jsonl import from_words, json_line

if TYPE_CHECKING:
    from pluggy import PluginManager

    from ft_host.config import RunConfig
    from ft_host.registry import PluginInfo
    from ft_host.run import Run
    from ft_host.rundir.folder import RunFolder


def is_main() -> bool:
    """Return whether this is the main process, also before accelerate is set up."""
    return os.environ.get("RANK", "0") == "0"


class Monitor:
    """The diagnostics of one run, on its main process; on other processes it does nothing. A sink of the run's metrics
    (`ft_log`)."""

    def __init__(self, plugins: PluginManager, infos: list[PluginInfo], config: RunConfig):
        owned = all_rules(plugins, infos)
        check_codes(owned, config)
        self.config = config
        self.as_dict = dataclasses.asdict(config)
        self.rules: list[Owned] = selected(owned, config.rules_select, config.rules_ignore)
        method = next(info for info in infos if info.kind == "method")
        self.engine = Engine(
            self.rules,
            self.as_dict,
            not_about=not_about(method, owned),
            suspects=suspects_of(type(config), infos, config.backend),
            accepts=acceptance(config),
        )
        self.main = is_main()
        self.lock = threading.RLock()
        self.run: Run | None = None
        self.unwritten: list[Finding] = []  # findings from before the folder existed
        self.lines: dict[str, str] = {}  # of a resumed run: the last line of each finding, by fingerprint
        self.broken: set[str] = set()  # codes of rules that failed and were reported
        self.reason: Finding | None = None  # the finding that stops the run
        self.record_facts(declared_facts(type(config)) | ancestors(config.parent_run, self.as_dict))

    # -- from the host

    def record_facts(self, facts: dict[str, Any], quiet: bool = False) -> None:
        """Record facts of the run, which run.json keeps. `quiet`: what is found is printed for programs only."""
        if not self.main:
            return
        with self.lock:  # the stall detector's thread records facts too
            self._tell(self.engine.record_facts(facts), quiet)
        if self.run is not None:
            self.run.folder.update(facts=self.facts, facts_told=self.engine.told)

    @hookimpl(trylast=True)
    def ft_start(self, run, resumed_from):
        """Called when the run has a folder.

        For a resumed run, what its metrics show was reported before, and doesn't stop the run a second time. Runs last,
        so that sinks know the run before they get its first findings.
        """
        self.run = run
        lines = [] if resumed_from is None else run.folder.read("metrics.jsonl")
        if lines:
            steps_of_facts = run.folder.manifest.get("facts_told") or {}
            kept = {
                name: value
                for name, value in from_words(run.folder.manifest.get("facts") or {}).items()
                if not name.startswith("watch/") and steps_of_facts.get(name, 0) <= run.step
            }
            feed(self.engine, kept, steps_of_facts, lines)
        written = {finding["fingerprint"]: finding for finding in run.folder.read("findings.jsonl")}
        self.lines |= {fingerprint: json_line(finding) for fingerprint, finding in written.items()}
        # and of a run that was killed between a line of metrics and that of its finding
        lost = [each for each in self.engine.findings.values() if each.state == "open" and each not in self.unwritten]
        for finding in [*self.unwritten, *lost]:
            if finding.fingerprint not in written:
                self._write(finding)
        self.unwritten.clear()
        codes = {rule.code for rule, _ in self.rules}
        for (
            fingerprint,
            finding,
        ) in written.items():  # of what ended the run, such as a loss that is NaN, and is tried again
            if finding["state"] == "open" and finding["code"] in codes and fingerprint not in self.engine.findings:
                run.folder.append("findings.jsonl", finding | {"state": "cleared", "step": run.step})
        run.folder.update(facts=self.facts, facts_told=self.engine.told)

    @hookimpl
    def ft_log(self, entry, run):
        with self.lock:
            self._tell(self.engine.add_metrics(entry))

    def flush(self, folder: RunFolder) -> None:
        """The run has failed before it began: write its findings to its folder."""
        for finding in self.unwritten:
            folder.append("findings.jsonl", finding.as_dict(self.as_dict))
        folder.update(facts=self.facts, facts_told=self.engine.told)

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the run has recorded, without what the engine makes of its config."""
        return {name: value for name, value in self.engine.view.facts.items() if not name.startswith(FACT)}

    def finish(self, whole: bool = True) -> list[dict[str, Any]]:
        """Ask the rules about the whole run, unless it was stopped, and write every finding as it ended; return them as
        in findings.jsonl."""
        if not self.main:
            return []
        before = set(self.engine.findings)
        findings = self.engine.finish(whole)
        self._tell([each for each in findings if each.fingerprint not in before])
        for finding in findings:
            if finding.fingerprint in before:
                self._write(finding)
        self.run.folder.update(
            facts=self.facts,
            facts_told=self.engine.told,
            diagnostics={"rules": len(self.rules), "skipped": self.engine.skipped()},
        )
        return [finding.as_dict(self.as_dict) for finding in findings]

    # -- whether to go on

    def check(self) -> None:
        """Raise StoppedByFinding if `stop_on` asks for it."""
        if self.reason is not None:
            raise StoppedByFinding(
                f"stopped at step {self.engine.view.step} for {self.reason.fingerprint}, as stop_on requires: "
                f"{self.reason.message}"
            )

    def stops(self) -> str | None:
        """Return what `check` would raise, for the ranks to agree on."""
        try:
            self.check()
        except StoppedByFinding as stopped:
            return str(stopped)
        return None

    def fails(self) -> bool:
        """Return whether an open finding is one of those that `fail_on` covers."""
        limit = self.config.fail_on
        return limit is not None and any(
            finding.state == "open" and at_least(finding.severity, limit) for finding in self.engine.findings.values()
        )

    # -- telling

    def _tell(self, changed: list[Finding], quiet: bool = False) -> None:
        for code, what in self.engine.failed.items():
            if code not in self.broken:
                self.broken.add(code)
                plugin = next(label for rule, label in self.rules if rule.code == code)
                text = f"rule {code} of {plugin} failed and is switched off for this run: {what}"
                tell(text, "warning", self.config.progress) if self.run is None else self.run.say(text, "warning")
        for finding in changed:
            if finding.state == "open" and (not quiet or mode(self.config.progress) == "json"):
                tell_finding(finding.line(), finding.as_dict(self.as_dict), finding.severity, self.config.progress)
            if finding.state == "open":
                if self.reason is None and self._is_reason(finding):
                    self.reason = finding
            elif finding.state == "cleared":
                tell(f"{finding.code} is cleared: {finding.title}", "info", self.config.progress)
            self._write(finding)

    def _is_reason(self, finding: Finding) -> bool:
        codes = self.config.stop_on
        patchable = (
            "patchable" in codes and finding.severity != "info" and any(remedy.patch for remedy in finding.remedies)
        )
        return patchable or chosen(finding.code, [code for code in codes if code != "patchable"])

    def _write(self, finding: Finding) -> None:
        if self.run is None:
            self.unwritten.append(finding)
            return
        entry = finding.as_dict(self.as_dict)
        if self.lines.get(finding.fingerprint) != json_line(entry):  # a run that was resumed at its end has it already
            self.run.folder.append("findings.jsonl", entry)
        self.run.plugins.hook.ft_finding(finding=finding, run=self.run)
