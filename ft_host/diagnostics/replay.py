"""Applies the rules to a run's folder, for the findings that the run had or would have had. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.declared import declared_facts
from ft_host.config.fields import fields_of
from ft_host.diagnostics.collect import (
    HOST,
    Owned,
    check_chosen,
    not_about,
    own_diagnostics,
    rules_of,
    selected,
    suspects_of,
)
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.muting import contrary
from ft_host.diagnostics.resolved import Accepts, acceptance
from ft_host.diagnostics.rule import SEVERITIES, Remedy, chosen, is_fact
from ft_host.diagnostics.suspects import Function
from ft_host.errors import PluginBroken, PluginNotFound, UsageError
from ft_host.registry.local import is_file
from ft_host.rundir.lines import read_json_lines, usable
from ft_host.rundir.record import KILLED, RunRecord, read_run

PARTIAL = ("interrupted", "refused", KILLED)  # runs whose end says nothing of the whole


@dataclass(kw_only=True)
class Diagnosis:
    """The findings of a run's folder. `findings`: as in findings.jsonl, in their final state, worst first."""

    record: RunRecord
    rules: list[Owned]
    findings: list[dict[str, Any]]
    skipped: dict[str, str]  # rules that gave no answer, by code, with the reason
    notes: list[str] = field(default_factory=list)  # what could not be tested
    recorded: list[str] = field(default_factory=list)  # fingerprints of findings that are only in findings.jsonl


def feed(engine: Engine, facts: dict[str, Any], told: dict[str, int], lines: Iterable[dict[str, Any]]) -> None:
    """Feed an engine a run's facts and metrics, in their original order. `told`: the steps after which facts were
    recorded.
    """
    waiting: dict[int, dict[str, Any]] = {}
    for name, value in facts.items():
        waiting.setdefault(told.get(name, 0), {})[name] = value

    def tell(until: float) -> None:
        for step in sorted(step for step in waiting if step < until):
            new = {name: value for name, value in waiting.pop(step).items() if name not in engine.view.facts}
            if new:
                engine.view.step = step
                engine.record_facts(new)

    for line in lines:
        tell(line["step"])
        engine.add_metrics(line)
    tell(float("inf"))


def diagnose(folder: str | Path, select: list[str] | None = None, ignore: list[str] | None = None) -> Diagnosis:
    """Apply the rules of a run to its folder. `select` and `ignore` replace those of its config.

    Raises UsageError where the folder isn't a run's, or for an unknown code. A missing or broken plugin is reported in
    `notes`: all other rules are applied.
    """
    record = read_run(folder)
    config = dataclasses.asdict(RunConfig()) | record.config  # runs of older hosts lack fields
    select = config["rules_select"] if select is None else select
    ignore = config["rules_ignore"] if ignore is None else ignore
    infos, notes, method = _plugins(record)
    owned, problems = rules_of(infos)
    notes += problems
    check_chosen(owned, "--select", select)
    check_chosen(owned, "--ignore", ignore)
    rules = selected(owned, select, ignore)

    declared: dict[str, str] = {}  # for runs of hosts that didn't record it
    left_out: dict[str, str] = {}
    suspects: list[Function] = []
    accepts: Accepts | None = None
    if method is not None:
        try:
            config_class = registry.config_class(method)
            declared = declared_facts(config_class)
            known = fields_of(config_class)
            accepts = acceptance(config_class(**{name: value for name, value in config.items() if name in known}))
            left_out = not_about(method, owned)
            suspects = suspects_of(config_class, infos, config["backend"])
        except (PluginBroken, PluginNotFound, UsageError) as error:
            notes.append(f"what the method {record.method} says of itself can't be asked: {_first_line(error)}")
    engine = Engine(rules, config, not_about=left_out, suspects=suspects, accepts=accepts)
    lines, problems = read_json_lines(record.folder / "metrics.jsonl")
    notes += problems
    feed(engine, declared | record.facts, record.facts_told, usable(lines))
    running = record.status == "running"
    final = list(engine.findings.values()) if running else engine.finish(whole=record.status not in PARTIAL)
    owners = {rule.code: label for rule, label in rules}
    notes += [f"rule {code} of {owners[code]} failed: {what}" for code, what in engine.failed.items()]
    findings = {finding.fingerprint: finding.as_dict(config) for finding in final}
    recorded = {
        fingerprint: _without_contrary(finding, final, config)
        for fingerprint, finding in _only_recorded(record, findings, owned, select, ignore).items()
    }
    findings |= recorded
    return Diagnosis(
        record=record,
        rules=rules,
        findings=sorted(findings.values(), key=_worst_first),
        skipped=engine.skipped(),
        notes=notes,
        recorded=list(recorded),
    )


