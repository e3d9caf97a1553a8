"""Numbers of a model's own config, and of an adapter's, that rules compare with usual ones: known before weights are
loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.models.folder import adapter_of, base_of, find_config
from ft_host.util.adapters import settings_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig

# Parts of the names that are looked at: architectures have a dozen names for a dropout.
PARTS = ("dropout", "pdrop", "_eps", "epsilon", "rope_theta", "softcapping", "initializer_range", "jitter")


def own_settings(config: RunConfig) -> dict[str, Any]:
    """Return facts: `model/settings`, {name: number} of the model's config; and of an adapter `model/adapter`, its
    folder, `model/adapter_rslora`, and `model/adapter_ranks`, {part: [rank, alpha]}, with the rest of it as "". Raises
    ConfigError for what is no model."""
    folder = adapter_of(config.model)
    place = base_of(config.model, config.lora_base_model)
    settings = find_config(place, "model", config.model_revision, config.trust_remote_code).get_text_config().to_dict()
    rope = settings.get("rope_parameters") or {}
    numbers = {name: value for name, value in {**rope, **settings}.items() if _is_compared(name, value)}
    facts: dict[str, Any] = {"model/settings": numbers}
    return facts if folder is None else facts | _of_adapter(folder)


def _is_compared(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and any(part in name for part in PARTS)


def _of_adapter(folder: Path) -> dict[str, Any]:
    settings = settings_of(folder)
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)  # peft's defaults, as it loads it
    parts = {"": [rank, alpha]} | {
        part: [ranks.get(part, rank), alphas.get(part, alpha)] for part in sorted({*ranks, *alphas})
    }
    return {
        "model/adapter": str(folder),
        "model/adapter_rslora": bool(settings.get("use_rslora")),
        "model/adapter_ranks": parts,
    }
