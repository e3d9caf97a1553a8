"""`ft-host data METHOD [CONFIG]`: a few rows as the model sees them, and counts. Loads the tokenizer, no model."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host import registry
from ft_host.batch import IGNORE, Batch
from ft_host.cli import pairs, train
from ft_host.cli.arguments import take_number, take_switch
from ft_host.cli.paint import painted
from ft_host.cli.sides import Sides, is_tokens, sides_of
from ft_host.config import RolloutConfig, resolve
from ft_host.data.omissions import KINDS, noting
from ft_host.errors import UsageError
from ft_host.types import Row
from ft_host.util import console
from ft_host.util.jsonl import json_text, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

SHOWN = 3  # rows, where --rows says nothing else
LONG = 100  # characters shown of a column next to a prompt

HELP = """\
usage: ft-host data METHOD [CONFIG] [--field value ...] [--rows N] [--count N] [--color | --no-color]

Shows the first rows that training would see, token by token, with supervised ones in green (in «» without colour), and
counts over the first window of rows. Pairs are side by side, or one under the other if the terminal has fewer than 80
columns. If a score is learnt, the token at which it is read is marked. For a method that samples completions, it shows
prompts and the columns that rewards get. Loads the tokenizer, but no model.
METHOD, CONFIG and fields are those of ft-host train.

  --rows N    rows to show (default 3)
  --count N   rows to count over (default: the field data_window, 1000)
"""


def run(argv: list[str]) -> int:
    rest = list(argv)
    shown = take_number(rest, "--rows", "rows")
    counted = take_number(rest, "--count", "rows", least=1)
    color = take_switch(rest, "--color")
    plain = take_switch(rest, "--no-color")
    asked = train.read(rest)
    if asked.resume is not None or asked.replay is not None or asked.dry_run:
        raise UsageError(
            "ft-host data takes none of --resume, --replay and --dry-run; `ft-host data --help` lists its options"
        )
    if asked.allow_changed:
        raise UsageError("ft-host data doesn't take --allow-changed: it compares nothing with another run")
    if asked.help:
        print(HELP + "\n" + train.installed())
        return 0
    method = registry.find("method", asked.method)
    with train.old_names_caught() as renamed:
        config = resolve.resolve(
            registry.config_class(method), asked.file, asked.flags, method=train.name_for(asked, method)
        ).config
    train.say_warnings(renamed)
    color = color or not plain and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    show(method, config, SHOWN if shown is None else shown, counted or config.data_window, color)
    return 0


# ---------------------------------------------------------------- reading


@dataclass
class Counts:
    """Counts over a number of rows."""

    raw: int = 0
    rows: int = 0
    prompts: int = 0  # of the rows, those that completions are sampled for
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    lengths: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # rows of which the chat template leaves something out
    ends: Counter[int] = field(default_factory=Counter)  # the last supervised token of each row or completion
    compared: pairs.PairCounts = field(default_factory=pairs.PairCounts)

    def add(self, row: Row, found: Sides | None) -> None:
        """`found`: what is learnt from the row; None of a prompt, which completions are sampled for."""
        size = row["length"] if found is None else row.get("length", found.tokens)
        self.rows += 1
        self.prompts += found is None
        self.tokens += size
        self.lengths.append(size)
        self.truncated += row.get("truncated") is True
        self.compared.add(row)
        if found is not None:
            self.supervised += found.supervised
            self.ends.update(found.last)


def is_prompt(row: Row) -> bool:
    """Return whether a row is a prompt alone, as made by `prompt_row`: without supervised tokens, and never
    truncated.
    """
    return {"prompt_ids", "prompt", "columns"} <= row.keys()


def show(method: registry.PluginInfo, config: RunConfig, shown: int, counted: int, color: bool) -> None:
    """Print rows and counts. Raises DataError for data that can't be used."""
    from ft_host import data
    from ft_host.contract.rows import collate
    from ft_host.data.prepare import prepared
    from ft_host.data.reader import StepLayout, reader_of
    from ft_host.training.preflight import choose
    from ft_host.types import Drop

    chosen = choose(config, method)
    tokenizer = data.load_tokenizer(config)
    place = Path(config.model)
    if not place.is_dir() or any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
        for note in (*chosen.fit_positions()[0], *chosen.fit_embeddings(tokenizer)):
            print(f"Warning: {note}\n")  # of a folder that holds a tokenizer alone nothing else is known
    prepare = chosen.prepare_with(tokenizer)
    source = data.open_train(config)
    held_out = data.sets_of(data.open_eval(config))
    for each in (source, *held_out.values()):
        for note in data.notes_of(each):
            print(f"Warning: {note}\n")
    for name, each in held_out.items():
        print(f"evaluation{f' ({name})' if name else ''}: {each.num_rows} rows of {each.describe()['path']}\n")
    reader = reader_of(source, StepLayout.of(config, 0, 1))
    scored = chosen.head == "reward"  # a row has a score, and no token of it is predicted
    rollouts = isinstance(config, RolloutConfig)

    def collated(row: Row) -> Batch:
        return collate(chosen.plugins, [row], tokenizer, config)

    counts = Counts()
    for position in range(max(counted, shown)):
        item = reader.get(0, position) if reader.has(0, position) else None
        if item is None:
            break
        where, raw = item
        counts.raw += 1
        with noting() as kinds:
            result = prepared(prepare, where, raw)
        counts.left_out.update(kinds)
        if isinstance(result, Drop):
            counts.dropped[str(result)] += 1
            if position < shown:
                console.show(f"{where}: dropped: {result}\n")
            continue
        for row in result:
            sides = None if rollouts else sides_of(row, collated, scored)
            counts.add(row, sides)
            if position < shown:
                console.show(headline(where, row, sides, scored))
                print(body(row, sides, tokenizer, color) + "\n")
    console.show(summary(counts, source.num_rows, tokenizer, config, scored))


