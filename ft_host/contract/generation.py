"""What hooks of generation return: `ft_generate`, `ft_score`, `ft_rollout`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ft_host.contract.blame import fault, shown
from ft_host.contract.loss import check_metrics
from ft_host.types import Completion, Rollout, Row, Scores

if TYPE_CHECKING:
    from pluggy import PluginManager

    from ft_host.config import RunConfig


REASONS = ("stop", "length")
TRIED = 16  # rows of a rollout that are tried as JSON


def check_completions(plugins: PluginManager, found: Any, asked: int, rollouts: bool) -> list[Completion]:
    """What `ft_generate` returned for `asked` requests. In a run with rollouts each token has its log-prob. Raises
    HookError."""

    def refuse(what: str, expected: str) -> None:
        raise fault(plugins, "ft_generate", f"returned {what}; expected {expected}")

    if not isinstance(found, list) or len(found) != asked:
        what = f"{len(found)} completions for {asked} requests" if isinstance(found, list) else shown(found)
        refuse(what, "a list of one Completion for each request, in order")
    for index, each in enumerate(found):
        if not isinstance(each, Completion):
            refuse(f"{shown(each)} for request {index}", "a Completion")
        size = len(each.token_ids)
        if not all(isinstance(token, int) for token in each.token_ids):
            refuse(f"token_ids {shown(each.token_ids)} for request {index}", "whole numbers")
        if len(each.logprobs) not in ((size,) if rollouts else (0, size)):
            refuse(f"{len(each.logprobs)} logprobs for the {size} token_ids of request {index}", "one for each token")
        if len(each.sampled) not in (0, size):
            refuse(f"{len(each.sampled)} values of sampled for the {size} token_ids of request {index}", "one each")
        if each.finish_reason not in REASONS:
            refuse(f"finish_reason={each.finish_reason!r} for request {index}", " or ".join(map(repr, REASONS)))
    return found


def check_scores(plugins: PluginManager, found: Any, asked: int) -> list[Scores]:
    """What `ft_score` returned for `asked` sequences. Raises HookError."""
    if not isinstance(found, list) or len(found) != asked or not all(isinstance(each, Scores) for each in found):
        what = f"{len(found)} values for {asked} sequences" if isinstance(found, list) else shown(found)
        raise fault(plugins, "ft_score", f"returned {what}; expected a list of Scores, one for each sequence, in order")
    return found


def check_rollout(plugins: PluginManager, found: Any) -> Rollout:
    """What `ft_rollout` returned. Raises HookError."""
    hook = "ft_rollout"
    if not isinstance(found, Rollout):
        raise fault(plugins, hook, f"returned {shown(found)}; expected Rollout(rows=..., metrics=..., samples=...)")
    if not isinstance(found.rows, list) or not all(isinstance(row, dict) for row in found.rows):
        raise fault(plugins, hook, f"returned rows={shown(found.rows)}; expected a list of dicts")
    check_metrics(plugins, hook, found.metrics)
    if found.samples and len(found.samples) != len(found.rows):
        what = f"gave {len(found.samples)} samples for {len(found.rows)} rows"
        raise fault(plugins, hook, f"{what}; expected one a row, or none")
    _check_columns(plugins, found.rows, {"group": "the number that the prompt's row has"})
    if found.samples and not all(isinstance(row.get("completion_ids"), list) for row in found.rows):
        what = "returned samples for rows without completion_ids"
        raise fault(plugins, hook, f"{what}; expected the token ids of each completion, whose number is shown")
    return found


def check_annotated(plugins: PluginManager, rows: list[Row], config: RunConfig) -> None:
    """Rows of a rollout as they are kept, after `ft_annotate`. Raises HookError for what the host needs of them."""
    needed = {"length": "its tokens, prompt included"}
    if config.max_tokens_per_micro_batch is not None:
        needed["shared"] = "tokens that rows of its group have in common, for max_tokens_per_micro_batch"
    _check_columns(plugins, rows, needed)


def _check_columns(plugins: PluginManager, rows: list[Row], needed: dict[str, str]) -> None:
    for row in rows:
        for name, meaning in needed.items():
            if isinstance(row.get(name), bool) or not isinstance(row.get(name), int):
                came = f"{name}={row[name]!r}" if name in row else f"no {name!r}"
                raise fault(
                    plugins,
                    "ft_rollout",
                    f"returned a row with {came}; expected {name}, a whole number: {meaning} (completion_row of "
                    "ft_host.api makes such rows)",
                )


def check_json(plugins: PluginManager, hook: str, rows: list[Row]) -> None:
    """Try some rows of a rollout as a checkpoint will have them. Raises HookError with the column that JSON can't
    hold."""
    for row in rows[:TRIED]:
        for name, value in row.items():
            try:
                json.dumps({name: value})
            except (TypeError, ValueError) as error:
                raise fault(
                    plugins,
                    hook,
                    f"returned a row whose column {name!r} is {shown(value)}: {error}. Rows of a rollout are kept in "
                    "checkpoints; expected what JSON can hold: numbers, texts, lists and dicts (tensor.tolist())",
                ) from error


def check_state(plugins: PluginManager, state: dict[str, Any]) -> None:
    """Raise HookError for what a method keeps in `run.state` and a checkpoint can't hold as it is."""
    for name, value in state.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise fault(
                plugins,
                "ft_loss",
                f"or another hook of its plugin keeps run.state[{name!r}], {shown(value)}: {error}. It is kept in "
                "checkpoints; expected what JSON can hold: numbers, texts, lists and dicts (tensor.tolist())",
            ) from error
