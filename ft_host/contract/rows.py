"""What hooks of rows, batches and models return: `ft_prepare`, `ft_collate`, `ft_annotate`, `ft_step`, `ft_models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.batch import Batch
from ft_host.contract.blame import blamed, fault, shown
from ft_host.types import Drop, ModelSpec, Row

if TYPE_CHECKING:
    from pluggy import PluginManager
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig


TENSORS = ("input_ids", "position_ids", "sources", "targets", "rows", "ends")  # of each batch
PREPARED = "expected a row (a dict that holds `length`, a whole number), a list of rows, or Drop(reason)"


def prepare(
    plugins: PluginManager, row: Row, tokenizer: PreTrainedTokenizerBase, config: RunConfig
) -> Row | list[Row] | Drop:
    """`ft_prepare` of one raw row. Raises HookError for something else than rows or a Drop."""
    with blamed(plugins, "ft_prepare"):
        result = plugins.hook.ft_prepare(row=row, tokenizer=tokenizer, config=config)
    if isinstance(result, Drop):
        return result
    for each in result if isinstance(result, list) else [result]:
        if not isinstance(each, dict):
            raise fault(plugins, "ft_prepare", f"returned {shown(result)}; {PREPARED}")
        if not isinstance(each.get("length"), int):
            raise fault(plugins, "ft_prepare", f"returned a row with length={each.get('length')!r}; {PREPARED}")
    return result


def collate(plugins: PluginManager, rows: list[Row], tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Batch:
    """`ft_collate` of the rows of a micro-batch. Raises HookError for something else than a whole `Batch`."""
    with blamed(plugins, "ft_collate"):
        batch = plugins.hook.ft_collate(rows=rows, tokenizer=tokenizer, config=config)
    _check_batch(plugins, batch)
    return batch


def _check_batch(plugins: PluginManager, batch: Any, within: str = "") -> None:
    import torch

    def refuse(what: str, expected: str) -> None:
        raise fault(plugins, "ft_collate", f"returned {within}{what}; expected {expected}")

    if not isinstance(batch, Batch):
        refuse(shown(batch), "a Batch, as flat_batch(segments, num_rows=...) of ft_host.api makes it")
    tensors = {name: vars(batch)[name] for name in TENSORS} | {
        f"columns[{name!r}]": value for name, value in batch.columns.items()
    }
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            refuse(f"{name} as {shown(value)}", "a tensor")
    rows = batch.rows
    if len(rows) and (most := int(rows.max())) >= batch.num_rows:
        refuse(f"num_rows={batch.num_rows} with a target of row {most}", f"num_rows of {most + 1} at least")
    if not isinstance(batch.counts, dict):
        refuse(f"counts={shown(batch.counts)}", "a dict of numbers")
    for name, value in batch.counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            refuse(f"counts[{name!r}] as {shown(value)}", "a number, not a tensor")
    for name, linked in batch.linked.items():
        _check_batch(plugins, linked, f"in linked[{name!r}] {within}")


def same_rows(plugins: PluginManager, hook: str, rows: list[Row], found: Any) -> list[Row]:
    """What a hook returned for `rows`, or the rows themselves for None. Raises HookError for other rows."""
    if found is None:
        return rows
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise fault(plugins, hook, f"returned {shown(found)}; expected the list of rows, or None")
    if len(found) != len(rows):
        raise fault(plugins, hook, f"was given {len(rows)} rows and gave {len(found)}; expected each of them, in order")
    return found


def models_of(plugins: PluginManager, config: RunConfig) -> dict[str, ModelSpec]:
    """`ft_models` by role; {} where the method has none. Raises HookError for what isn't a ModelSpec."""
    with blamed(plugins, "ft_models"):
        found = plugins.hook.ft_models(config=config)
    expected = 'expected a dict of ModelSpec by role, such as {"reference": ModelSpec()}'
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise fault(plugins, "ft_models", f"returned {shown(found)}; {expected}")
    for role, spec in found.items():
        if not isinstance(role, str) or not isinstance(spec, ModelSpec):
            raise fault(plugins, "ft_models", f"returned {role!r}: {shown(spec)}; {expected}")
    return dict(found)
