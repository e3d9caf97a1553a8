"""Findings as SARIF 2.1.0, which code hosts and editors show next to the lines of the run file. Imports no torch.

A rule's page is in `help`; there is no `helpUri`, which must be the absolute address of an existing page.
"""

from __future__ import annotations

import re
from typing import Any

from ft_host._version import __version__
from ft_host.diagnostics.collect import Owned
from ft_host.diagnostics.pages import page, terminal_text
from ft_host.diagnostics.replay import Diagnosis
from ft_host.rundir import format as fmt
from ft_host.util.jsonl import json_text

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"info": "note", "warning": "warning", "error": "error"}
LINE = re.compile(r"(?P<file>.+\.(?:ya?ml|json|toml))(?::(?P<line>\d+))?")  # the origin of a field: "run.yaml:9"


def as_sarif(diagnosis: Diagnosis) -> str:
    codes = [rule.code for rule, _ in diagnosis.rules]
    run = {
        "tool": {
            "driver": {
                "name": "ft-host",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(each, diagnosis) for each in diagnosis.rules],
            }
        },
        "results": [_result(each, codes, diagnosis) for each in diagnosis.findings],
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": note}} for note in diagnosis.notes
                ],
            }
        ],
        "properties": {
            "run": str(diagnosis.record.folder),
            "method": diagnosis.record.method,
            "status": diagnosis.record.status,
            "steps": diagnosis.record.steps,
            "skipped": diagnosis.skipped,
        },
    }
    return json_text(fmt.plain({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}), indent=2) + "\n"


def _rule(owned: Owned, diagnosis: Diagnosis) -> dict[str, Any]:
    rule, plugin = owned
    text = page(rule, plugin, [each for each, _ in diagnosis.rules])
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.when} {rule.why}"},
        "help": {"text": terminal_text(text), "markdown": text},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
        "properties": {"stage": rule.stage, "plugin": plugin},
    }


def _result(finding: dict[str, Any], codes: list[str], diagnosis: Diagnosis) -> dict[str, Any]:
    remedy = f" {finding['remedies'][0]['why']}." if finding["remedies"] else ""
    out = {
        "ruleId": finding["code"],
        "level": LEVELS[finding["severity"]],
        "message": {"text": finding["message"] + remedy},
        "locations": [{"physicalLocation": each} for each in _locations(finding, diagnosis)],
        "partialFingerprints": {"ftHostFinding/v1": finding["fingerprint"]},
        "properties": {
            name: finding[name]
            for name in (
                "state",
                "stage",
                "evidence",
                "remedies",
                "first_step",
                "last_step",
                "count",
                "window",
                "share",
                "muted_by",
            )
        },
    }
    if finding["code"] in codes:
        out["ruleIndex"] = codes.index(finding["code"])
    if finding["state"] == "muted":
        out["suppressions"] = [{"kind": "external", "justification": f"follows from {finding['muted_by']}"}]
    elif finding["state"] == "cleared":  # in SARIF a result that isn't a failure has no level
        out |= {"kind": "informational", "level": "none"}
    return out


def _locations(finding: dict[str, Any], diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Return the line of the first field that a remedy would change, else the run file, else the run's own record."""
    origins = diagnosis.record.origins
    fields = [change["path"].removeprefix("/") for remedy in finding["remedies"] for change in remedy["patch"]]
    for name in fields:
        found = LINE.fullmatch(origins.get(name, ""))
        if found and found["line"]:
            return [_location(found["file"], int(found["line"]))]
    files = [found["file"] for origin in origins.values() if (found := LINE.fullmatch(origin))]
    return [_location(files[0] if files else str(diagnosis.record.folder / "run.json"), 1)]


def _location(file: str, line: int) -> dict[str, Any]:
    return {"artifactLocation": {"uri": file.replace("\\", "/")}, "region": {"startLine": line}}
