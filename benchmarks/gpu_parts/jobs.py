"""What gpu.py asks of ft-host and of TRL: the work on a card, and the same work in small for a rehearsal on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import work

Fields = dict[str, Any]

# The published shapes of Qwen3: the smaller one has two query heads for a key head, the larger one four.
QWEN3_600M = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
QWEN3_8B = QWEN3_600M | {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "intermediate_size": 12_288,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
RANK = 16  # of adapters
GENERATIONS = 8  # completions of a prompt


@dataclass(frozen=True)
class Scale:
    """How large the work is. Spreads are of words, one of which is about a token (see work.py)."""

    shapes: dict[str, Fields]
    tokens_known: int  # of the tokenizer, before it is filled up to the model's vocabulary
    skip: int  # steps that aren't counted: kernels are compiled and chosen in them
    online_skip: int  # of GRPO, which compares its sampler's log-probs with the policy's in the first two
    measured: int
    large_measured: int  # of the larger model
    max_length: int
    rows: int  # of an optimizer step of SFT
    row: tuple[work.Spread, work.Spread]  # its prompt and its completion
    pairs: int  # of an optimizer step of DPO
    pair: tuple[work.Spread, work.Spread]
    prompts: int  # of an optimizer step of GRPO
    prompt_words: float
    new_tokens: int
    traced_tokens: int  # of a completion of GRPO's trace, which has an event for each kernel
    layer_tokens: int  # of a pass of layers alone
    layer_repeats: int


ON_A_CARD = Scale(
    shapes={"0.6B": QWEN3_600M, "8B": QWEN3_8B},
    tokens_known=8192,
    skip=3,
    online_skip=2,
    measured=8,
    large_measured=4,
    max_length=1024,
    rows=32,
    row=((150, 0.5), (330, 0.5)),
    pairs=16,
    pair=((245, 0.3), (150, 0.5)),
    prompts=16,
    prompt_words=95,
    new_tokens=256,
    traced_tokens=12,
    layer_tokens=8192,
    layer_repeats=20,
)
REHEARSAL = Scale(
    shapes={"0.6B": SMALL, "8B": SMALL | {"num_attention_heads": 8, "tie_word_embeddings": False}},
    tokens_known=512,
    skip=1,
    online_skip=1,
    measured=1,
    large_measured=1,
    max_length=64,
    rows=4,
    row=((8, 0.3), (12, 0.3)),
    pairs=4,
    pair=((8, 0.3), (8, 0.3)),
    prompts=2,
    prompt_words=8,
    new_tokens=6,
    traced_tokens=4,
    layer_tokens=64,
    layer_repeats=1,
)


@dataclass(frozen=True)
class Side:
    """One of those that do a job: `side` is a key of sides.py, `fields` are its own, `both` differs from the job's."""

    label: str
    side: str
    fields: Fields = field(default_factory=dict)
    both: Fields = field(default_factory=dict)
    traced: bool = False
    same_rows: bool = True  # whether each step has the rows of ft-host's, so that losses can be compared


@dataclass(frozen=True)
class Job:
    """A training that several do, each in a process of its own, one after the other."""

    name: str
    title: str
    method: str
    model: str  # a key of Scale.shapes
    both: Fields
    sides: list[Side]
    skip: int
    measured: int
    needs: float  # seconds below which a side of it isn't begun
    rows: str  # "rows", "pairs" or "prompts"
    rows_a_step: int
    lora: int | None = None
    refused: str | None = None  # why it isn't run here


@dataclass(frozen=True)
class Place:
    """What a job may use: gibibytes of the device (None: no limit), packages, and TRL's fastest attention."""

    device: str
    memory_gib: float | None
    packages: dict[str, str | None]
    attention: str | None
    attention_why: str

    def holds(self, gib: float) -> bool:
        return self.memory_gib is None or self.memory_gib >= gib


