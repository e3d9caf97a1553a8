"""What a package fails as SARIF 2.1.0, which code hosts and editors show beside its files.

What it declares is there too, suppressed, with its reason. What passes isn't: a code host would list it as an alert.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host._version import __version__
from ft_host.diagnostics.pages import terminal_text
from ft_host.diagnostics.sarif import SCHEMA
from ft_host.testing.conformance.check import DECLARED, ERROR, FAILED, Check, Outcome
from ft_host.testing.conformance.pages import page

if TYPE_CHECKING:
    from ft_host.testing.conformance.run import Suite


def sarif(suite: Suite, found: Iterable[Outcome]) -> dict[str, Any]:
    found = list(found)
    checks = {outcome.check.id: outcome.check for outcome in found}
    errors = [
        {"level": "error", "message": {"text": f"{each.name}: {each.said}"}, "associatedRule": {"id": each.check.id}}
        for each in found
        if each.result == ERROR
    ]
    run = {
        "tool": {
            "driver": {
                "name": "ft-host check",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(check) for check in checks.values()],
            }
        },
        "results": [_result(outcome, list(checks), suite) for outcome in found if outcome.result in (FAILED, DECLARED)],
        "invocations": [{"executionSuccessful": not errors, "toolExecutionNotifications": errors}],
        "properties": {"package": suite.name, "version": suite.version},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(check: Check) -> dict[str, Any]:
    text = page(check)
    return {
        "id": check.id,
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": check.why},
        "help": {"text": terminal_text(text), "markdown": text},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tier": check.tier, "about": check.about},
    }


def _result(outcome: Outcome, ids: list[str], suite: Suite) -> dict[str, Any]:
    [info, *_] = [info for info in suite.plugins if info.name == outcome.plugin] or suite.plugins
    file, line = outcome.place or (info.location, 1)
    value = {
        "ruleId": outcome.check.id,
        "ruleIndex": ids.index(outcome.check.id),
        "level": "error",
        "message": {"text": f"{outcome.said}\n{outcome.advice}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(file)}, "region": {"startLine": line}}}],
        "partialFingerprints": {"ftHostCheck/v1": outcome.name},
    }
    if outcome.result == DECLARED:
        value["suppressions"] = [{"kind": "inSource", "justification": outcome.said}]
    return value


def _uri(file: str) -> str:
    """Below the working directory relative, as code hosts want it."""
    path, here = Path(file), Path.cwd()
    return path.relative_to(here).as_posix() if here in path.parents else path.as_uri() if os.path.isabs(file) else file
