"""The tokens that end turns or texts in common chat templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# End-of-turn tokens of common templates. Generation stops at them only where the tokenizer or the model says so.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "</s>",
    "<|END_OF_TURN_TOKEN|>",
    "<|im_sep|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "<eos>",
)


def end_marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens of a tokenizer that end turns or texts in common templates."""
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[name] for name in ENDS if name in vocabulary}
