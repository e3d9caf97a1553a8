"""What can be known of the data before a model is loaded, as facts: from a sample of its rows, spread over all of it.

Rows go through the method's own `ft_prepare` and `ft_collate`, so that every method is measured in the same way: a leaf
of a batch's forest is a text that is trained on, its targets are what is supervised. Lengths are those before
`max_length` cuts. Methods with rollouts have prompts only; their rewards are tried by `check_rewards`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.batch import Batch
from ft_host.config.rollout import RolloutConfig
from ft_host.data import Source, prompt_of
from ft_host.data.mixture import Mixture
from ft_host.errors import DataError, RowError
from ft_host.types import Drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Row = dict[str, Any]

SAMPLE = 256  # raw rows that are prepared
SECONDS = 0.8  # that preparing them may take, and as much for comparing rows
COMPARED = 50_000  # raw rows that are looked at for duplicates
HELD_OUT = 5_000  # rows for evaluation that are looked for among them
# What ends a turn in the templates of the field, beside a tokenizer's own EOS.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "</s>",
    "<|END_OF_TURN_TOKEN|>",
    "<|im_sep|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "<eos>",
)
# What a row is known by, where it has any of them: ids, sources and scores beside them don't make it another one.
CONTENT = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "label",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "response",
    "solution",
    "query",
    "prompt_ids",
    "completion_ids",
    "chosen_ids",
    "rejected_ids",
    "input_ids",
    "labels",
)
PROMPTS = ("prompt", "question", "instruction", "query")


@dataclass
class _Seen:
    """Of the sample."""

    raw: int = 0
    dropped: int = 0
    unsupervised: int = 0
    rows: int = 0  # prepared
    cut: int = 0
    tokens: int = 0  # before anything was cut
    lost: int = 0
    lengths: list[int] = field(default_factory=list)  # of the longest text of each row, before anything was cut
    texts: list[int] = field(default_factory=list)  # of each text, as it is trained on
    supervised: int = 0
    without_targets: int = 0
    ends: list[bool] = field(default_factory=list)
    double_bos: list[bool] = field(default_factory=list)
    unknown: int = 0
    mismatched: list[bool] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)


def data_facts(
    source: Any,
    held_out: Any,
    prepare: Callable[[Row], Any],
    uncut: Callable[[Row], Any],
    collate: Callable[..., Batch],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
) -> dict[str, Any]:
    """Facts by name. `uncut` is `prepare` without `max_length`; `held_out` the evaluation data, or None.

    A row that can't be read or used at all ends the sample: it is refused, with its place, when its turn comes.
    """
    seen, end = _Seen(), time.monotonic() + SECONDS
    ends = end_tokens(tokenizer, config)
    for raw in sample_of(source, SAMPLE):
        try:
            _look(raw, seen, prepare, uncut, collate, tokenizer, config, ends)
        except DataError:
            break
        if time.monotonic() > end:
            break
    facts = _facts(seen, source.num_rows, tokenizer, config)
    if source.num_rows is not None:
        facts |= compare(source, held_out)
    return facts


def sample_of(source: Any, count: int) -> Iterator[Row]:
    """Up to `count` raw rows, at even distances; of a stream its first ones."""
    if not isinstance(source, (Source, Mixture)):
        return readable(row for _, row in itertools.islice(source.stream(), count))
    size = source.num_rows
    count = min(count, size)
    return readable(source.read(index * size // count) for index in range(count))


def readable(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows up to one that can't be read."""
    try:
        yield from rows
    except DataError:
        return


