"""What both sides are given: rows, a tokenizer trained on them, models with random weights. All from a seed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 8192
BATCH = 8  # rows of an optimizer step
MAX_LENGTH = 512

Row = dict[str, Any]  # columns of text, and a label

# Shapes of Qwen3 with tied embeddings. The large vocabulary is that of the published Qwen3 models; the tokenizer is the
# same for both, which changes nothing: the softmax runs over the whole vocabulary either way.
MODELS = {
    "small": {"vocab_size": VOCABULARY, "num_hidden_layers": 6, "head_dim": 128},  # 9.2 M parameters
    "bigvocab": {"vocab_size": 151_936, "num_hidden_layers": 4, "head_dim": 64},  # 42.8 M
    "digits": {"vocab_size": 2048, "num_hidden_layers": 4, "head_dim": 64},  # 4.5 M, of gsm8k_rollouts.py
    # students of distill.py, and their teachers, twice as wide
    "student-32k": {"vocab_size": 32_768, "num_hidden_layers": 4, "head_dim": 64},  # 12.3 M
    "teacher-32k": {"vocab_size": 32_768, "num_hidden_layers": 4, "head_dim": 64, "hidden_size": 512},  # 24.6 M
    "student-128k": {"vocab_size": 131_072, "num_hidden_layers": 4, "head_dim": 64},  # 37.5 M
    "teacher-128k": {"vocab_size": 131_072, "num_hidden_layers": 4, "head_dim": 64, "hidden_size": 512},  # 74.9 M
}


# ---------------------------------------------------------------- rows


def _words(rng: random.Random, count: int) -> list[str]:
    syllables = ["".join(pair) for pair in itertools.product("bcdfghlmnprstvw", "aeiou")]
    words = {"".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(2 * count)}
    return sorted(words)[:count]


def _texts(seed: int) -> Callable[[float, float], str]:
    """A function that makes texts of made-up words: as often as words are used (Zipf), as long as texts are
    (log-normal, a few many times the median), from the median of their words and the spread of its logarithm."""
    rng = random.Random(seed)
    words = _words(rng, 6000)
    rng.shuffle(words)
    cumulative = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def text(median: float, spread: float) -> str:
        size = max(4, min(600, round(rng.lognormvariate(0, spread) * median)))
        return " ".join(rng.choices(words, cum_weights=cumulative, k=size))

    return text


# Words of a prompt and of each completion: the median, and the spread of its logarithm. A word is about one token.
Spread = tuple[float, float]


def made_rows(count: int, seed: int = 0, prompt: Spread = (45, 0.5), completion: Spread = (75, 0.6)) -> list[Row]:
    text = _texts(seed)
    return [{"prompt": text(*prompt) + "?\n", "completion": text(*completion) + "."} for _ in range(count)]


SHAPES = {
    "long": ((245, 0.3), (69, 0.5)),  # long prompts: instructions, documents, conversations
    "short": ((25, 0.5), (98, 0.5)),  # short questions, longer answers
}


def made_pairs(count: int, shape: str | tuple[Spread, Spread], seed: int = 0) -> list[Row]:
    """Preference rows: a prompt and two completions. `shape`: a name in SHAPES, or one like those."""
    text, (prompt, completion) = _texts(seed), SHAPES[shape] if isinstance(shape, str) else shape
    return [
        {"prompt": text(*prompt) + "?\n", "chosen": text(*completion) + ".", "rejected": text(*completion) + "."}
        for _ in range(count)
    ]


def made_prompts(count: int, words: float, seed: int = 0) -> list[Row]:
    """Prompts alone, of about so many words: what completions are sampled for."""
    text = _texts(seed)
    return [{"prompt": text(words, 0.1) + "?\n"} for _ in range(count)]


def made_chats(count: int, seed: int = 0) -> list[Row]:
    """Conversations of one turn each, of about 150 to 500 tokens, without line breaks."""
    text = _texts(seed)

    def turn() -> list[dict[str, str]]:
        return [{"role": "user", "content": text(60, 0.3)}, {"role": "assistant", "content": text(230, 0.3)}]

    return [{"messages": turn()} for _ in range(count)]


def made_demonstrations(count: int, seed: int = 0) -> list[Row]:
    """Prompts of about a hundred tokens, each with a text that a teacher alone is shown."""
    text = _texts(seed)
    return [{"prompt": text(95, 0.1) + "?\n", "privileged_context": text(60, 0.3)} for _ in range(count)]


def judged(pairs: list[Row]) -> list[Row]:
    """Preference rows taken apart: each completion by itself, with its label."""
    return [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs
        for name in ("chosen", "rejected")
    ]


def read_rows(path: Path, columns: tuple[str, ...] = ("prompt", "completion")) -> list[Row]:
    """Rows of a JSON lines file with text in these columns; others are left out."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(name), str) for name in columns):
            found, wanted = ", ".join(row), ", ".join(columns)
            raise SystemExit(f"{path.name}, line {number}: columns {found}; expected text in {wanted}")
    return [{name: row[name] for name in columns} for row in rows]


def write_rows(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def in_order(rows: list[Row], lengths: list[int] | None, seed: int) -> list[Row]:
    """The rows in the order that both sides train on them.

    Shuffled; or, with `lengths`, in the batches of transformers' group_by_length, the batches shuffled: the sampler
    leaves each fifty of them sorted from long to short, so that a few steps would see the longest only.
    """
    rng = random.Random(seed)
    if lengths is None:
        return rng.sample(rows, len(rows))
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    grouped = get_length_grouped_indices(lengths, BATCH, generator=torch.Generator().manual_seed(seed))
    batches = [grouped[at : at + BATCH] for at in range(0, len(grouped) - BATCH + 1, BATCH)]
    rng.shuffle(batches)
    return [rows[index] for batch in batches for index in batch]


# ---------------------------------------------------------------- tokenizer and models


def make_tokenizer(rows: list[Row], size: int = VOCABULARY, digits: bool = False) -> Any:
    """Byte-level BPE of at most `size` tokens, trained on the texts of the rows. `digits`: each digit is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        apart = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(apart)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(text for text in row.values() if isinstance(text, str)) for row in rows)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def filled(tokenizer: Any, size: int, names: str) -> Any:
    """The same with tokens that no text has, up to `size` in all: half of them called alike in each tokenizer, half by
    `names`. Of 32k tokens those of a few thousand words would else be all that two tokenizers have in common."""
    from tokenizers import Tokenizer

    written = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    for number in range(len(tokenizer), size):
        vocabulary[f"unheard{number}" if number % 2 else f"{names}{number}"] = number
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))
    return tokenizer


def lengths_of(rows: list[Row], tokenizer: Any) -> list[int]:
    """Tokens of each row, the end-of-text token included: of its prompt with the longest of its completions."""
    longest = [0] * len(rows)
    for name in ("completion", "chosen", "rejected"):
        if name in rows[0]:
            ids = tokenizer([row["prompt"] + row[name] for row in rows])["input_ids"]
            longest = [max(length, len(each) + 1) for length, each in zip(longest, ids, strict=True)]
    return longest


def make_model(folder: Path, name: str, tokenizer: Any, seed: int = 0, *, classifier: bool = False) -> None:
    """Save a model with random weights, and the tokenizer with it, as one from a hub would be. A `classifier` has one
    label, a score, as reward models do."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    torch.manual_seed(seed)
    config = Qwen3Config(
        intermediate_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"num_labels": 1} if classifier else {}),
        **({"hidden_size": 256} | MODELS[name]),
    )
    (Qwen3ForSequenceClassification if classifier else Qwen3ForCausalLM)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
