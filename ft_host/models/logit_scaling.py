"""What a model does to its logits before the softmax: scale, soft cap, temperature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogitScaling:
    """The transform of logits: `softcap * tanh(scale * logits / softcap) / temperature`, each factor optional.

    Scale and soft cap are the model's, the temperature is the caller's.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """The derivative of the result by the product of states and matrix, without the bend of the soft cap."""
        return self.scale / self.temperature


# Config attribute -> what it means. Read from the fields that a config class declares; a model that does something else
# to its logits is found out by the probe in load.py, which compares with the model's own logits.
SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
}
MULTIPLIES = {"hyperclovax"}  # model types whose logits_scaling multiplies
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


def logit_scaling_of(config: Any) -> LogitScaling:
    """Return the scale and soft cap that a model's config (its text config) declares."""
    fields = config.to_dict()
    scale = 1.0
    for name, meaning in SCALES.items():
        if fields.get(name) is not None:
            value = float(fields[name])
            scale *= value if config.model_type in MULTIPLIES else meaning(value)
    if fields.get("dim_model_base") is not None:  # MiniCPM: by how much wider it is than the model it was tuned on
        scale *= fields["dim_model_base"] / fields["hidden_size"]
    caps = [float(fields[name]) for name in SOFTCAPS if fields.get(name) is not None]
    return LogitScaling(scale, caps[0] if caps else None)
