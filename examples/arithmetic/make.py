"""Make what the arithmetic example needs: rows, a tokenizer and an untrained model, all from a seed.

    OUT/data/train.jsonl, OUT/data/test.jsonl   sums worked out digit by digit; README.md shows what a row looks like
    OUT/data/few.jsonl                          the first rows of train.jsonl: too few to learn all of it from
    OUT/data/preference_*.jsonl                 a right and a wrong way to the same sum
    OUT/data/unpaired_*.jsonl                   one way to a sum, and whether it is right
    OUT/data/shown.jsonl                        few.jsonl four times, and rows that show a way to the sum
    OUT/data/shown_test.jsonl                   test.jsonl with the way to each sum shown
    OUT/model/                                  tokenizer and model, saved as a model from a hub would be
    OUT/small/                                  the same tokenizer and a narrower model with fewer layers
    OUT/pieces/                                 a model like the first; its tokenizer has pieces of several characters

A tenth of all numbers is kept for test.jsonl: no operand of a test row is an operand of any training row.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

FEWEST_DIGITS = 2


def work_out(a: int, b: int, slip: int | None = None, error: int = 0) -> str:
    """The sum from the last digit to the first, a line a digit (a carry is a third summand), and then the sum.

    With `slip`, a place, that line is wrong by `error`, and what follows goes on from there.
    """
    lines, carry, written = [], 0, ""
    for place in range(places_of(a, b)):
        digits = [int(str(number)[-1 - place]) for number in (a, b) if place < len(str(number))]
        summands = [*digits, 1] if carry else digits
        total = sum(summands) + (error if place == slip else 0)
        lines.append("+".join(map(str, summands)) + f"={total}")
        carry, written = total // 10, str(total % 10) + written
    return "\n".join([*lines, ("1" if carry else "") + written])


def places_of(a: int, b: int) -> int:
    return max(len(str(a)), len(str(b)))


def work_out_wrongly(a: int, b: int, rng: random.Random) -> str:
    """The same with a mistake in a place drawn at random: its line is wrong by one, or it is left out."""
    lines, place = work_out(a, b).split("\n"), rng.randrange(places_of(a, b))
    if rng.random() < 0.5:
        answer = lines[-1]
        return "\n".join([*lines[:place], *lines[place + 1 : -1], answer[: -1 - place] + answer[len(answer) - place :]])
    total = int(lines[place].partition("=")[2])
    return work_out(a, b, place, -1 if total == 19 else 1 if total == 0 else rng.choice([-1, 1]))


def pair_of(row: dict[str, str], rng: random.Random) -> dict[str, str]:
    a, b = map(int, row["prompt"].removesuffix("=\n").split("+"))
    return {
        "prompt": row["prompt"],
        "chosen": row["completion"],
        "rejected": work_out_wrongly(a, b, rng),
        "answer": row["answer"],
    }


def judged_of(row: dict[str, str], rng: random.Random) -> dict[str, str | bool]:
    """One completion of a pair, and whether it is the right one. Three of four are wrong, as a weak model's would
    be."""
    label = rng.random() < 0.25
    completion = row["chosen"] if label else row["rejected"]
    return {"prompt": row["prompt"], "completion": completion, "label": label, "answer": row["answer"]}


def row_of(a: int, b: int) -> dict[str, str]:
    return {"prompt": f"{a}+{b}=\n", "completion": work_out(a, b), "answer": str(a + b)}


def show(row: dict[str, str], way: str) -> dict[str, str]:
    """The row with a way to its sum in the prompt, before its question, and the same way behind it."""
    return {"prompt": f"{row['prompt']}{way}\n{row['prompt']}", "completion": way, "answer": row["answer"]}


def show_any_digits(row: dict[str, str], rng: random.Random) -> dict[str, str]:
    """What is shown has lines and digits drawn at random: to repeat it teaches to go by what is shown, and no
    adding."""
    return show(row, re.sub(r"\d", lambda digit: rng.choice("0123456789"), row["completion"]))


def split_numbers(digits: int, rng: random.Random) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """All numbers of 2 to `digits` digits, by how many they have, in two parts: nine tenths and one tenth."""
    train, test = {}, {}
    for size in range(FEWEST_DIGITS, digits + 1):
        numbers = list(range(10 ** (size - 1), 10**size))
        rng.shuffle(numbers)
        cut = len(numbers) // 10
        test[size], train[size] = numbers[:cut], numbers[cut:]
    return train, test


def draw_pairs(numbers: dict[int, list[int]], count: int, rng: random.Random) -> list[tuple[int, int]]:
    """`count` different pairs; each operand is as likely to have two digits as four."""
    pairs: dict[tuple[int, int], None] = {}
    sizes = list(numbers)
    most = sum(len(each) for each in numbers.values()) ** 2
    if count > most // 10:
        raise SystemExit(f"{count} rows are too many for {most} pairs of numbers; raise --digits")
    while len(pairs) < count:
        pairs[rng.choice(numbers[rng.choice(sizes)]), rng.choice(numbers[rng.choice(sizes)])] = None
    return list(pairs)


def make_rows(args: argparse.Namespace) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows to train on and rows to test on. Asserts that they share no operand."""
    rng = random.Random(args.seed)
    train_numbers, test_numbers = split_numbers(args.digits, rng)
    train = draw_pairs(train_numbers, args.train_rows, rng)
    test = draw_pairs(test_numbers, args.test_rows, rng)
    shared = {operand for pair in train for operand in pair} & {operand for pair in test for operand in pair}
    assert not shared, f"operands in both parts: {sorted(shared)[:5]}"
    return [row_of(*pair) for pair in train], [row_of(*pair) for pair in test]


