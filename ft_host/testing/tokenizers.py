"""Small tokenizers trained in code, with the control tokens of a published chat template."""

from __future__ import annotations

import re
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog. What is the sum of 12 and 30? It is 42.\n",
    "Answer the question step by step, then give the result.\n\nuser assistant system model tool",
]
CONTROL = re.compile(r"<\|[a-z_]+\|>|<[|｜][^<>\s|｜]+[|｜]>|<(?:start|end)_of_turn>|\[/?[A-Z]+(?:_[A-Z]+)*\]")


def control_tokens(template: str) -> list[str]:
    """What looks like a control token in a chat template."""
    return list(dict.fromkeys(CONTROL.findall(template)))


def chat_tokenizer(
    template: str | None = None,
    *,
    eos_token: str = "</s>",
    adds_bos: bool = False,
    adds_eos: bool = False,
    vocab_size: int = 400,
) -> Any:
    """A byte-level BPE tokenizer with `template`, whose control tokens (and <s>, </s>) are single tokens.

    All text comes back unchanged. `adds_bos`, `adds_eos`: put <s> before, `eos_token` after every text, as Llama's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>"] + [mark for mark in control_tokens(template or "") if mark not in ("<s>", "</s>")]
    if eos_token not in special:
        special.append(eos_token)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    if adds_bos or adds_eos:
        before = "<s> " if adds_bos else ""
        after = f" {eos_token}" if adds_eos else ""
        ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", eos_token)]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{before}$A{after}", special_tokens=ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos_token)
    fast.chat_template = template
    return fast