# ---------------------------------------------------------------- texts


def headline(where: str, row: Row, found: Sides | None, scored: bool) -> str:
    if found is not None and not found.whole and found.sides:
        return f"{where}: {pairs.headline(row, found, scored)}"
    said = f"{where}: {pairs.plural(row['length'] if found is None else row.get('length', found.tokens))}"
    if found is not None:
        said += f", {found.supervised} supervised"
    return said + (", cut at max_length" if row.get("truncated") is True else "")


def body(row: Row, found: Sides | None, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """The tokens of a row, those green that are learnt from. Of a row that gives no text: its columns, one by one."""
    if found is not None and found.whole:
        return painted(found.sides[0].ids, found.sides[0].labels, tokenizer, color)
    if found is not None and found.sides:
        return pairs.body(row, found, tokenizer, color)
    if is_prompt(row):
        return prompt_body(row, tokenizer, color)
    lines = []
    for name, value in row.items():
        if is_tokens(value):
            lines.append(f"{name}: " + painted(value, [IGNORE] * len(value), tokenizer, color))
        else:
            lines.append(visible(f"{name}: {str(value)[:80]}"))
    return "\n".join(lines)


def prompt_body(row: Row, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """The tokens of a prompt, and the other columns of its row, one a line."""
    lines = [painted(row["prompt_ids"], [IGNORE] * len(row["prompt_ids"]), tokenizer, color)]
    others = {name: value for name, value in row["columns"].items() if name != "prompt" or value != row["prompt"]}
    if others:
        lines.append("for rewards:")
    for name, value in others.items():
        text = json_text(value)
        lines.append(
            f"  {name}: {text}" if len(text) <= LONG else f"  {name}: {text[:LONG]} … ({len(text):,} characters)"
        )
    return "\n".join(lines)


def summary(
    counts: Counts, size: int | None, tokenizer: PreTrainedTokenizerBase, config: RunConfig, scored: bool
) -> str:
    of = f" of {size:,}" if size is not None else ""
    prompts = counts.rows > 0 and counts.prompts == counts.rows
    lines = [f"the first {counts.raw:,}{of} rows in the order of training"]
    if counts.rows:
        lengths = sorted(counts.lengths)
        lines += [
            (
                f"  tokens      {counts.tokens:,}; a {'prompt' if prompts else 'row'} has "
                f"{lengths[len(lengths) // 2]:,} in the middle, {lengths[-1]:,} at most"
            ),
            *([] if scored or prompts else [f"  supervised  {share(counts.supervised, counts.tokens)} of the tokens"]),
            *counts.compared.lines(),
            *(
                []
                if prompts
                else [
                    f"  truncated   {share(counts.truncated, counts.rows)} of the rows (max_length {config.max_length})"
                ]
            ),
            *counts.compared.cuts(),
        ]
    limit = f" (max_length {config.max_length})" if prompts and config.max_length is not None else ""
    lines.append(f"  dropped     {share(counts.dropped.total(), counts.raw)} of the rows{limit}")
    lines += [f"    {count:,} × {reason}" for reason, count in counts.dropped.most_common()]
    lines += [
        f"  the chat template leaves out {KINDS[kind]}: {share(count, counts.raw)} of the rows (DATA013)"
        for kind, count in counts.left_out.most_common()
    ]
    if counts.ends:
        token, count = counts.ends.most_common(1)[0]
        text = tokenizer.decode([token])
        what = "token at which the score is read" if scored else "last supervised token"
        whose = "completions" if counts.compared.pairs else "rows"
        lines.append(f"  {what}: {text!r} in {share(count, counts.ends.total())} of the {whose}")
    if counts.dropped.total() > config.max_dropped_share * counts.raw:
        lines.append(f"  training would refuse this: max_dropped_share is {config.max_dropped_share:g}")
    return "\n".join(lines)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