def _worst_first(finding: dict[str, Any]) -> tuple[bool, int, int]:
    return finding["state"] != "open", -SEVERITIES.index(finding["severity"]), finding["first_step"]


def _only_recorded(
    record: RunRecord, findings: dict[str, Any], owned: list[Owned], select: list[str], ignore: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the run's findings that the folder can't reproduce: by missing rules, or of facts that were replaced
    since.
    """
    rules = {rule.code: rule for rule, _ in owned}
    out = {}
    for fingerprint, finding in record.findings.items():
        code = finding["code"]
        replayed = code in rules and not any(is_fact(name) for name in rules[code].needs)
        wanted = chosen(code, select or ["ALL"]) and not chosen(code, ignore)
        if fingerprint not in findings and not replayed and wanted:
            out[fingerprint] = finding
    return out


def _without_contrary(finding: dict[str, Any], others: list[Finding], config: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded finding without the remedies that are contrary to one of what is found now."""
    now = [remedy for each in others for remedy in each.remedies]
    kept = []
    for told in finding["remedies"]:
        patch = {change["path"].removeprefix("/"): change["value"] for change in told["patch"]}
        if not any(contrary(Remedy(why=told["why"], patch=patch), each, config) for each in now):
            kept.append(told | {"rank": len(kept) + 1})
    return finding | {"remedies": kept}


def _plugins(record: RunRecord) -> tuple[list[registry.PluginInfo], list[str], registry.PluginInfo | None]:
    """Return the installed plugins with the run's rules, notes about them, and the method's declarations.

    The declarations are for runs of hosts that didn't record them.
    """
    method = None
    infos: list[registry.PluginInfo] = []
    notes: list[str] = []
    try:
        method = _found("method", record.reference, record)
    except (PluginNotFound, PluginBroken, UsageError) as error:
        notes.append(f"the method {record.method} can't be loaded, so its rules are left out: {_first_line(error)}")
    else:
        infos += own_diagnostics(method)
        if not method.distribution and "ft_rules" in Path(method.location).read_text(encoding="utf-8"):
            infos.append(method)
    for plugin in record.plugins:
        if plugin.get("kind") != "diagnostics":
            continue
        name, version = f"{plugin['distribution']}:{plugin['name']}", plugin["version"]
        if not plugin["distribution"]:
            name = plugin.get("location", name)  # a file
        try:
            info = _found("diagnostics", name, record)
        except (PluginNotFound, PluginBroken, UsageError) as error:
            notes.append(f"the diagnostics {name} can't be loaded, so their rules are left out: {_first_line(error)}")
            continue
        if info not in infos:
            infos.append(info)
        if info.version != version:
            notes.append(
                f"{plugin['distribution']} was {version} in the run, its rules here are those of {info.version}"
            )
    host = record.environment.get("ft-host")
    if host and f"ft-host {host}" != HOST:
        notes.append(f"ft-host was {host} in the run, its rules here are those of {HOST.split()[1]}")
    return infos, notes, method


def _found(kind: str, name: str, record: RunRecord) -> registry.PluginInfo:
    """Return a plugin that a run names. Raises UsageError for a file in the run's folder: it came with it, perhaps from
    somebody else, and reading a run executes nothing of it."""
    if is_file(name) and Path(name).expanduser().resolve().is_relative_to(record.folder.resolve()):
        raise UsageError(
            f"{name} is in the run's folder, of which nothing is executed by reading it; keep it elsewhere"
        )
    return registry.find(kind, name)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
