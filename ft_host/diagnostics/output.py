"""The output of `ft-host diagnose`: for people, and as JSON (docs/findings.schema.json). SARIF is in sarif.py."""

from __future__ import annotations

import textwrap
from typing import Any

from ft_host.diagnostics.replay import Diagnosis
from ft_host.rundir import format as fmt
from ft_host.util.jsonl import json_text

SCHEMA = "ft-host.diagnosis/1"
WIDTH = 100


def as_json(diagnosis: Diagnosis) -> str:
    record = diagnosis.record
    content = {
        "schema": SCHEMA,
        "run": str(record.folder),
        "method": record.method,
        "status": record.status,
        "steps": record.steps,
        "rules": len(diagnosis.rules),
        "findings": diagnosis.findings,
        "skipped": diagnosis.skipped,
        "recorded": diagnosis.recorded,
        "notes": diagnosis.notes,
    }
    return json_text(fmt.plain(content), indent=2) + "\n"


def as_text(diagnosis: Diagnosis, every: bool = False) -> str:
    """Return what was found; with `every` also which rules had nothing to go by, and why."""
    record = diagnosis.record
    shown = [f"{record.folder}: {record.method}, {record.status} after {record.steps:,} steps, {_counted(diagnosis)}"]
    shown += [_finding(finding, finding["fingerprint"] in diagnosis.recorded) for finding in diagnosis.findings]
    shown += [_wrapped(f"Note: {note}", "") for note in diagnosis.notes]
    if every and diagnosis.skipped:
        rows = [[code, why] for code, why in diagnosis.skipped.items()]
        table = textwrap.indent(fmt.table(["CODE", "WHY"], rows), "  ")
        shown.append(f"{len(rows)} of {len(diagnosis.rules)} rules gave no answer:\n{table}")
    return "\n\n".join(shown) + "\n"


def _counted(diagnosis: Diagnosis) -> str:
    severities = [each["severity"] for each in diagnosis.findings if each["state"] == "open"]
    parts = [
        f"{severities.count(one)} {many if severities.count(one) != 1 or one == 'info' else one}"
        for one, many in (("error", "errors"), ("warning", "warnings"), ("info", "to know"))
        if one in severities
    ]
    return ", ".join(parts) or "no open findings"


def _finding(finding: dict[str, Any], recorded: bool) -> str:
    lines = [_wrapped(f"{finding['severity'].capitalize()} {finding['fingerprint']}: {finding['message']}", "")]
    where = []
    if finding["state"] == "muted":
        where.append(f"It follows from {finding['muted_by']}")
    elif finding["state"] == "cleared":
        where.append("It is cleared")
    first, last = finding["first_step"], finding["last_step"]
    where.append(f"at step {last:,}" if first == last else f"steps {first:,} to {last:,}")
    where += [evidence(each) for each in finding["evidence"]]
    if recorded:
        where.append("as the run recorded it")
    lines.append(_wrapped("; ".join(where), "    "))
    lines.append(_wrapped(finding["why"], "    "))
    lines += [_wrapped(f"{each['rank']}. {remedy(each)}", "    ") for each in finding["remedies"]]
    return "\n".join(lines)


def evidence(each: dict[str, Any]) -> str:
    """Return "loss 4.1 (mean 3.9, baseline 1.2)"."""
    beside = [f"{name} {_value(each[name])}" for name in ("mean", "baseline") if each.get(name) is not None]
    return f"{each['metric']} {_value(each['value'])}" + (f" ({', '.join(beside)})" if beside else "")


def remedy(each: dict[str, Any]) -> str:
    """Return the sentence of a remedy, and its changes of the config."""
    changes = ", ".join(patch_text(change) for change in each["patch"])
    start = "; from the beginning" if each["from_start"] else ""
    return each["why"] + (f" ({changes}; {each['applicability']}{start})" if changes else "")


def patch_text(change: dict[str, Any]) -> str:
    return f"{change['path'].removeprefix('/')}: {fmt.value(change['from'])} -> {fmt.value(change['value'])}"


def _value(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return fmt.number(value) if number else str(value)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}   " if indent and text[:1].isdigit() else indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
