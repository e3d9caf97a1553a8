"""The soft cap of attention scores (Gemma 2), which torch's own attention doesn't have."""

from __future__ import annotations

from typing import Any

from ft_host.errors import ConfigError
from ft_host.models.reach import text_part

NAME = "attn_logit_softcapping"


def keep_soft_cap(model: Any, implementation: str | None, field: str) -> None:
    """Take a model that caps its scores off sdpa, which transformers gives it up to 5.20: sdpa leaves the cap out
    there, and the model would be another one. `implementation`: what the config asks for. Raises ConfigError, which
    names the model's `field`, where that is sdpa."""
    part = text_part(model)
    cap = part.config.to_dict().get(NAME)
    if cap is None or part.config._attn_implementation != "sdpa":
        return
    if implementation is not None:
        raise ConfigError(
            f"attn_implementation: sdpa leaves out the soft cap of scores ({NAME}: {cap}) of {field}; leave it out, or "
            "use eager"
        )
    part.set_attn_implementation("eager")
