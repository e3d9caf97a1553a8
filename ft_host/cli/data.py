"""`ft-host data METHOD [CONFIG]`: a few rows as the model will see them, and counts. Loads the tokenizer, no model."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host import registry, settings
from ft_host.cli import train
from ft_host.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Row = dict[str, Any]

HELP = """\
usage: ft-host data METHOD [CONFIG] [--field value ...] [--rows N] [--count N] [--color | --no-color]

Shows the first rows that training would see, token by token, those that are supervised in green (in «» where there is
no colour), and counts over the first window of rows. Loads the tokenizer, but no model. METHOD, CONFIG and fields are
those of ft-host train.

  --rows N    rows to show (default 3)
  --count N   rows to count over (default: the field window, 1000)
"""
IGNORE = -100
GREEN, GREY = (32, 92), (37, 90)  # of supervised tokens and of others, taking turns so that tokens can be told apart


def run(argv: list[str]) -> int:
    rest = list(argv)
    shown = take_number(rest, "--rows", 3)
    counted = take_number(rest, "--count", None)
    color = train.take_switch(rest, "--color")
    plain = train.take_switch(rest, "--no-color")
    asked = train.read(rest)
    if asked.resume is not None or asked.dry_run:
        raise UsageError("ft-host data takes neither --resume nor --dry-run; `ft-host data --help` has its options")
    if asked.help:
        print(HELP + "\n" + train.installed())
        return 0
    method = registry.find("method", asked.method)
    name = asked.file.method if asked.file is not None and asked.file.method is not None else asked.method
    config = settings.resolve(registry.config_class(method), asked.file, asked.flags, method=name).config
    color = color or not plain and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    show(registry.reference(method), config, shown, counted or config.window, color)
    return 0


def take_number(arguments: list[str], name: str, default: int | None) -> int | None:
    """Take `--rows 5` or `--rows=5` off the command line. Raises UsageError."""
    for index, argument in enumerate(arguments):
        given, _, value = argument.partition("=")
        if given != name:
            continue
        del arguments[index]
        if not value:
            value = arguments.pop(index) if index < len(arguments) else ""
        if not value.isdigit() or (name == "--count" and not int(value)):
            raise UsageError(f"{name}: found {value!r}, expected a number of rows")
        return int(value)
    return default


# ---------------------------------------------------------------- reading


@dataclass
class Counts:
    """What a number of rows comes to."""

    raw: int = 0
    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    lengths: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)  # the last supervised token of each row

    def add(self, row: Row) -> None:
        self.rows += 1
        self.tokens += row["length"]
        self.lengths.append(row["length"])
        self.truncated += row.get("truncated") is True
        chosen = [label for label in row.get("labels", ()) if label != IGNORE]
        self.supervised += len(chosen)
        if chosen:
            self.ends[chosen[-1]] += 1


def show(method: str, config: RunConfig, shown: int, counted: int, color: bool) -> None:
    """Print rows and counts. Raises DataError for data that can't be used."""
    from ft_host import data
    from ft_host.data.prepare import prepared
    from ft_host.data.reader import Layout, reader_of
    from ft_host.run import Drop

    tokenizer = data.load_tokenizer(config)
    hook = registry.prepare_hook(method, tuple(config.diagnostics))
    source = data.open_train(config)
    reader = reader_of(source, Layout.of(config, 0, 1))
    counts = Counts()
    for position in range(max(counted, shown)):
        found = reader.get(0, position) if reader.has(0, position) else None
        if found is None:
            break
        where, raw = found
        counts.raw += 1
        result = prepared(lambda row: hook(row=row, tokenizer=tokenizer, config=config), where, raw)
        if isinstance(result, Drop):
            counts.dropped[str(result)] += 1
            if position < shown:
                print(f"{where}: dropped: {result}\n")
            continue
        for row in result:
            counts.add(row)
            if position < shown:
                print(headline(where, row))
                print(body(row, tokenizer, color) + "\n")
    print(summary(counts, source.num_rows, tokenizer, config))


# ---------------------------------------------------------------- texts


def headline(where: str, row: Row) -> str:
    said = f"{where}: {row['length']} tokens"
    if "labels" in row:
        said += f", {sum(label != IGNORE for label in row['labels'])} supervised"
    return said + (", cut at max_length" if row.get("truncated") is True else "")


def body(row: Row, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """The tokens of a row. Of a method whose rows are made differently: its columns of tokens, one by one."""
    if "input_ids" in row:
        return painted(row["input_ids"], row.get("labels", row["input_ids"]), tokenizer, color)
    lines = []
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], int):
            lines.append(f"{name}: " + painted(value, [IGNORE] * len(value), tokenizer, color))
        else:
            lines.append(f"{name}: {str(value)[:80]}")
    return "\n".join(lines)


def painted(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """Tokens as text, the supervised ones in green, or in «»."""
    parts, before = [], False
    for number, (text, supervised) in enumerate(pieces(ids, labels, tokenizer)):
        text = text.replace("\n", "⏎\n")
        if color:
            parts.append(f"\x1b[{(GREEN if supervised else GREY)[number % 2]}m{text}\x1b[0m")
            continue
        mark = "«" if supervised and not before else "»" if before and not supervised else "|" if number else ""
        parts.append(mark + text)
        before = supervised
    return "".join(parts) + ("»" if before else "")


def pieces(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """(text, whether it is supervised) of each token. Tokens that are parts of one character are taken together."""
    out: list[tuple[str, bool]] = []
    waiting: list[int] = []
    for index, token in enumerate(ids):
        waiting.append(token)
        supervised = labels[index] != IGNORE
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        ends = index + 1 == len(ids) or (labels[index + 1] != IGNORE) != supervised
        if not text.endswith("\ufffd") or len(waiting) == 4 or ends:
            out.append((text, supervised))
            waiting = []
    return out


def summary(counts: Counts, size: int | None, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> str:
    of = f" of {size:,}" if size is not None else ""
    lines = [f"the first {counts.raw:,}{of} rows in the order of training"]
    if counts.rows:
        lengths = sorted(counts.lengths)
        lines += [
            f"  tokens      {counts.tokens:,}; a row has {lengths[len(lengths) // 2]:,} in the middle, "
            f"{lengths[-1]:,} at most",
            f"  supervised  {share(counts.supervised, counts.tokens)} of the tokens",
            f"  truncated   {share(counts.truncated, counts.rows)} of the rows (max_length {config.max_length})",
        ]
    lines.append(f"  dropped     {share(counts.dropped.total(), counts.raw)} of the rows")
    lines += [f"    {count:,} × {reason}" for reason, count in counts.dropped.most_common()]
    if counts.ends:
        token, count = counts.ends.most_common(1)[0]
        text = tokenizer.decode([token])
        lines.append(f"  last supervised token: {text!r} in {share(count, counts.rows)} of the rows")
    if counts.dropped.total() > config.max_dropped_share * counts.raw:
        lines.append(f"  training would refuse this: max_dropped_share is {config.max_dropped_share:g}")
    return "\n".join(lines)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
