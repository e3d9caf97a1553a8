"""The sizes of a language model and the number of its weights, from its config alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Kinds of models whose MLP has no gate. Others that are counted have one.
PLAIN_MLP = (
    "bigcode gpt2 gpt_bigcode gpt_neo gpt_neox gptj opt bloom mpt falcon phi starcoder2 codegen nemotron stablelm_epoch"
).split()
TIED = ("gemma", "gemma2", "gemma3_text", "gpt2", "opt", "bloom")  # where the config doesn't say


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes in a model's config."""

    hidden: int
    layers: int
    wide: int  # of the MLP, summed over the experts of a token
    vocabulary: int
    cached: int  # values in the KV cache per token and layer
    queries: int = 0  # values of a token's queries in a layer; 0: as many as `hidden`
    norms: bool = False  # on queries and keys
    chosen: int = 0  # experts of a token; 0: no mixture

    @property
    def query_values(self) -> int:
        return self.queries or self.hidden


def model_sizes_of(fields: Mapping[str, Any]) -> ModelSizes:
    """Return the sizes. `fields`: the config of a language model (the text part), as in its config.json."""
    hidden = fields["hidden_size"]
    heads = fields.get("num_attention_heads") or 1
    groups = fields.get("num_key_value_heads") or heads
    experts = fields.get("num_experts_per_tok")
    wide = fields.get("moe_intermediate_size") if experts else None
    wide = wide or fields.get("intermediate_size") or 4 * hidden
    if isinstance(wide, list):  # one for each layer (Gemma 3n)
        wide = max(wide)
    size = fields.get("head_dim") or hidden // heads
    return ModelSizes(
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        wide=wide * (experts or 1),
        vocabulary=fields.get("vocab_size") or 0,
        cached=2 * groups * size,
        queries=heads * size,
        norms=str(fields.get("model_type")).startswith(("qwen3", "gemma3", "olmo2", "olmo3")),
        chosen=experts or 0,
    )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of weights. `linear`: (inputs, outputs) of each kind of linear layer, by the name that most families have
    for it, with how many there are."""

    embeddings: int
    head: int  # 0 where it is tied to the embeddings
    linear: Mapping[str, tuple[int, int, int]]
    experts: int  # in fused tensors, which are no linear layers
    routers: int
    vectors: int

    @property
    def matrices(self) -> int:
        """All weights of linear layers."""
        return sum(inputs * outputs * times for inputs, outputs, times in self.linear.values())

    @property
    def all(self) -> int:
        return self.embeddings + self.head + self.matrices + self.experts + self.routers + self.vectors

    @property
    def largest(self) -> int:
        """Weights of the largest linear layer."""
        return max(inputs * outputs for inputs, outputs, _ in self.linear.values())

    def adapter(self, rank: int, names: list[str] | None = None) -> int:
        """Return the values of an adapter of this rank on the linear layers of these names, all if none is given."""
        return sum(
            rank * (inputs + outputs) * times
            for name, (inputs, outputs, times) in self.linear.items()
            if names is None or name.rpartition(".")[2] in names
        )


def counts_of(fields: Mapping[str, Any]) -> Counts | None:
    """Return the numbers of weights of a decoder with attention by heads and MLPs or mixtures of them; None for any
    other. `fields` as for `model_sizes_of`. Biases and norms are few, and counted roughly."""
    if not all(fields.get(name) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size")):
        return None
    kinds = set(fields.get("layer_types") or ())
    if fields.get("kv_lora_rank") or kinds - {"full_attention", "sliding_attention"}:
        return None
    shape, kind = model_sizes_of(fields), str(fields.get("model_type"))
    hidden, layers, keys = shape.hidden, shape.layers, shape.cached // 2
    sparse = _sparse_layers(fields, layers) if shape.chosen else 0
    dense = layers - sparse
    linear = {
        "q_proj": (hidden, shape.query_values, layers),
        "k_proj": (hidden, keys, layers),
        "v_proj": (hidden, keys, layers),
        "o_proj": (shape.query_values, hidden, layers),
    }
    wide = fields.get("intermediate_size") or 4 * hidden
    if dense:
        linear |= _mlp(hidden, wide, dense, kind)
    experts = routers = 0
    if sparse:
        number = fields.get("num_experts") or fields.get("num_local_experts") or fields.get("n_routed_experts")
        if number is None:
            return None
        expert = fields.get("moe_intermediate_size") or wide
        experts, routers = sparse * number * 3 * hidden * expert, sparse * number * hidden
        shared = fields.get("shared_expert_intermediate_size") or expert * (fields.get("n_shared_experts") or 0)
        if shared:
            linear |= {f"shared.{name}": size for name, size in _mlp(hidden, shared, sparse, kind).items()}
    tied = fields.get("tie_word_embeddings")
    tied = kind in TIED if tied is None else tied
    return Counts(
        embeddings=shape.vocabulary * hidden,
        head=0 if tied else shape.vocabulary * hidden,
        linear=linear,
        experts=experts,
        routers=routers,
        vectors=(2 * layers + 1) * hidden,
    )


def _mlp(hidden: int, wide: int, times: int, kind: str) -> dict[str, tuple[int, int, int]]:
    gate = {} if kind in PLAIN_MLP else {"gate_proj": (hidden, wide, times)}
    return {**gate, "up_proj": (hidden, wide, times), "down_proj": (wide, hidden, times)}


def _sparse_layers(fields: Mapping[str, Any], layers: int) -> int:
    """Return how many layers are mixtures, in the ways in which configs say it."""
    step = fields.get("decoder_sparse_step") or 1
    left_out = set(fields.get("mlp_only_layers") or ())
    first = fields.get("first_k_dense_replace") or 0
    return sum(index >= first and index not in left_out and (index + 1) % step == 0 for index in range(layers))
