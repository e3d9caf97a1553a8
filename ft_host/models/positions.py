"""How many tokens a model can read at once: known from its config, before its weights are loaded.

A model with a table of positions (learned ones, or sines that it looks up) fails beyond its end. One with rotary
positions reads on, but beyond `max_position_embeddings` it sees angles that it wasn't trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ft_host.errors import ConfigError, DataError
from ft_host.models.folder import auto_class, base_of, find_config
from ft_host.types import ModelSpec

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.config import RunConfig

SPARE = 8  # rows that some tables have beyond the positions, for padding
# Kinds of rope whose max_position_embeddings is the length that the scaled model is for; of others it is multiplied.
SCALED = ("default", "llama3", "longrope", "su", "mrope", "proportional")


@dataclass(frozen=True)
class Positions:
    """`table`: the most tokens that the model can read; None without a table. `trained`: the most that its rotary
    positions are meant for; None where its config names none."""

    table: int | None = None
    trained: int | None = None


def positions_of(name: str, field: str, revision: str | None, trust_remote_code: bool) -> Positions:
    """Return the positions of a folder or hub id. Raises ConfigError, which names `field`, where it has no config."""
    config = find_config(name, field, revision, trust_remote_code)
    settings = config.get_text_config()
    limit = limit_of(settings)
    if limit is None:
        return Positions()
    fields = settings.to_dict()
    rope = fields.get("rope_parameters") or fields.get("rope_scaling")
    if rope or "rope_theta" in fields:
        return Positions(trained=scaled(limit, rope or {}))
    with torch.device("meta"):
        model = auto_class(config, None).from_config(config, trust_remote_code=trust_remote_code)
    return Positions(table=table_of(model))


def limit_of(settings: Any) -> int | None:
    """Return a text config's max_position_embeddings. Some have it under another name that only attribute access
    maps; not every architecture has one."""
    limit = getattr(settings, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def scaled(limit: int, rope: dict[str, Any]) -> int:
    """Return the length that rotary positions are scaled to."""
    kinds = [each for each in rope.values() if isinstance(each, dict)] or [rope]  # some have one for each kind of layer
    found = [limit]
    for each in kinds:
        factor = each.get("factor") or 1
        if each.get("rope_type", each.get("type", "default")) not in SCALED:
            found.append(int((each.get("original_max_position_embeddings") or limit) * factor))
    return max(found)


def table_of(model: nn.Module) -> int | None:
    """Return the most positions of a model that looks them up in a table; None for one without."""
    limit = limit_of(model.config.get_text_config())
    if limit is None:
        return None
    words = model.get_input_embeddings()
    tables = [each.weight for each in model.modules() if isinstance(each, nn.Embedding) and each is not words]
    tables += [buffer for buffer in model.buffers() if buffer.ndim == 2]
    return limit if any(limit <= table.shape[0] <= limit + SPARE for table in tables) else None


def fit_rows(config: RunConfig, specs: dict[str, ModelSpec]) -> tuple[list[str], dict[str, int]]:
    """Limit `max_length` to the positions of the models that read a run's rows: the policy and those of `specs`.

    Where `max_length` is the default, or none, it becomes the limit; the sentences returned say so. The facts are what
    rules go by. Raises ConfigError, which names the field, for a `max_length` or completions beyond a table.
    """
    from ft_host.config.rollout import RolloutConfig

    read = {"model": (config.model, config.model_revision)}
    for role, spec in specs.items():
        if spec.source is not None and not spec.own_tokenizer:
            read[spec.field or role] = (spec.source, spec.revision)
    found = {
        field: (name, positions_of(base_in(config, name, field), field, revision, config.trust_remote_code))
        for field, (name, revision) in read.items()
    }
    tables = {field: at.table for field, (_, at) in found.items() if at.table is not None}
    trained = [at.trained for _, at in found.values() if at.trained is not None]
    completion = config.max_completion_length if isinstance(config, RolloutConfig) else 0
    facts = {"model/trained_positions": min(trained)} if trained else {}
    if tables or trained:
        facts["model/row_limit"] = min([*tables.values(), *trained]) - completion  # what max_length should be at most
    if not tables:
        return [], facts
    field = min(tables, key=lambda each: tables[each])
    most, owner = tables[field], f"{found[field][0]} ({field})"
    facts["model/positions"] = most
    if completion >= most:
        raise ConfigError(
            f"max_completion_length: {completion} leaves no room for a prompt: {owner} has {most} positions"
        )
    asked, usual = config.max_length, type(config).max_length
    if asked is not None and asked + completion <= most:
        return [], facts
    if asked is not None and asked != usual and (asked > most or field != "model"):
        with_it = f" with max_completion_length {completion}" if completion else ""
        raise ConfigError(
            f"max_length: {asked}{with_it} is more than {owner} can read, which has {most} positions and fails beyond; "
            f"expected at most {most - completion}"
        )
    if asked is not None and asked != usual:
        return [
            f"a prompt of max_length {asked} leaves {most - asked} tokens for its completion: {owner} has {most}"
        ], facts
    config.max_length = most - completion
    what = "longer prompts are left out, so that completions fit" if completion else "longer rows are cut"
    return [f"max_length is {config.max_length}, as {owner} has {most} positions and fails beyond; {what}"], facts


def scoring_limits(config: RunConfig) -> list[str]:
    """Return a sentence for each reward model with a table of positions that prompt and completion may go beyond. It
    reads them with a tokenizer of its own, so that it is known only when it scores them."""
    from ft_host.config.rollout import RolloutConfig

    said, length = [], (config.max_length or 0) + config.max_completion_length
    for name in {*config.eval_reward, *(config.reward if isinstance(config, RolloutConfig) else ())}:
        if (Path(name) / "config.json").is_file():
            table = positions_of(name, "reward", None, config.trust_remote_code).table
            if table is not None and (not config.max_length or length > table):
                said.append(
                    f"the reward model {name} has {table} positions: a prompt and completion of more end the run"
                )
    return said


def beyond_training(config: RunConfig, facts: dict[str, Any]) -> list[str]:
    """Return a sentence where rows are longer than rotary positions are meant for. `facts`: those of the data too."""
    from ft_host.config.rollout import RolloutConfig

    trained, longest = facts.get("model/trained_positions"), facts.get("data/length_max")
    if trained is None or longest is None:
        return []
    if config.max_length is not None:
        joined = config.packing and config.packing_strategy == "wrapped"  # documents of a block are one text
        longest = config.max_length if joined else min(longest, config.max_length)
    longest += config.max_completion_length if isinstance(config, RolloutConfig) else 0
    if longest <= trained:
        return []
    return [
        f"rows have up to {longest} tokens, and {config.model} is meant for {trained} (max_position_embeddings, with "
        f"its rope scaling): beyond them are positions that it wasn't trained on. max_length {trained} cuts there"
    ]


def base_in(config: RunConfig, name: str, field: str) -> str:
    """Return the model that a folder is of: an adapter's base, or itself."""
    return base_of(name, config.lora_base_model if name == config.model else None, field)


def check_lengths(batch: Batch, most: int, name: str) -> None:
    """Refuse a batch with a text longer than a table of positions. Raises DataError, before the device would fail."""
    ends: list[int] = []
    for size, parent in zip(batch.lengths, batch.parents, strict=True):
        ends.append(size + (ends[parent] if parent >= 0 else 0))
    if ends and max(ends) > most:
        raise DataError(
            f"a text of {max(ends)} tokens was given to {name}, which has {most} positions; lower max_length, or the "
            "length of completions"
        )
