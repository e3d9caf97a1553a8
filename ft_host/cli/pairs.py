"""Rows of several texts in `ft-host data`: two side by side, or one with its label, and the counts of pairs and labels.

What is learnt is read off the batch (`sides`). Counts are of rows with `chosen_ids` and `rejected_ids`, or
`completion_ids` and `label`, as the host's functions for such data make them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ft_host.cli.paint import GREY, in_color, painted, parts, side_by_side
from ft_host.cli.sides import Side, Sides
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PAIR = ("chosen", "rejected")
NARROW = 80  # below this many columns the two are shown one under the other


def names_of(row: Row) -> tuple[str, ...]:
    """The completions of a row: chosen and rejected, completion, or none where it is no row of such a method."""
    if all(f"{name}_ids" in row for name in ("prompt", *PAIR)):
        return PAIR
    return ("completion",) if {"prompt_ids", "completion_ids", "label"} <= row.keys() else ()


def headline(row: Row, found: Sides, scored: bool) -> str:
    """How many tokens a row has, and what was done to it."""
    parts = [found.shared or Side(name="prompt", ids=[], labels=[]), *found.sides]
    sizes = ", ".join(f"{part.name} {len(part.ids)}" for part in parts)
    said = f"{row.get('length', found.tokens)} tokens ({sizes})"
    if "label" in row:
        said += f", label {str(row['label']).lower()}"
    if "margin" in row:
        said += f", margin {row['margin']:g}"
    if row.get("implicit_prompt"):
        said += "; the prompt is the common start of both"
    if scored:
        said += "; the score is read at the marked token"
    for part, count in row.get("cut", {}).items():
        said += f"; {plural(count)} of {part} cut at max_length"
    return said


def body(row: Row, found: Sides, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """What texts share, and under it the texts: two side by side where the terminal is wide enough."""
    lines = [] if found.shared is None else [painted(found.shared.ids, found.shared.labels, tokenizer, color)]
    shown = []
    for side in found.sides:
        verdict = f", label {str(row['label']).lower()}" if "label" in row else ""
        heading = f"{side.name}{verdict}, {plural(len(side.ids))}\n"
        shown.append([(heading, GREY[1] if color else None), *parts(side.ids, side.labels, tokenizer, color)])
    width = shutil.get_terminal_size().columns
    if len(shown) == 2 and width >= NARROW:
        lines.append(side_by_side(*shown, width))
    else:
        lines += ["".join(in_color(*part) for part in each) for each in shown]
    return "\n".join(lines)


def plural(count: int) -> str:
    return f"{count:,} token" + ("" if count == 1 else "s")


# ---------------------------------------------------------------- counts


@dataclass
class PairCounts:
    """What a number of such rows comes to."""

    pairs: int = 0
    implicit: int = 0
    longer: int = 0  # pairs whose chosen completion is the longer one
    tokens: Counter[str] = field(default_factory=Counter)  # of each completion
    cut: Counter[str] = field(default_factory=Counter)  # rows with something cut, by part
    lost: Counter[str] = field(default_factory=Counter)  # tokens of it
    labels: Counter[bool] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        if names_of(row) == PAIR:
            self.pairs += 1
            self.implicit += row.get("implicit_prompt") is True
            self.longer += len(row["chosen_ids"]) > len(row["rejected_ids"])
            self.tokens.update({name: len(row[f"{name}_ids"]) for name in PAIR})
        elif names_of(row):
            self.labels[row["label"]] += 1
        for part, count in row.get("cut", {}).items():
            self.cut[part] += 1
            self.lost[part] += count

    def cuts(self) -> list[str]:
        """Lines under the count of truncated rows: how many of each part."""
        return [f"    {count:,} × {part} ({plural(self.lost[part])})" for part, count in self.cut.most_common()]

    def lines(self) -> list[str]:
        out = []
        if self.pairs:
            chosen, rejected = (self.tokens[name] / self.pairs for name in PAIR)
            out.append(
                f"  length      chosen {chosen:.1f} tokens on average, rejected {rejected:.1f}; chosen is longer "
                f"in {self.longer / self.pairs:.1%} of the pairs"
            )
            out.append(
                f"  prompt      found as the common start of both in {self.implicit / self.pairs:.1%} of the pairs"
            )
        if self.labels:
            total = self.labels.total()
            out.append(
                f"  labels      true {self.labels[True] / total:.1%}, false {self.labels[False] / total:.1%} of the"
                " rows"
            )
        return out
