"""Facts about the data, measured before a model is loaded, from a sample of its rows, spread over all of it.

Rows go through the method's own `ft_prepare` and `ft_collate`, so that every method is measured in the same way: a leaf
of a batch's forest is a text that is trained on, and its targets are supervised. Lengths are those before `max_length`
cuts. Methods with rollouts have prompts only; `check_rewards` tries their rewards.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.batch import Batch
from ft_host.config.rollout import RolloutConfig
from ft_host.data import prompt_of
from ft_host.data.omissions import noting
from ft_host.data.texts import Text, texts_of
from ft_host.errors import DataError, HookError, RowError
from ft_host.models.special_tokens import ends_of_run
from ft_host.monitor.end_marks import end_marks
from ft_host.monitor.row_overlap import compare, placed_sample
from ft_host.monitor.rows import row_facts
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig


SAMPLE = 256  # raw rows to prepare
CHARACTERS = 1_000_000  # of raw rows, after which no more are prepared: a limit of time would depend on the machine
# Reasons for leaving a row out that other facts tell of: truncated, unsupervised, identical, blank.
TOLD = ("max_length", "supervised", "are the same", "empty completion")
FEW = 9  # tokens: a text with as many is no white space, and is not decoded to see


@dataclass
class _Seen:
    """Measurements of the sample."""

    raw: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # rows that the method leaves out, by its reason
    unsupervised: int = 0
    rows: int = 0  # prepared
    cut: int = 0
    tokens: int = 0  # before truncation
    lost: int = 0
    lengths: list[int] = field(default_factory=list)  # of the longest text of each row, before truncation
    texts: list[int] = field(default_factory=list)  # of each text as it is trained on
    supervised: int = 0
    without_targets: int = 0
    ends: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    other_ends: Counter[int] = field(default_factory=Counter)  # marks at the end that generation doesn't stop at
    double_bos: list[bool] = field(default_factory=list)
    unknown: int = 0
    mismatched: list[bool] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # rows of which the template leaves something out


def data_facts(
    source: Any,
    held_out: Any,
    prepare: Callable[[Row], Any],
    uncut: Callable[[Row], Any],
    collate: Callable[..., Batch],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    columns: Iterable[str] = (),
) -> dict[str, Any]:
    """Return facts by name. `uncut` is `prepare` without `max_length`; `held_out` the evaluation data, or None;
    `columns` the names of those that a loss or a reward reads besides those of the format.

    A row that can't be read or used ends the sample: it is refused, with its place, when its turn comes.
    """
    seen, left = _Seen(), CHARACTERS
    ends, marks = ends_of_run(config, tokenizer), end_marks(tokenizer)
    special = marks | set(tokenizer.all_special_ids)
    looked_at: list[tuple[str, Row]] = []
    for where, raw in placed_sample(source, SAMPLE):
        looked_at.append((where, raw))
        try:
            with noting() as kinds:
                _look(raw, seen, prepare, uncut, collate, tokenizer, config, ends, marks, special)
            seen.left_out.update(kinds)
        except (DataError, HookError, RecursionError):
            break
        left -= len(str(raw))
        if left < 0:
            break
    facts = _facts(seen, source.num_rows, tokenizer, config)
    facts |= row_facts(looked_at, tokenizer, config, columns, apart_of(held_out))
    if source.num_rows is not None:
        facts |= compare(source, held_out)
    return facts


def further_facts(
    source: Any, held_out: Any, tokenizer: PreTrainedTokenizerBase, config: RunConfig, columns: Iterable[str]
) -> dict[str, Any]:
    """Return facts about further columns alone: those that rewards read, once that is known."""
    names = set(columns)
    if not names:
        return {}
    facts = row_facts(placed_sample(source, SAMPLE), tokenizer, config, names, apart_of(held_out))
    return {name: value for name, value in facts.items() if name.rpartition("/")[2] in names}


def apart_of(held_out: Any) -> list[tuple[str, Row]] | None:
    """Return a sample of the rows that are held out."""
    return None if held_out is None else list(placed_sample(held_out, SAMPLE // 2))


def _look(raw, seen, prepare, uncut, collate, tokenizer, config, ends, marks, special) -> None:
    seen.raw += 1
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        seen.identical.append(raw["chosen"] == raw["rejected"])
    result = prepare(raw)
    if isinstance(result, Drop):
        seen.dropped[str(result)] += 1
        seen.unsupervised += "supervised" in str(result)
        if "max_length" in str(result):
            whole = uncut(raw)
            lengths = [] if isinstance(whole, Drop) else _lengths(_as_list(whole), collate, tokenizer, config)
            seen.cut += bool(lengths)
            seen.lost += sum(lengths)
            seen.tokens += sum(lengths)
            seen.lengths += lengths
        return
    rows = _as_list(result)
    seen.rows += len(rows)
    if isinstance(config, RolloutConfig):
        for row in rows:
            size = row["length"]
            seen.lengths.append(size)
            seen.tokens += size
            seen.unknown += _unknown(row.get("prompt_ids", ()), tokenizer)
        return
    whole = uncut(raw) if any(row.get("truncated") for row in rows) else None
    longer = None
    if whole is not None and not isinstance(whole, Drop):
        longer = _lengths(_as_list(whole), collate, tokenizer, config)
    for index, row in enumerate(rows):
        batch = collate(rows=[row], tokenizer=tokenizer, config=config)
        texts = texts_of(batch)
        size = max((len(text.ids) for text in texts), default=0)
        full = longer[index] if longer is not None and index < len(longer) else size
        cut = full > size
        seen.cut += cut
        seen.lost += full - size
        seen.tokens += full
        seen.lengths.append(full)
        seen.texts += [len(text.ids) for text in texts]
        seen.supervised += len(batch.targets)
        seen.without_targets += not len(batch.targets)
        seen.unknown += sum(_unknown(text.ids, tokenizer) for text in texts)
        bos = tokenizer.bos_token_id
        if bos is not None and bos != tokenizer.eos_token_id:
            seen.double_bos.append(any(text.ids[:2] == [bos, bos] for text in texts))
        if not cut:
            seen.ends += _ends(texts, ends)
            seen.empty += _empty(texts, special, tokenizer)
            for mark in marks - ends:
                seen.other_ends[mark] += sum(_ends(texts, {mark}))
        if "chosen_ids" in row:
            seen.chosen.append(len(row["chosen_ids"]))
            seen.rejected.append(len(row["rejected_ids"]))
        elif isinstance(row.get("label"), bool):
            seen.labels.append(row["label"])
        if not cut and index == 0 and texts:
            _hold_prompt(raw, texts[0].ids, seen, tokenizer, config)


def _as_list(result: Any) -> list[Row]:
    return result if isinstance(result, list) else [result]


def _lengths(rows: list[Row], collate: Any, tokenizer: Any, config: RunConfig) -> list[int]:
    """Return the length of the longest text of each prepared row."""
    if isinstance(config, RolloutConfig):
        return [row["length"] for row in rows]
    batches = [collate(rows=[row], tokenizer=tokenizer, config=config) for row in rows]
    return [max((len(text.ids) for text in texts_of(batch)), default=0) for batch in batches]


def _ends(texts: list[Text], ends: set[int]) -> list[bool]:
    """Return for each text with targets of its own whether an end token is among the last ones: templates put a line
    break after it. Tokens that texts share aren't the end of a text; a prompt may be supervised too."""
    last = [[ids for ids, at in zip(text.ids, text.supervised, strict=True) if at][-3:] for text in texts]
    return [bool(ends.intersection(ids)) for ids, text in zip(last, texts, strict=True) if any(text.own)]


