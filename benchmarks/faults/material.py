"""What the cases are made of, from a seed: rows of a family's task, and models of two layers, 64 wide.

FOLDER/data/     train, test               prompts, completions, answers
                 preference_*, unpaired_*  a right and a wrong completion; one of them, judged
                 shown_*                   prompts, and what a teacher of sdft is shown
                 chat_*                    the same as whole conversations
FOLDER/model/    scratch, other            random weights, of two architectures
                 start, able               after a short SFT (about half is right) and a longer one (nearly all)
                 shown                     `start`, taught to make use of a solution in its prompt
                 pieces                    after an SFT with another tokenizer
                 moe, moe_biased           four experts with random weights, and a router that never takes two
                 adapter, adapter_scaled   a new LoRA adapter of `start`, and one whose own scale is far off
                 nan, dropout, other_tokenizer    `start` or `able` with a fault
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OTHER_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|system|>{% endif %}"
)
FAR = 0.3  # from a half, which no checkpoint that is taken may be
EVERY = 10  # steps, after which an SFT that ends halfway is evaluated
SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}


@dataclass(kw_only=True)
class Task:
    """A family's rows, tokenizer and models. Rows have `prompt`, `completion` and `answer`, which are texts."""

    train: list[Row]
    test: list[Row]
    wrong: Callable[[Row, random.Random], str]  # a completion that isn't right
    good_share: float  # of the judged completions
    tokenizer: Any
    architecture: str  # of `scratch`; a name of ft_host.testing.models.FAMILIES
    sizes: dict[str, Any] = field(default_factory=dict)  # of its config, where they aren't those of tests
    other: str  # of `other`
    steps: dict[str, int]  # of SFT: start, able, and shown and pieces if the family has them
    half: tuple[str, ...] = ()  # of these SFTs the steps are a limit: they end where half of `test` is right
    right: str = ""  # the reward that says so
    showing: Callable[[Row, random.Random], Row] | None = None  # a row that `shown` learns from
    shown_from: str = "start"
    pieces: Any = None  # the tokenizer of `pieces`
    written: Callable[[Row], Row] = field(default=lambda row: row)  # a row as it stands in the files
    tuning: dict[str, Any] = field(default_factory=dict)  # fields of these SFTs


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path, seed: int, task: Callable[[], Task], quick: bool = False) -> None:
    """All of it, in `folder`, unless it is there. `quick`: the models aren't trained, for tests."""
    if (folder / "made").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    made = task()
    make_data(folder / "data", made, seed)
    make_models(folder, made, seed, quick)
    (folder / "made").touch()


# ---------------------------------------------------------------- rows


def make_data(folder: Path, task: Task, seed: int) -> None:
    rng = random.Random(seed + 1)
    for name, rows in (("train", task.train), ("test", task.test)):
        pairs = [pair_of(row, task.wrong(row, rng)) for row in rows]
        files = {
            name: rows,
            f"preference_{name}": pairs,
            f"unpaired_{name}": [judged_of(pair, rng.random() < task.good_share) for pair in pairs],
            f"shown_{name}": [shown_of(row) for row in rows],
        }
        for file, made in files.items():
            write_rows(folder / f"{file}.jsonl", [task.written(row) for row in made])
        write_rows(folder / f"chat_{name}.jsonl", [talk_of(row) for row in rows])
    if task.showing is not None:
        rows = [task.written(task.showing(row, rng)) for row in task.train]
        write_rows(folder / "showing.jsonl", rows)
    (folder / "other.jinja").write_text(OTHER_TEMPLATE, encoding="utf-8")


def pair_of(row: Row, wrong: str) -> Row:
    return {"prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong, "answer": row["answer"]}


def judged_of(pair: Row, good: bool) -> Row:
    completion = pair["chosen" if good else "rejected"]
    return {"prompt": pair["prompt"], "completion": completion, "label": good, "answer": pair["answer"]}


def shown_of(row: Row) -> Row:
    return {"prompt": row["prompt"], "privileged_context": row["completion"], "answer": row["answer"]}


def talk_of(row: Row) -> Row:
    turns = (("user", row["prompt"].strip()), ("assistant", row["completion"]))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def as_messages(row: Row) -> Row:
    """Texts as lists of one message."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return row | {name: [{"role": role, "content": row[name]}] for name, role in roles.items() if name in row}


# ---------------------------------------------------------------- tokenizers


def sign_tokenizer(signs: str, marks: list[str], **special: str) -> Any:
    """One token a sign, for these signs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*marks, *signs])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


# ---------------------------------------------------------------- models