def make_tokenizer(texts: list[str]):
    """A tokenizer with one token a character, for the characters that it finds in `texts`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<eos>", "<unk>"])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make_pieces_tokenizer(texts: list[str], size: int):
    """Another tokenizer, of pieces: of what stands next to each other most often, `size` tokens in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<end>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>", unk_token="<unk>")


def make_model(tokenizer, hidden_size: int, layers: int, seed: int):
    """A small Qwen3 with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: this one)"
    )
    parser.add_argument("--digits", type=int, default=4, help="digits of the longest operands (default: %(default)s)")
    parser.add_argument("--train-rows", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--few-rows", type=int, default=700, help="default: %(default)s")
    parser.add_argument("--test-rows", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--hidden-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--small-hidden-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--small-layers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--pieces", type=int, default=32, help="tokens of the other tokenizer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)

    train, test = make_rows(args)
    (args.out / "data").mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out / "data" / "train.jsonl", train)
    write_jsonl(args.out / "data" / "few.jsonl", train[: args.few_rows])
    write_jsonl(args.out / "data" / "test.jsonl", test)
    rng = random.Random(args.seed + 1)
    for name, rows in (("train", train), ("test", test)):
        pairs = [pair_of(row, rng) for row in rows]
        write_jsonl(args.out / "data" / f"preference_{name}.jsonl", pairs)
        write_jsonl(args.out / "data" / f"unpaired_{name}.jsonl", [judged_of(pair, rng) for pair in pairs])
    rng, few = random.Random(args.seed + 2), train[: args.few_rows]
    shown = [
        show_any_digits(row, rng) for row in train[: 4 * args.few_rows]
    ]  # the more differ, the less is learnt by heart
    write_jsonl(args.out / "data" / "shown.jsonl", [*(4 * few), *shown])
    write_jsonl(args.out / "data" / "shown_test.jsonl", [show(row, row["completion"]) for row in test])
    texts = [row["prompt"] + row["completion"] for row in train]
    tokenizer, pieces = make_tokenizer(texts), make_pieces_tokenizer(texts, args.pieces)
    large, small = (args.hidden_size, args.layers), (args.small_hidden_size, args.small_layers)
    made = {"model": (tokenizer, *large), "small": (tokenizer, *small), "pieces": (pieces, *large)}
    models = {name: make_model(*each, args.seed) for name, each in made.items()}
    for name, model in models.items():
        made[name][0].save_pretrained(args.out / name)
        model.save_pretrained(args.out / name)
    print(
        f"{args.out}: {len(train)} rows to train on, {len(test)} to test on, no operand in both; a tokenizer of "
        f"{len(tokenizer)} tokens, one of {len(pieces)}, and models of "
        + " and ".join(f"{m.num_parameters():,}" for m in models.values())
        + " parameters"
    )


if __name__ == "__main__":
    main()
