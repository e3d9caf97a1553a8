"""What the cases are made of, from a seed: rows of the arithmetic example, and models of two layers, 64 wide.

WORK/seed-N/data/     train, test, preference_*, unpaired_*, chat_*    sums of numbers of two and three digits
WORK/seed-N/model/    scratch                random weights
                      start, able            after a short SFT (about half of the sums right) and a longer one (all)
                      chat                   a chat model with random weights
                      moe, moe_biased        four experts with random weights, and a router that never takes two
                      nan, dropout, other_tokenizer    `start` or `able` with a fault
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "arithmetic"
SIZES = {"digits": 3, "train_rows": 3000, "test_rows": 64, "hidden_size": 64, "layers": 2}
START, ABLE = 380, 450  # steps of SFT
OTHER_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|system|>{% endif %}"
)


def example() -> Any:
    """make.py of the arithmetic example."""
    spec = importlib.util.spec_from_file_location("arithmetic_make", EXAMPLE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path, seed: int, quick: bool = False) -> None:
    """All of it, in `folder`, unless it is there. `quick`: the models aren't trained, for tests."""
    if (folder / "made").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    maker = example()
    arguments = Namespace(seed=seed, **SIZES)
    train, test = maker.make_rows(arguments)
    make_data(folder / "data", maker, train, test, seed)
    make_models(folder, maker, arguments, train, quick)
    (folder / "made").touch()


def make_data(folder: Path, maker: Any, train: list[dict], test: list[dict], seed: int) -> None:
    rng = random.Random(seed + 1)
    for name, rows in (("train", train), ("test", test)):
        write_rows(folder / f"{name}.jsonl", rows)
        pairs = [maker.pair_of(row, rng) for row in rows]
        write_rows(folder / f"preference_{name}.jsonl", pairs)
        write_rows(folder / f"unpaired_{name}.jsonl", [maker.judged_of(pair, rng) for pair in pairs])
        write_rows(folder / f"chat_{name}.jsonl", [talk_of(row) for row in rows])
    (folder / "other.jinja").write_text(OTHER_TEMPLATE, encoding="utf-8")


def talk_of(row: dict[str, str]) -> dict[str, Any]:
    turns = (("user", row["prompt"].strip()), ("assistant", row["completion"]))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


# ---------------------------------------------------------------- models


def make_models(folder: Path, maker: Any, arguments: Namespace, train: list[dict], quick: bool) -> None:
    from ft_host.testing.models import save_tiny

    models = folder / "model"
    tokenizer = maker.make_tokenizer([row["prompt"] + row["completion"] for row in train])
    save_tiny(
        models / "scratch",
        maker.make_model(tokenizer, arguments.hidden_size, arguments.layers, arguments.seed),
        tokenizer,
    )
    make_others(models, tokenizer, arguments.seed)
    # `start` ends at a high rate: what has come to rest at a rate of 0 loses at first whatever it is trained for next.
    unrested = {"per_device_train_batch_size": 32, "lr_scheduler_type": "constant_with_warmup"}
    tune(folder, "scratch", "start", 2 if quick else START, arguments.seed, unrested)
    tune(folder, "start", "able", 2 if quick else ABLE, arguments.seed, {"per_device_train_batch_size": 64})
    break_models(models)


def make_others(models: Path, tokenizer: Any, seed: int) -> None:
    from ft_host.testing.models import save_tiny, tiny_moe, tiny_qwen

    save_tiny(models / "chat", fresh(tiny_qwen(), seed))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    moe = fresh(tiny_moe(vocab_size=len(tokenizer), **ids), seed)
    save_tiny(models / "moe", moe, tokenizer)
    bias_router(moe)
    save_tiny(models / "moe_biased", moe, tokenizer)


def fresh(model: Any, seed: int) -> Any:
    """The same model with random weights as small as usual: those of ft_host.testing begin above the loss of a
    guess."""
    import torch

    torch.manual_seed(seed)
    return type(model)(model.config)


def bias_router(model: Any) -> None:
    """One number of each token's state is the same for all, and the router goes by it: two experts are never taken."""
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[:, -1] = 0.1
        for layer in model.model.layers:
            layer.mlp.gate.weight[:, -1] = torch.tensor([4.0, 4.0, -4.0, -4.0])


def tune(folder: Path, source: str, name: str, steps: int, seed: int, fields: dict[str, Any]) -> None:
    """A short SFT of `source`, saved as `name`."""
    from ft_sft.config import SFTConfig

    from ft_host.training.launch import train

    run = folder / "tuning"
    shutil.rmtree(run, ignore_errors=True)
    train(
        SFTConfig(
            model=str(folder / "model" / source),
            dataset=str(folder / "data" / "train.jsonl"),
            output_dir=str(run),
            **fields,
            max_steps=steps,
            learning_rate=3e-3,
            warmup_steps=min(20, steps - 1),
            adam_beta2=0.99,
            seed=seed,
            save_steps=0,
            use_cpu=True,
            progress="quiet",
        )
    )
    shutil.move(run / "model", folder / "model" / name)
    shutil.rmtree(run)


def break_models(models: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "start")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    shutil.copytree(models / "start", models / "nan")
    model.save_pretrained(models / "nan")

    shutil.copytree(models / "start", models / "dropout")
    config = json.loads((models / "dropout" / "config.json").read_text(encoding="utf-8"))
    (models / "dropout" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}), encoding="utf-8")

    shutil.copytree(models / "able", models / "other_tokenizer")
    path = models / "other_tokenizer" / "tokenizer.json"
    tokens = json.loads(path.read_text(encoding="utf-8"))
    tokens["model"]["vocab"] = turned(tokens["model"]["vocab"])
    path.write_text(json.dumps(tokens), encoding="utf-8")


def turned(vocabulary: dict[str, int]) -> dict[str, int]:
    """The same tokens with each other's ids; special ones keep theirs."""
    plain = [token for token in vocabulary if not token.startswith("<")]
    ids = [vocabulary[token] for token in plain]
    return vocabulary | dict(zip(plain, [*ids[5:], *ids[:5]], strict=True))