def make_models(folder: Path, task: Task, seed: int, quick: bool) -> None:
    from ft_host.testing.models import save_tiny

    models, tokenizer = folder / "model", task.tokenizer
    for name, kind, of in (
        ("scratch", task.architecture, tokenizer),
        ("other", task.other, tokenizer),
        ("moe", "moe", tokenizer),
        *([("pieces_scratch", task.architecture, task.pieces)] if task.pieces is not None else []),
    ):
        save_tiny(models / name, small(kind, of, seed, task.sizes if kind == task.architecture else {}), of)
    moe = small("moe", tokenizer, seed, {})
    bias_router(moe)
    save_tiny(models / "moe_biased", moe, tokenizer)

    def tuned(source: str, name: str, data: str = "train", **fields: Any) -> None:
        half = task.right if name in task.half and not quick else None
        tune(folder, source, name, 2 if quick else task.steps[name], seed, fields | task.tuning, data, half)

    # `start` ends at a high rate: what has come to rest at a rate of 0 loses at first whatever it is trained for next.
    unrested = {"per_device_train_batch_size": 32, "lr_scheduler_type": "constant_with_warmup"}
    tuned("scratch", "start", **unrested)
    tuned("start", "able", per_device_train_batch_size=64)
    if task.showing is not None:
        tuned(task.shown_from, "shown", data="showing", **unrested)
    if task.pieces is not None:
        tuned("pieces_scratch", "pieces", **unrested)
    break_models(models)
    make_adapters(models)


def small(kind: str, tokenizer: Any, seed: int, more: dict[str, Any]) -> Any:
    """A model with random weights as small as usual: those of ft_host.testing begin above the loss of a guess."""
    import torch

    from ft_host.testing.models import FAMILIES

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = (SIZES if kind != "moe" else {}) | more
    model = FAMILIES[kind](vocab_size=len(tokenizer), **sizes, **special)
    torch.manual_seed(seed)
    return type(model)(model.config)


def bias_router(model: Any) -> None:
    """One number of each token's state is the same for all, and the router goes by it: two experts are never taken."""
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[:, -1] = 0.1
        for layer in model.model.layers:
            layer.mlp.gate.weight[:, -1] = torch.tensor([4.0, 4.0, -4.0, -4.0])


def tune(
    folder: Path,
    source: str,
    name: str,
    steps: int,
    seed: int,
    fields: dict[str, Any],
    data: str,
    half: str | None = None,
) -> None:
    """A short SFT of `source`, saved as `name`. `half`: a reward; the model is that of the checkpoint at which nearest
    to half of the held-out completions earn it, whatever the seed makes of so many steps."""
    from ft_sft.config import SFTConfig

    from ft_host.training.launch import train

    run = folder / "tuning"
    shutil.rmtree(run, ignore_errors=True)
    values = {
        "model": str(folder / "model" / source),
        "dataset": str(folder / "data" / f"{data}.jsonl"),
        "output_dir": str(run),
        "max_steps": steps,
        "learning_rate": 3e-3,
        "warmup_steps": min(20, steps - 1),
        "adam_beta2": 0.99,
        "seed": seed,
        "save_steps": 0,
        "use_cpu": True,
        "progress": "quiet",
    }
    if half is not None:
        often = min(EVERY, steps)
        test = {"eval_dataset": str(folder / "data" / "test.jsonl"), "eval_reward": [half], "max_completion_length": 16}
        values |= test | {
            "save_total_limit": steps,
            "eval_steps": often,
            "save_steps": often,
            "per_device_eval_batch_size": 64,
        }
    train(SFTConfig(**values | fields))
    made = run / "model" if half is None else run / "checkpoints" / f"step-{halfway(run)}" / "model"
    shutil.move(made, folder / "model" / name)
    shutil.rmtree(run)


def halfway(run: Path) -> int:
    """The step whose evaluation is nearest to a reward of one half."""
    evals = {each["step"]: each["eval_reward"] for each in read_rows(run / "metrics.jsonl") if each["kind"] == "eval"}
    evals.pop(0, None)
    found = min(evals, key=lambda step: abs(evals[step] - 0.5))
    if abs(evals[found] - 0.5) > FAR:
        raise SystemExit(f"no checkpoint of {run} is half right: {evals}. More steps are needed")
    return found


def break_models(models: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "start")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    shutil.copytree(models / "start", models / "nan")
    model.save_pretrained(models / "nan")

    shutil.copytree(models / "start", models / "dropout")
    edit_json(models / "dropout" / "config.json", lambda config: config | {"attention_dropout": 0.3})

    shutil.copytree(models / "able", models / "other_tokenizer")
    edit_json(
        models / "other_tokenizer" / "tokenizer.json",
        lambda tokens: tokens | {"model": tokens["model"] | {"vocab": turned(tokens["model"]["vocab"])}},
    )


def make_adapters(models: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(models / "start"), lora).save_pretrained(models / "adapter")
    AutoTokenizer.from_pretrained(models / "start").save_pretrained(models / "adapter")
    shutil.copytree(models / "adapter", models / "adapter_scaled")
    edit_json(models / "adapter_scaled" / "adapter_config.json", lambda config: config | {"lora_alpha": 8000})


def edit_json(path: Path, change: Callable[[dict], dict]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def turned(vocabulary: dict[str, int]) -> dict[str, int]:
    """The same tokens with each other's ids; special ones keep theirs."""
    plain = [token for token in vocabulary if not (len(token) > 1 and token.startswith("<"))]
    ids = [vocabulary[token] for token in plain]
    return vocabulary | dict(zip(plain, [*ids[5:], *ids[:5]], strict=True))