def _empty(texts: list[Text], special: set[int], tokenizer: Any) -> list[bool]:
    """Return for each text with targets of its own whether they are no more than special tokens and white space."""
    learnt = [
        [token for token, at in zip(text.ids, text.supervised, strict=True) if at and token not in special]
        for text in texts
        if any(text.own)
    ]
    return [len(ids) < FEW and not tokenizer.decode(ids).strip() for ids in learnt]


def _unknown(ids: Any, tokenizer: Any) -> int:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        return 0
    return list(ids).count(unknown)


def _hold_prompt(raw: Row, text: list[int], seen: _Seen, tokenizer: Any, config: RunConfig) -> None:
    """Return whether the row begins as generation would. The last token of a plain-text prompt may differ: it may merge
    with what comes after it."""
    try:
        ids, prompt = prompt_of(raw, tokenizer, config)
    except RowError:
        return  # plain text, or a prompt that is the common start of two completions
    kept = len(ids) if isinstance(prompt, list) else len(ids) - 1
    if kept > 0:
        seen.mismatched.append(text[:kept] != ids[:kept])


def _facts(seen: _Seen, rows: int | None, tokenizer: Any, config: RunConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {"data/measured": seen.raw}
    if rows is not None:
        facts["data/rows"] = rows
    if not seen.raw:
        return facts
    facts["data/dropped_rows"] = seen.dropped.total() / seen.raw
    facts |= {
        f"data/dropped/{reason}": count / seen.raw
        for reason, count in seen.dropped.items()
        if not any(told in reason for told in TOLD)
    }
    facts |= {f"data/left_out/{kind}": count / seen.raw for kind, count in seen.left_out.items()}
    if seen.supervised or seen.unsupervised:  # otherwise the method has no targets but, for instance, scores
        empty = seen.unsupervised + seen.without_targets
        facts["data/unsupervised_rows"] = empty / max(seen.rows + seen.unsupervised, 1)
        facts["data/supervised_fraction"] = seen.supervised / max(sum(seen.texts), 1)
    if seen.lengths:
        lengths = sorted(seen.lengths)
        facts |= {
            "data/length_p50": lengths[len(lengths) // 2],
            "data/length_p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
            "data/length_max": lengths[-1],
            "data/truncated_rows": seen.cut / len(lengths),
            "data/truncated_tokens": seen.lost / max(seen.tokens, 1),
        }
        if tokenizer.unk_token_id is not None:
            facts["data/unknown_tokens"] = seen.unknown / max(sum(seen.texts) or seen.tokens, 1)
    shares = {
        "eos_rows": seen.ends,
        "empty_completions": seen.empty,
        "double_bos_rows": seen.double_bos,
        "prompt_mismatch_rows": seen.mismatched,
        "identical_pairs": seen.identical,
    }
    facts |= {f"data/{name}": sum(values) / len(values) for name, values in shares.items() if values}
    if seen.other_ends.total():
        facts["data/end_mark"] = tokenizer.convert_ids_to_tokens(seen.other_ends.most_common(1)[0][0])
    if seen.rejected:
        facts["data/length_ratio"] = sum(seen.chosen) / max(sum(seen.rejected), 1)
        pairs = list(zip(seen.chosen, seen.rejected, strict=True))
        facts["data/chosen_longer"] = sum(one > other for one, other in pairs) / len(pairs)
    if seen.labels:
        facts |= {"data/desirable": sum(seen.labels), "data/undesirable": len(seen.labels) - sum(seen.labels)}
    if seen.texts and not config.packing:
        facts["data/padding_share"] = padding_share(seen.texts, config)
    return facts


def padding_share(lengths: list[int], config: RunConfig) -> float:
    """Return the share of padding that rectangles of so many random rows would have."""
    size = config.per_device_train_batch_size
    lengths = list(lengths)
    if config.train_sampling_strategy == "group_by_length":
        lengths.sort()
    else:
        random.Random(0).shuffle(lengths)
    groups = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    full = [group for group in groups if len(group) == size] or groups
    return 1 - sum(map(sum, full)) / sum(len(group) * max(group) for group in full)
