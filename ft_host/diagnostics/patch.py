"""A run file with a remedy applied: the run's settings with the changes of one of its findings. Imports no torch."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from ft_host import registry
from ft_host.config.text import yaml_text
from ft_host.diagnostics.output import patch_text
from ft_host.errors import PluginBroken, PluginNotFound, UsageError
from ft_host.rundir.record import RunRecord
from ft_host.util.text import nearest

LEFT_OUT = ("output_dir", "parent_run", "resume_from_checkpoint")  # these belong to the one run


def chosen_finding(findings: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the finding with a code or a fingerprint. Raises UsageError where there is none, or more than one."""
    fitting = [finding for finding in findings if finding["fingerprint"] == name] or [
        finding for finding in findings if finding["code"] == name
    ]
    if not fitting:
        known = [finding["fingerprint"] for finding in findings]
        there = f"; it has {', '.join(known)}" if known else "; it has none"
        raise UsageError(f"the run has no finding {name}{nearest(name, known) or there}")
    fitting = [finding for finding in fitting if finding["state"] == "open"] or fitting
    if len(fitting) > 1:
        raise UsageError(
            f"the run has several findings {name}: {', '.join(finding['fingerprint'] for finding in fitting)}; name one"
        )
    return fitting[0]


def chosen_remedy(finding: dict[str, Any], rank: int | None) -> dict[str, Any]:
    """Return the remedy of this rank, by default the first one that changes the config.

    Raises UsageError where there is none, with what to do by hand.
    """
    remedies = finding["remedies"]
    if rank is not None and not 1 <= rank <= len(remedies):
        raise UsageError(f"{finding['fingerprint']} has {len(remedies)} remedies, there is no {rank}")
    wanted = [remedies[rank - 1]] if rank is not None else remedies
    patchable = next((remedy for remedy in wanted if remedy["patch"]), None)
    if patchable is not None:
        return patchable
    by_hand = "".join(f"\n  {remedy['why']}" for remedy in wanted)
    which = (
        f"remedy {rank} of {finding['fingerprint']}" if rank is not None else f"the remedy of {finding['fingerprint']}"
    )
    raise UsageError(f"{which} doesn't change the config; by hand:{by_hand or ' nothing is known'}")


def patched(
    record: RunRecord, finding: dict[str, Any], remedy: dict[str, Any], from_checkpoint: bool = False
) -> dict[str, Any]:
    """Return the fields of the next run: those of this one that weren't at their defaults, the remedy's changes, and
    the parent run.

    With `from_checkpoint` it resumes from the newest checkpoint before the finding. Raises UsageError where there is
    none, or where the remedy must apply from the start.
    """
    values = {name: record.config[name] for name in _given(record) if name not in LEFT_OUT}
    values |= {change["path"].removeprefix("/"): change["value"] for change in remedy["patch"]}
    values["parent_run"] = str(record.folder)
    if from_checkpoint:
        if remedy["from_start"]:
            raise UsageError(
                f"{finding['fingerprint']}: this remedy must apply from the start; leave out --from-checkpoint"
            )
        before = [step for step in record.checkpoints if step < finding["first_step"]]
        if not before:
            raise UsageError(
                f"{record.folder} has no checkpoint from before step {finding['first_step']}, where "
                f"{finding['fingerprint']} began; leave out --from-checkpoint"
            )
        values["resume_from_checkpoint"] = str(record.folder / "checkpoints" / f"step-{before[-1]}")
    return values


def commented(record: RunRecord, finding: dict[str, Any], remedy: dict[str, Any], values: dict[str, Any]) -> str:
    """Return the run file of `patched`, with the finding and the changes in comments."""
    old = {change["path"].removeprefix("/"): change["from"] for change in remedy["patch"]}
    about = [
        f"{record.folder} with a remedy of {finding['fingerprint']}: {finding['message']}",
        f"{remedy['why']} ({', '.join(patch_text(change) for change in remedy['patch'])}).",
    ]
    lines = [f"# {line}" for text in about for line in textwrap.wrap(text, 110, break_on_hyphens=False)]
    return "\n".join(lines) + "\n" + run_file(method_name(record), values, old)


def run_file(method: str, values: dict[str, Any], old: dict[str, Any]) -> str:
    """Return a run as YAML; comments give the old values of the fields in `old`."""
    lines = [f"method: {yaml_text(method)}"]
    for name, value in values.items():
        was = f"  # was {yaml_text(old[name])}" if name in old else ""
        lines.append(f"{name}: {yaml_text(value)}{was}")
    return "\n".join(lines) + "\n"


def method_name(record: RunRecord) -> str:
    """Return the method's plain name if that finds it, else the name with its distribution."""
    try:
        info = registry.find("method", record.method)
    except (PluginNotFound, PluginBroken, UsageError):
        return record.reference
    return record.method if registry.reference(info) in (record.reference, record.method) else record.reference


def _given(record: RunRecord) -> list[str]:
    """Return the fields that were set. For a run started in Python, where that isn't known: those that differ from the
    default.
    """
    defaults: dict[str, Any] = {}
    try:
        defaults = dataclasses.asdict(registry.config_class(registry.find("method", record.reference))())
    except (PluginNotFound, PluginBroken, UsageError):  # unknown then: use the origins
        defaults = {}
    return [
        name
        for name, value in record.config.items()
        if record.origins.get(name, "default") != "default" or (name in defaults and value != defaults[name])
    ]
