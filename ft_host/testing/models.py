"""Tiny models with random weights, and a tiny tokenizer, made in code, for tests of hosts and methods.

Two layers, 64 wide, four query heads over two key heads, 256 tokens by default. Weights are larger than usual at
initialisation, so that attention is far from uniform and a wrong mask shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _make(config: Any, seed: int) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.12 if "embed" not in name else 0.3)
    return model


def tiny_llama(seed: int = 0, **overrides: Any) -> Any:
    """Llama: untied embeddings."""
    from transformers import LlamaConfig

    return _make(LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **overrides}), seed)


def tiny_qwen(seed: int = 0, **overrides: Any) -> Any:
    """Qwen3: norms on queries and keys, tied embeddings."""
    from transformers import Qwen3Config

    return _make(Qwen3Config(**{**SIZES, "head_dim": 16, "tie_word_embeddings": True, **overrides}), seed)


def tiny_mistral(seed: int = 0, **overrides: Any) -> Any:
    """A sliding window of 5 tokens."""
    from transformers import MistralConfig

    return _make(MistralConfig(**{**SIZES, "sliding_window": 5, **overrides}), seed)


def tiny_gemma(seed: int = 0, **overrides: Any) -> Any:
    """Gemma 2: soft caps on scores and logits, layers that alternate between a window of 5 tokens and all."""
    from transformers import Gemma2Config

    own = {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_implementation": "eager",  # up to transformers 5.20 it would be sdpa, which has no soft cap
    }
    return _make(Gemma2Config(**{**SIZES, **own, **overrides}), seed)


def tiny_gpt2(seed: int = 0, **overrides: Any) -> Any:
    """Learned positions, no grouped heads, tied embeddings."""
    from transformers import GPT2Config

    own = {"vocab_size": 256, "n_positions": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _make(GPT2Config(**{**own, **ids, **quiet, **overrides}), seed)


def tiny_moe(seed: int = 0, **overrides: Any) -> Any:
    """Qwen3-MoE: four experts, two a token."""
    from transformers import Qwen3MoeConfig

    own = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _make(Qwen3MoeConfig(**{**SIZES, **own, "norm_topk_prob": True, **overrides}), seed)


def tiny_gpt_oss(seed: int = 0, **overrides: Any) -> Any:
    """Attention sinks, windows in every other layer, experts."""
    from transformers import GptOssConfig

    own = {
        "head_dim": 16,
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return _make(GptOssConfig(**{**SIZES, **own, **overrides}), seed)


def tiny_mamba(seed: int = 0, **overrides: Any) -> Any:
    """No attention at all."""
    from transformers import MambaConfig

    own = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return _make(MambaConfig(**{**own, **ids, **overrides}), seed)


FAMILIES = {
    "llama": tiny_llama,
    "qwen": tiny_qwen,
    "mistral": tiny_mistral,
    "gemma": tiny_gemma,
    "gpt2": tiny_gpt2,
    "moe": tiny_moe,
    "gpt_oss": tiny_gpt_oss,
    "mamba": tiny_mamba,
}


def as_classifier(model: Any, seed: int = 0, num_labels: int = 1) -> Any:
    """The sequence classifier that transformers has for a causal model: its weights, and a head of large ones."""
    from transformers import AutoModelForSequenceClassification

    config = type(model.config)(**{**model.config.to_dict(), "num_labels": num_labels, "architectures": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            classifier.score.weight.normal_(std=0.12)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    return classifier


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "what is 12 plus 30? 12 plus 30 is 42.",
    "a small model learns a small task, step by step",
    "question: how many apples are left? answer: three apples are left",
]


def tiny_tokenizer(vocab_size: int = 256, chat: bool = True) -> Any:
    """A byte-level BPE tokenizer, trained on a few lines: any text goes through it and comes back unchanged.

    Its alphabet would be 256 bytes; here it is the printable ASCII and newline, so that the tiny models' 256 tokens
    leave room for merges. <pad> is 0, <s> 1, </s> 2; <|user|>, <|assistant|>, <|system|> and <|end|> are tokens.
    """
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    fast = byte_level(TEXTS * 2, vocab_size, marks, [chr(code) for code in range(33, 127)])
    fast.pad_token, fast.bos_token, fast.eos_token = "<pad>", "<s>", "</s>"
    if chat:
        fast.chat_template = CHAT_TEMPLATE
        fast.eos_token = "<|end|>"
    return fast


def other_tokenizer(vocab_size: int = 200, eos_token: str = "<|end|>", template: str | None = CHAT_TEMPLATE) -> Any:
    """The same kind, over the same letters, with other merges and other ids: a teacher's, say, whose student has the
    tiny tokenizer."""
    texts = [
        "the apples are quick and brown",
        "42 plus 12 is a small task, step by step, over and over",
        "how many? three left.",
    ]
    marks = ["<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>", eos_token]
    fast = byte_level(texts * 3, vocab_size, marks, [chr(code) for code in range(126, 32, -1)])
    fast.pad_token, fast.eos_token, fast.chat_template = "<pad>", eos_token, template
    return fast


def byte_level(texts: list[str], vocab_size: int, marks: list[str], letters: list[str]) -> Any:
    """Byte-level BPE whose alphabet is `letters`, space and newline, not all 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=[*letters, "\u0120", "\u010a"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def save_tiny(folder: Path | str, model: Any = None, tokenizer: Any = None) -> Path:
    """Write a model and a tokenizer where `from_pretrained`, and so a run's `model` field, finds them."""
    folder = Path(folder)
    (tiny_qwen() if model is None else model).save_pretrained(folder)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def save_family(root: Path, name: str, classifier: bool = False) -> Path:
    """The folder under `root` of a tiny model of FAMILIES, or of its classifier, with the tiny tokenizer. Made once."""
    folder = root / f"{name}{'-classifier' if classifier else ''}"
    if not folder.is_dir():
        model = FAMILIES[name]()
        save_tiny(folder, as_classifier(model) if classifier else model)
    return folder


def auto_class(task_type: str) -> Any:
    """The class of transformers that loads the models of a peft task, CAUSAL_LM or SEQ_CLS. KeyError for others."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}[task_type]


def save_adapter(base: Path | str, folder: Path | str, task_type: str = "CAUSAL_LM") -> Path:
    """Write a LoRA adapter of the model in `base`, and its tokenizer beside it. `task_type` SEQ_CLS: of a classifier,
    whose head is saved with the adapter.

    Its B is not zero as a new one's would be: it differs from its base, and A and B have gradients from the first step.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    folder = Path(folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(auto_class(task_type).from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def disturb(model: torch.nn.Module) -> None:
    """Stand in for training: change every parameter that is trained, the same way at every call."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
