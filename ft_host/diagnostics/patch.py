"""A run file with a remedy applied: what a run was, but for what one of its findings asks to change. Imports no
torch."""

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

LEFT_OUT = ("output_dir", "parent_run", "resume_from_checkpoint")  # of the run itself, not of what it does


def chosen_finding(findings: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The finding that a code or a fingerprint names. Raises UsageError where there is none, or more than one."""
    fitting = [each for each in findings if each["fingerprint"] == name] or [
        each for each in findings if each["code"] == name
    ]
    if not fitting:
        known = [each["fingerprint"] for each in findings]
        there = f"; it has {', '.join(known)}" if known else "; it has none"
        raise UsageError(f"the run has no finding {name}{nearest(name, known) or there}")
    fitting = [each for each in fitting if each["state"] == "open"] or fitting
    if len(fitting) > 1:
        raise UsageError(
            f"the run has several findings {name}: {', '.join(each['fingerprint'] for each in fitting)}; name one"
        )
    return fitting[0]


def chosen_remedy(finding: dict[str, Any], rank: int | None) -> dict[str, Any]:
    """The remedy of this rank, the first that is a change of the config where none is named. Raises UsageError where it
    is none, with what is to be done by hand."""
    remedies = finding["remedies"]
    if rank is not None and not 1 <= rank <= len(remedies):
        raise UsageError(f"{finding['fingerprint']} has {len(remedies)} remedies, there is no {rank}")
    wanted = [remedies[rank - 1]] if rank is not None else remedies
    found = next((each for each in wanted if each["patch"]), None)
    if found is not None:
        return found
    by_hand = "".join(f"\n  {each['why']}" for each in wanted)
    which = (
        f"remedy {rank} of {finding['fingerprint']}"
        if rank is not None
        else f"what helps against {finding['fingerprint']}"
    )
    raise UsageError(f"{which} is no change of the config; by hand:{by_hand or ' nothing is known'}")


def patched(
    record: RunRecord, finding: dict[str, Any], remedy: dict[str, Any], from_checkpoint: bool = False
) -> dict[str, Any]:
    """The fields of the next run: what wasn't at its default in this one, the remedy's changes, and where it comes
    from.

    With `from_checkpoint` it goes on from the newest checkpoint before the finding. Raises UsageError where there is
    none, or the remedy is one that has to be there from the start.
    """
    values = {name: record.config[name] for name in _given(record) if name not in LEFT_OUT}
    values |= {change["path"].removeprefix("/"): change["value"] for change in remedy["patch"]}
    values["parent_run"] = str(record.folder)
    if from_checkpoint:
        if remedy["from_start"]:
            raise UsageError(
                f"{finding['fingerprint']}: this remedy has to be there from the start; leave out --from-checkpoint"
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
    """The run file of `patched`, with what was found and what is changed in comments."""
    old = {change["path"].removeprefix("/"): change["from"] for change in remedy["patch"]}
    about = [
        f"{record.folder} with a remedy of {finding['fingerprint']}: {finding['message']}",
        f"{remedy['why']} ({', '.join(patch_text(change) for change in remedy['patch'])}).",
    ]
    lines = [f"# {line}" for text in about for line in textwrap.wrap(text, 110, break_on_hyphens=False)]
    return "\n".join(lines) + "\n" + run_file(method_name(record), values, old)


def run_file(method: str, values: dict[str, Any], old: dict[str, Any]) -> str:
    """A run as YAML; a comment says what the fields in `old` were."""
    lines = [f"method: {yaml_text(method)}"]
    for name, value in values.items():
        was = f"  # was {yaml_text(old[name])}" if name in old else ""
        lines.append(f"{name}: {yaml_text(value)}{was}")
    return "\n".join(lines) + "\n"


def method_name(record: RunRecord) -> str:
    """The method as a person writes it, where that finds it; else what says which distribution it is from."""
    try:
        info = registry.find("method", record.method)
    except (PluginNotFound, PluginBroken, UsageError):
        return record.reference
    return record.method if registry.reference(info) in (record.reference, record.method) else record.reference


def _given(record: RunRecord) -> list[str]:
    """Fields that were set. A run that was started in Python doesn't know which those are: what differs from the
    default."""
    defaults: dict[str, Any] = {}
    try:
        defaults = dataclasses.asdict(registry.config_class(registry.find("method", record.reference))())
    except (PluginNotFound, PluginBroken, UsageError):  # can't be known then: what the origins say
        defaults = {}
    return [
        name
        for name, value in record.config.items()
        if record.origins.get(name, "default") != "default" or (name in defaults and value != defaults[name])
    ]
