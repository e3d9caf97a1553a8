"""How `ft-host check` looks: a line a check, by group; under it what is wrong and what to do."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from ft_host.testing.conformance.check import DECLARED, ERROR, FAILED, LEFT_OUT, PASSED, Check, Outcome, group_of
from ft_host.util.jsonl import visible

if TYPE_CHECKING:
    from ft_host.registry import PluginInfo
    from ft_host.testing.conformance.run import Suite

COLOURS = {PASSED: "32", FAILED: "31", DECLARED: "33", LEFT_OUT: "2", ERROR: "35"}
WIDTH = max(map(len, COLOURS))
INDENT = " " * (WIDTH + 4)


class View:
    """Prints to `out`, or nothing where it is None. `items`: what will be asked."""

    def __init__(self, suite: Suite, tier: str, items: list[tuple[Check, PluginInfo]], out: TextIO | None) -> None:
        self.out, self.group = out, ""
        self.asked, self.count = 0, len(items)
        self.terminal = out is not None and out.isatty()
        self.several = len({info.name for info in suite.plugins}) > 1
        self.width = max(len(self._name(check.id, info.name)) for check, info in items)
        self.room = max(60, shutil.get_terminal_size().columns) if self.terminal else 10**6
        version = f" {suite.version} ({suite.plugins[0].stability})" if suite.version else ""
        self.said(self._painted(f"{suite.name}{version}, checks of the {tier} tier", "1"))

    def asking(self, check: Check, plugin: PluginInfo) -> None:
        """On a terminal, say what is being asked, in a line that goes away again."""
        self.asked += 1
        if self.terminal:
            said = f"  {self.asked} of {self.count}: {self._name(check.id, plugin.name)} ..."
            print(self._painted(said, "2"), end="", file=self.out, flush=True)

    def told(self, found: Outcome) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=self.out)
        if group_of(found.check) != self.group:
            self.group = group_of(found.check)
            self.said(f"\n{self._painted(self.group, '1')}")
        result = self._painted(f"{found.result.upper() if found.result == FAILED else found.result:{WIDTH}}", found)
        name = self._name(found.check.id, found.plugin)
        short = found.said if found.result == LEFT_OUT else f"{found.seconds:.1f} s"
        self.said(f"  {result}  {name:{self.width}}  {self._painted(visible(short), '2')}")
        if found.said and found.result != LEFT_OUT:
            self._below(found.said)
        if found.result == FAILED:
            self._below(f"To do: {found.advice}")
            self._below(f"ft-host check --explain {found.check.id} ({found.check.page})")

    def ended(self, found: list[Outcome], seconds: float, slowest: int) -> None:
        counts = Counter(each.result for each in found)
        said = ", ".join(
            self._painted(f"{counts[result]} {result}", colour) for result, colour in COLOURS.items() if counts[result]
        )
        self.said(f"\n{len(found)} checks: {said}, in {seconds:.0f} s")
        for each in sorted(found, key=lambda each: -each.seconds)[:slowest]:
            self.said(f"  {each.seconds:6.1f} s  {self._name(each.check.id, each.plugin)}")

    def said(self, text: str) -> None:
        if self.out is not None:
            print(text, file=self.out, flush=True)

    def _name(self, id: str, plugin: str) -> str:
        return f"{id} [{plugin}]" if self.several else id

    def _below(self, text: str) -> None:
        for line in visible(text).splitlines():
            self.said(textwrap.fill(line, self.room, initial_indent=INDENT, subsequent_indent=INDENT))

    def _painted(self, text: str, how: str | Outcome) -> str:
        code = how if isinstance(how, str) else COLOURS[how.result]
        return f"\033[{code}m{text}\033[0m" if self.terminal and "NO_COLOR" not in os.environ else text


def listing(checks: list[Check]) -> str:
    """The checks by group, with their titles."""
    width = max(len(check.id) for check in checks)
    lines, group = [], ""
    for check in checks:
        if group_of(check) != group:
            group = group_of(check)
            lines += [*([""] if lines else []), group]
        tier = "" if check.tier == "experimental" else f" ({check.tier})"
        lines.append(f"  {check.id:{width}}  {check.title}{tier}")
    return "\n".join(lines)
