"""The fields of every run that choose its rules and what their findings do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.config.options import option


@dataclass(kw_only=True)
class DiagnosticsFields:
    """A part of `RunConfig`."""

    # Which way a metric is better where its name doesn't say, or says it wrongly: "lower", "higher" or "neither". Names
    # are without eval_. Reports, `ft-host runs`, `ft-host compare` and the autopilot go by it.
    metric_directions: ClassVar[dict[str, str]] = {}

    diagnostics: list[str] = option(
        [],
        "Diagnostics plugins to use beside those of the method, by name; a Python file is one too.",
        group="diagnostics",
        path=True,
        compared=False,  # by their files, whatever names them
    )
    diagnostics_config: dict[str, Any] = option(
        {}, "Their own fields: {name: {field: value}}; their documentation has them.", group="diagnostics"
    )
    rules_select: list[str] = option(
        [], "Rules to use: codes, or beginnings of codes (GRPO). Not set: all.", group="diagnostics"
    )
    rules_ignore: list[str] = option(
        [],
        "Rules to leave out, in the same way. If both fields name a rule, the longer name decides.",
        group="diagnostics",
    )
    stop_on: list[str] = option(
        [],
        "Save and stop the run on a finding of these rules; 'patchable': on any warning or error with a remedy "
        "that changes the config. In a resumed run, the finding that stopped it does so again only if it gets "
        "worse, or has passed and is found anew.",
        group="diagnostics",
    )
    locked_fields: list[str] = option([], "Config fields that no remedy may change.", group="diagnostics")
    fail_on: str | None = option(
        None,
        "Exit with 5 if a finding of this severity or above is open at the end.",
        group="diagnostics",
        choices=("info", "warning", "error"),
    )
