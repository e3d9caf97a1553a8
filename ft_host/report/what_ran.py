"""The blocks of a run's page that show what ran: settings, data, plugins, environment, events, and how to repeat it."""

from __future__ import annotations

from typing import Any

from ft_host.report.markup import Markup, el, facts, join, table
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord

EVENTS_SHOWN = 25


def events(record: RunRecord) -> Markup | None:
    """Return what the run reported, with warnings and errors marked; a long list starts folded."""
    if not record.events:
        return None
    rows = []
    for event in record.events:
        time = str(event.get("time", ""))
        level = event.get("level") if event.get("level") in ("info", "warning", "error") else "info"
        cells = [time[11:19] or time, str(event.get("step", "")), level, str(event.get("text", ""))]
        rows.append(
            el(f"tr.{level}", *(el("td.num" if index == 1 else "td", cell) for index, cell in enumerate(cells)))
        )
    head = el("thead", el("tr", el("th", "Time"), el("th.num", "Step"), el("th", "Level"), el("th", "Text")))
    whole = el("div.scroll", el("table", head, el("tbody", *rows)))
    if len(rows) <= EVENTS_SHOWN:
        return whole
    return el("details", el("summary", f"{len(rows)} events"), whole)


def config_tables(record: RunRecord) -> Markup:
    """Return the settings of this run and where each was set, then those left at their defaults."""

    def rows(names: list[str]) -> list[list[str]]:
        return [
            [el("code", name), el("code", fmt.value(record.config[name])), record.origins.get(name, "not recorded")]
            for name in names
        ]

    chosen = [name for name in record.config if record.origins.get(name, "") != "default"]
    default = [name for name in record.config if name not in chosen]
    header = ["Field", "Value", "Set by"]
    shown = (
        table(header, rows(chosen), name="table.config")
        if chosen
        else el("p.soft", "All fields are at their defaults.")
    )
    rest = (
        el(
            "details",
            el("summary", f"{len(default)} fields at their defaults"),
            table(header, rows(default), name="table.config"),
        )
        if default
        else None
    )
    return join(shown, rest)


def plugins(record: RunRecord) -> Markup | None:
    if not record.plugins:
        return None
    rows = []
    for plugin in record.plugins:
        tag = str(plugin.get("stability", ""))
        chip = el("span.chip" + {"experimental": ".exp", "deprecated": ".bad", "stable": ".good"}.get(tag, ""), tag)
        rows.append(
            [
                str(plugin.get("name", "")),
                str(plugin.get("kind", "")),
                str(plugin.get("distribution", "")),
                str(plugin.get("version", "")),
                chip,
            ]
        )
    wrapped = (
        [el("p.soft", "Wrappers: ", ", ".join(fmt.value(one) for one in record.wrappers))] if record.wrappers else []
    )
    return join(table(["Plugin", "Kind", "Distribution", "Version", "Stability"], rows), *wrapped)


def _described(thing: Any) -> str:
    if isinstance(thing, int) and not isinstance(thing, bool):
        return f"{thing:,}"
    if isinstance(thing, list) and all(isinstance(item, str) for item in thing):
        return ", ".join(thing)
    return "not known" if thing is None else fmt.value(thing)


def data(record: RunRecord) -> Markup | None:
    blocks = []
    for split, heading in (("train", "Training data"), ("eval", "Held-out data")):
        described = record.data.get(split)
        if isinstance(described, dict) and described:
            pairs = [(name, _described(value)) for name, value in fmt.flat(described).items()]
            blocks.append(el("div", el("h3", heading), facts(pairs)))
    return el("div.halves", *blocks) if blocks else None


def environment(record: RunRecord) -> Markup | None:
    pairs = [(name, _described(value)) for name, value in fmt.flat(record.environment).items()]
    return facts(pairs) if pairs else None


def parent(record: RunRecord) -> Markup | None:
    """Return the run that this one came from."""
    return el("p.lead", "Continues from ", el("code", record.parent)) if record.parent else None


def commands(record: RunRecord) -> Markup:
    """Return how to repeat the run: the packages, a run file with the settings, and the command."""
    pins = [
        f"{name}=={version}"
        for name, version in [
            ("ft-host", record.environment.get("ft-host")),
            *((plugin.get("distribution"), plugin.get("version")) for plugin in record.plugins),
        ]
        if name and version
    ]
    keep = [
        name
        for name in record.config
        if record.origins.get(name, "") != "default" and name not in ("output_dir", "run_name")
    ]
    file = "".join(f"{name}: {fmt.yaml_value(record.config[name])}\n" for name in keep)
    shell = (
        f"pip install {' '.join(dict.fromkeys(pins))}\n" if pins else ""
    ) + f"ft-host train {record.method} again.yaml"
    resume = (
        [el("h3", "Resume"), el("pre.block", f"ft-host train --resume {record.folder}")]
        if record.status != "finished" and record.checkpoints
        else []
    )
    return join(
        *resume,
        el("h3", "Repeat"),
        el("pre.block", shell),
        el("p.soft", "again.yaml:"),
        el("pre.block", file or "{}\n"),
    )