def end_tokens(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> set[int]:
    """The tokens that generation ends at: EOS, what the model's generation config says, and what ends a turn."""
    vocabulary = tokenizer.get_vocab()
    found = {tokenizer.eos_token_id, *(vocabulary.get(name) for name in ENDS)}
    path = Path(config.model) / "generation_config.json"
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        found |= set(told) if isinstance(told, list) else {told}
    return found - {None}


def _look(raw, seen, prepare, uncut, collate, tokenizer, config, ends) -> None:
    seen.raw += 1
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        seen.identical.append(raw["chosen"] == raw["rejected"])
    result = prepare(raw)
    if isinstance(result, Drop):
        seen.dropped += 1
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
        size = max(len(text) for text in texts)
        full = longer[index] if longer is not None and index < len(longer) else size
        cut = full > size
        seen.cut += cut
        seen.lost += full - size
        seen.tokens += full
        seen.lengths.append(full)
        seen.texts += [len(text) for text in texts]
        seen.supervised += len(batch.targets)
        seen.without_targets += not len(batch.targets)
        seen.unknown += sum(_unknown(text, tokenizer) for text in texts)
        bos = tokenizer.bos_token_id
        if bos is not None and bos != tokenizer.eos_token_id:
            seen.double_bos.append(any(text[:2] == [bos, bos] for text in texts))
        if not cut:
            seen.ends += _ends(batch, ends)
        if "chosen_ids" in row:
            seen.chosen.append(len(row["chosen_ids"]))
            seen.rejected.append(len(row["rejected_ids"]))
        elif isinstance(row.get("label"), bool):
            seen.labels.append(row["label"])
        if not cut and index == 0:
            _hold_prompt(raw, texts[0], seen, tokenizer, config)


def _as_list(result: Any) -> list[Row]:
    return result if isinstance(result, list) else [result]


def _lengths(rows: list[Row], collate: Any, tokenizer: Any, config: RunConfig) -> list[int]:
    """Of the longest text of each prepared row."""
    if isinstance(config, RolloutConfig):
        return [row["length"] for row in rows]
    batches = [collate(rows=[row], tokenizer=tokenizer, config=config) for row in rows]
    return [max(len(text) for text in texts_of(batch)) for batch in batches]


def texts_of(batch: Batch) -> list[list[int]]:
    """The whole texts of a batch: each leaf of its flat_batch, with what it follows on."""
    ids, start, found = batch.input_ids.tolist(), 0, []
    for size, parent in zip(batch.lengths, batch.parents, strict=True):
        found.append((found[parent] if parent >= 0 else []) + ids[start : start + size])
        start += size
    inner = set(batch.parents)
    return [text for index, text in enumerate(found) if index not in inner]


def _ends(batch: Batch, ends: set[int]) -> list[bool]:
    """Of each row with targets: whether an end token is among its last ones. Templates put a line break after it."""
    last: dict[int, list[int]] = {}
    for row, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
        last.setdefault(row, []).append(target)
    return [bool(ends.intersection(targets[-3:])) for targets in last.values()]


def _unknown(ids: Any, tokenizer: Any) -> int:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        return 0
    return list(ids).count(unknown)


def _hold_prompt(raw: Row, text: list[int], seen: _Seen, tokenizer: Any, config: RunConfig) -> None:
    """Whether the row begins with what generation would begin with. The last token of a prompt that is plain text may
    be another one: it may merge with what comes after it."""
    try:
        ids, prompt = prompt_of(raw, tokenizer, config)
    except RowError:
        return  # plain text, or a prompt that is found by comparing two completions
    kept = len(ids) if isinstance(prompt, list) else len(ids) - 1
    if kept > 0:
        seen.mismatched.append(text[:kept] != ids[:kept])


def _facts(seen: _Seen, rows: int | None, tokenizer: Any, config: RunConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {"data/measured": seen.raw}
    if rows is not None:
        facts["data/rows"] = rows
    if not seen.raw:
        return facts
    facts["data/dropped_rows"] = seen.dropped / seen.raw
    if seen.supervised or seen.unsupervised:  # else the method has no targets, but scores for instance
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
        "double_bos_rows": seen.double_bos,
        "prompt_mismatch_rows": seen.mismatched,
        "identical_pairs": seen.identical,
    }
    facts |= {f"data/{name}": sum(values) / len(values) for name, values in shares.items() if values}
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
    """What rectangles of so many random rows would hold of padding."""
    size = config.per_device_train_batch_size
    lengths = list(lengths)
    if config.train_sampling_strategy == "group_by_length":
        lengths.sort()
    else:
        random.Random(0).shuffle(lengths)
    groups = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    full = [group for group in groups if len(group) == size] or groups
    return 1 - sum(map(sum, full)) / sum(len(group) * max(group) for group in full)


# ---------------------------------------------------------------- rows against rows


def compare(source: Any, held_out: Any) -> dict[str, Any]:
    """Rows that are there twice, and rows for evaluation that are trained on; whitespace and case apart."""
    end = time.monotonic() + SECONDS
    whole: dict[int, int] = {}
    prompts: set[int] = set()
    count = 0
    for row in sample_of(source, COMPARED):
        name = name_of(row)
        whole[name] = whole.get(name, 0) + 1
        prompts |= prompt_name(row)
        count += 1
        if time.monotonic() > end:
            break
    facts: dict[str, Any] = {"data/duplicate_rows": 1 - len(whole) / max(count, 1), "data/compared": count}
    if held_out is None:
        return facts
    rows = same = asked = shared = 0
    for row in sample_of(held_out, HELD_OUT):
        rows += 1
        same += name_of(row) in whole
        prompt = prompt_name(row)
        asked += bool(prompt)
        shared += bool(prompt & prompts)
        if time.monotonic() > end + SECONDS:
            break
    facts["data/eval_overlap_rows"] = same / max(rows, 1)
    if asked:
        facts["data/eval_overlap_prompts"] = shared / asked
    return facts


def name_of(row: Row) -> int:
    """A hash of what the row says."""
    columns = [name for name in CONTENT if row.get(name) is not None]
    return _hash([row[name] for name in columns] if columns else sorted((name, str(row[name])) for name in row))


def prompt_name(row: Row) -> set[int]:
    """A hash of what the row asks; empty where that is no column."""
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    return set() if column is None else {_hash([row[column], row.get("input") if column == "instruction" else None])}


def _hash(value: Any) -> int:
    text = " ".join(json.dumps(value, ensure_ascii=False, default=str).replace("\\n", " ").lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