def micro_batches(place: Place, rows: int, large: bool) -> Fields:
    """Rows of a micro-batch that the memory allows, and whether activations are computed again, for either side.

    A token of the smaller model keeps about 2 MiB for its backward pass, and 32 padded rows have up to 32,000; one of
    the larger model, whose activations are computed again, 0.3 MiB.
    """
    steps = (70, 40, 0) if large else (120, 70, 20, 0)
    share = 2 ** next(number for number, least in enumerate(steps) if place.holds(least))
    size = max(1, rows // share)
    return {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows // size,
        "gradient_checkpointing": large or not place.holds(70),
    }


def base_of(place: Place) -> Fields:
    return {"use_cpu": place.device == "cpu", "bf16": True, "lr_scheduler_type": "constant"}


def best_of_trl(place: Place) -> Fields:
    """What makes TRL faster whatever the method: FlashAttention, and Liger's layers, where they are installed."""
    attention = {"model_init_kwargs": {"dtype": "float32", "attn_implementation": place.attention}}
    liger = {"use_liger_kernel": True} if place.packages.get("liger-kernel") and place.device == "cuda" else {}
    return (attention if place.attention else {}) | liger


def packed(place: Place, scale: Scale, both: Fields) -> tuple[Fields, Fields]:
    """TRL's fields and those of both that it changes, for SFT without padding: with FlashAttention rows are packed into
    blocks. Without it a packed block would need a mask over all its tokens, so that batches of rows of like length
    are faster."""
    if place.attention is None:
        return {}, {"train_sampling_strategy": "group_by_length"}
    mean = sum(words for words, _ in scale.row)
    blocks = max(1, round(both["per_device_train_batch_size"] * mean / scale.max_length))
    return {"packing": True, "packing_strategy": "bfd"}, {"per_device_train_batch_size": blocks}


def sft(scale: Scale, place: Place, model: str, lora: bool, needs: float) -> Job:
    large = model == "8B"
    both = base_of(place) | {
        "learning_rate": 1e-5,
        "max_length": scale.max_length,
        "train_sampling_strategy": "sequential",
        **micro_batches(place, scale.rows, large),
    }
    best, changes = packed(place, scale, both)
    trl = best_of_trl(place) | best
    ours: Fields = {}
    refused = None
    if large:
        # Held in bfloat16: in float32 with Adam's moments it would take 131 GB. Adapters are float32 on both sides.
        trl["model_init_kwargs"] = trl.get("model_init_kwargs", {}) | {"dtype": "bfloat16"}
        ours = {} if lora else {"dtype": "bfloat16"}
        least = 30 if lora else 90
        if not place.holds(least):
            refused = f"needs a card of about {least} GiB; this one has {place.memory_gib:.0f}"
    sides = [Side("ft-host", "ours", ours, traced=not lora), Side("TRL, best", "trl", trl, changes, same_rows=False)]
    if not (large or lora):
        sides.append(Side("TRL, padded", "trl"))
    return Job(
        name=f"sft-{model.lower()}-{'lora' if lora else 'full'}",
        title=f"SFT, {model}, {f'LoRA of rank {RANK}' if lora else 'all weights'}",
        method="sft",
        model=model,
        both=both,
        sides=sides,
        skip=scale.skip,
        measured=scale.large_measured if large else scale.measured,
        needs=needs,
        rows="rows",
        rows_a_step=scale.rows,
        lora=RANK if lora else None,
        refused=refused,
    )


def dpo(scale: Scale, place: Place) -> Job:
    both = base_of(place) | {
        "learning_rate": 1e-6,
        "max_length": scale.max_length,
        "train_sampling_strategy": "sequential",
        **micro_batches(place, scale.pairs, False),
    }
    return Job(
        name="dpo-0.6b",
        title="DPO, 0.6B, all weights, a frozen reference asked at each step",
        method="dpo",
        model="0.6B",
        both=both,
        sides=[
            Side("ft-host", "ours", {"precompute_ref_log_probs": False}, traced=True),
            Side("TRL, best", "trl", best_of_trl(place)),
        ],
        skip=scale.skip,
        measured=scale.measured,
        needs=30,
        rows="pairs",
        rows_a_step=scale.pairs,
    )


def grpo(scale: Scale, place: Place, engine: str) -> Job:
    """`engine`: "own", "vllm", or "trace" for a short step of ft-host with its own, which is traced."""
    completions = scale.prompts * GENERATIONS
    both = base_of(place) | {
        "learning_rate": 1e-6,
        "num_generations": GENERATIONS,
        "max_completion_length": scale.traced_tokens if engine == "trace" else scale.new_tokens,
        **micro_batches(place, completions, False),
    }
    # Logits of the completions, where a side holds them: a quarter of the rows that SFT could take.
    both |= {"per_device_train_batch_size": max(GENERATIONS, both["per_device_train_batch_size"] // 4)}
    both |= {"gradient_accumulation_steps": completions // both["per_device_train_batch_size"]}
    ours: Fields = {"train_sampling_strategy": "sequential"}
    trl = best_of_trl(place) | {"shuffle_dataset": False}
    refused = None
    if engine == "vllm":
        share = 0.3
        settings = {"mode": "inprocess", "gpu_memory_utilization": share, "enforce_eager": False}
        ours |= {"backend": "vllm", "backend_config": settings}
        trl |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": share}
        trl |= {"vllm_max_model_length": 1024}
        if place.device == "cpu":
            refused = "vLLM is run beside a trainer on one GPU only"
        elif not place.packages.get("vllm"):
            refused = "vLLM isn't installed in this environment"
    sides = [Side("ft-host", "ours", ours, traced=engine == "trace")]
    if engine != "trace":
        sides.append(Side("TRL, best", "trl", trl, same_rows=False))  # each samples its own
    names = {"own": "each with its own engine", "vllm": "vLLM in the trainer's process"}
    names["trace"] = f"a step with {scale.traced_tokens} tokens a completion, for its trace"
    return Job(
        name=f"grpo-0.6b-{engine}",
        title=f"GRPO, 0.6B, {scale.prompts} prompts × {GENERATIONS} completions, {names[engine]}",
        method="grpo",
        model="0.6B",
        both=both,
        sides=sides,
        skip=scale.online_skip,
        measured=1 if engine == "trace" else max(1, scale.measured // 4),
        needs=45,
        rows="prompts",
        rows_a_step=scale.prompts,
        refused=refused,
    )


def jobs(scale: Scale, place: Place) -> Iterator[Job]:
    """In the order in which they are done: what is most wanted first, since time may run out."""
    yield sft(scale, place, "0.6B", lora=False, needs=30)
    yield grpo(scale, place, "own")
    yield dpo(scale, place)
    yield sft(scale, place, "8B", lora=True, needs=60)
    yield grpo(scale, place, "vllm")
    yield sft(scale, place, "0.6B", lora=True, needs=30)
    yield sft(scale, place, "8B", lora=False, needs=60)
    yield grpo(scale, place, "trace")
