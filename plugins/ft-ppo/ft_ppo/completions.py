"""The token after which completions are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ft_host.api import ConfigError


def stop_token_of(config: Any, tokenizer: Any) -> int | None:
    """Return the id of the token after which completions are cut. Raises ConfigError for a text that isn't
    one token.
    """
    if config.stop_token is None:
        return config.stop_token_id
    ids = tokenizer(config.stop_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"stop_token: {config.stop_token!r} is {len(ids)} tokens of this tokenizer, expected one that it knows;"
            " name another, or give its id as stop_token_id"
        )
    return ids[0]


def cut_after(completion: Any, token: int | None) -> Any:
    """Return the completion up to the first such token, which counts as its end."""
    if token not in completion.token_ids:
        return completion
    size = completion.token_ids.index(token) + 1
    lists = {name: getattr(completion, name)[:size] for name in ("token_ids", "logprobs", "sampled", "versions")}
    return replace(completion, finish_reason="stop", **lists)
