"""How fast a card could be, and how much of that a training used: model FLOPs utilisation (PaLM, arXiv 2204.02311,
appendix B)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Dense products of bfloat16 with float32 sums, in TFLOP/s at boost clock, by what torch calls the card; the first that
# fits counts. NVIDIA's data sheets give most of them with sparsity, which is twice as much.
PEAKS: list[tuple[str, float, str]] = [
    (r"GB200|GB300", 2500.0, "NVIDIA GB200 NVL72 data sheet: 5,000 with sparsity"),
    (r"B200|B300", 2250.0, "NVIDIA HGX B200 data sheet: 4,500 with sparsity"),
    (r"H200 NVL", 835.5, "NVIDIA H200 data sheet: 1,671 with sparsity"),
    (r"H200|GH200", 989.5, "NVIDIA H200 data sheet: 1,979 with sparsity"),
    (r"H100 NVL", 835.5, "NVIDIA H100 NVL product brief: 1,671 with sparsity"),
    (r"H100 PCIe", 756.5, "NVIDIA H100 data sheet: 1,513 with sparsity"),
    (r"H100|H800", 989.5, "NVIDIA H100 data sheet: 1,979 with sparsity"),
    (r"H20\b", 148.0, "NVIDIA H20 data sheet"),
    (r"A100|A800", 312.0, "NVIDIA A100 data sheet"),
    (r"A40\b", 149.7, "NVIDIA A40 data sheet: 299.4 with sparsity"),
    (r"A30\b", 165.0, "NVIDIA A30 data sheet"),
    (r"A10\b", 125.0, "NVIDIA A10 data sheet"),
    (r"L40S", 362.0, "NVIDIA L40S data sheet: 733 with sparsity"),
    (r"L40\b", 181.0, "NVIDIA L40 data sheet: 362 with sparsity"),
    (r"L4\b", 121.0, "NVIDIA L4 data sheet: 242 with sparsity"),
    (r"RTX 5090", 209.5, "NVIDIA RTX Blackwell architecture, appendix A"),
    (r"RTX 4090", 165.2, "NVIDIA Ada GPU architecture, appendix A"),
    (r"RTX 3090(?! Ti)", 71.0, "NVIDIA Ampere GA102 architecture, appendix A"),
    (r"MI300X", 1307.4, "AMD Instinct MI300X data sheet"),
    (r"MI250X", 383.0, "AMD Instinct MI250X data sheet, both dies"),
]


def peak_of(name: str) -> tuple[float, str] | None:
    """The peak of a card in TFLOP/s and where that is from; None for one that the table lacks."""
    return next(((peak, source) for words, peak, source in PEAKS if re.search(rf"\b(?:{words})", name)), None)


@dataclass(frozen=True)
class Model:
    """What the products of a decoder with gated MLPs depend on: the fields of its config."""

    hidden: int
    layers: int
    wide: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Model:
        return cls(
            hidden=fields["hidden_size"],
            layers=fields["num_hidden_layers"],
            wide=fields["intermediate_size"],
            heads=fields["num_attention_heads"],
            groups=fields["num_key_value_heads"],
            head_dim=fields["head_dim"],
            vocabulary=fields["vocab_size"],
            tied=fields["tie_word_embeddings"],
        )

    @property
    def in_layers(self) -> int:
        """Weights of the layers' matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.groups)
        return self.layers * (attention + 3 * self.hidden * self.wide)

    @property
    def parameters(self) -> int:
        """All weights, but for those of the norms."""
        return self.in_layers + self.hidden * self.vocabulary * (1 if self.tied else 2)


def flops_of(
    model: Model, tokens: float, supervised: float, context: float, *, frozen: bool = False, reference: bool = False
) -> float:
    """Floating-point operations that training needs for so many tokens, `supervised` of which go through the head.

    `context`: tokens of the row that a token is in, on average over tokens; with a causal mask it sees half of them.
    `frozen`: an adapter is trained, so that no gradients of the other weights are made. `reference`: a frozen model
    reads the tokens too. What is computed again under gradient checkpointing isn't counted, nor the products of an
    adapter itself.
    """
    products = 2 * model.in_layers * tokens + 2 * model.hidden * model.vocabulary * supervised
    attention = 2 * model.layers * model.heads * model.head_dim * context * tokens
    # a forward, and in the backward as much again for gradients of inputs and, where they are trained, of weights
    return products * ((2 if frozen else 3) + reference) + attention * (3 + reference)
