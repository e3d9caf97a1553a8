"""Whole runs of five steps beside TRL's: the same completions at every step, whatever the policy has become. A backend
that says what it was told, and TRL's trainer that is given the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ft_sdft.config import SDFTConfig
from ft_sdft.losses import LOSSES, tokens_of

from ft_host.testing import (
    TOLERANCES,
    assert_same,
    differences,
    lines,
    run_in,
    save_adapter,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "max_completion_length",
    "temperature",
    "disable_dropout",
    "distillation_alpha",
    "distillation_mode",
    "distillation_topk",
    "distillation_is_clip",
    "distillation_add_tail",
    "num_loss_tokens_to_skip",
    "teacher_model_kind",
    "teacher_update_rate",
    "teacher_sync_steps",
    "generate_from_teacher",
    "teacher_prompt_template",
)
LOSS = "self_distillation/distillation_loss"
METRICS = ("completions/mean_length", "completions/max_length", "completions/clipped_ratio")


def trainer_of(config: SDFTConfig, completions_of: Any, reads: list[str] | None = None) -> Any:
    """TRL's trainer for what `config` says, with given completions. `reads`: the prompts that it would have had
    completed are added to it."""
    from transformers import AutoTokenizer
    from trl.experimental.sdft import SDFTConfig as Theirs
    from trl.experimental.sdft import SDFTTrainer

    class Given(SDFTTrainer):
        def _generate(self, prompt_ids):
            size = self.num_generations
            texts = self._tokenizer.batch_decode(prompt_ids)
            found = [ids for text in texts[::size] for ids in completions_of(text, size)]
            if reads is not None:
                reads.extend(texts)
            return prompt_ids, found

    return Given(
        model=trl_model(config),
        args=Theirs(**trl_arguments(config, *OWN), shuffle_dataset=False, max_prompt_length=None),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
    )


def assert_parity(ours: list[dict], theirs: list[dict], own: dict[str, float] = {LOSS: 1e-5}) -> None:  # noqa: B006
    allowed = {name: most for name, most in TOLERANCES.items() if name != "num_tokens"} | own  # which it doesn't count
    for name, value in differences(ours, theirs, tuple(allowed)).items():
        both = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        assert value <= allowed[name], f"{name}: relative difference {value:.2e}; by step: {both}"


def both(config: SDFTConfig, fixed: Any) -> tuple[list[dict], list[dict]]:
    ours = lines(run_in(config, "ours"))
    return ours, trl_trajectory(trainer_of(config, fixed))


FIELDS = {
    "as it comes": {},
    "eight generations": {"num_generations": 8},
    "all logits, forward KL": {"distillation_mode": "full_logits", "distillation_alpha": 0.0},
    "all logits, reverse KL": {"distillation_mode": "full_logits", "distillation_alpha": 1.0},
    "a tail": {"distillation_topk": 10, "distillation_add_tail": True, "distillation_alpha": 0.3},
    "sampled tokens": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    "ema": {"teacher_model_kind": "ema", "teacher_update_rate": 0.3, "teacher_sync_steps": 2},
    "live": {"teacher_model_kind": "live"},
    "temperature, template": {"temperature": 0.7, "teacher_prompt_template": "{privileged_context} {prompt}"},
    "two passes": {"num_iterations": 2, "distillation_is_clip": 1.05},
    "two steps, two passes": {"generation_batch_size": 16, "num_iterations": 2, "num_generations": 2},
    "passes without weights": {"num_iterations": 2, "distillation_is_clip": None},
    "the teacher's prompt": {"generate_from_teacher": True, "num_iterations": 2},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict]]:
    """What runs of FIELDS have logged: those that one test has made, another needn't make again."""
    return {}


@pytest.mark.parametrize("name", FIELDS)
def test_five_steps(name, make_fixed, fixed, trained):
    ours, theirs = both(make_fixed(**FIELDS[name]), fixed)
    trained[name] = ours
    # of sampled_token the value of a token is of either sign and of size 4, and what is left of their sum may be 0.09
    least = 1e-4 if name == "sampled tokens" else 1e-5
    assert_parity(ours, theirs, {LOSS: least, "loss": least})
    for mine, other in zip(ours, theirs, strict=True):
        for metric in METRICS:
            if metric in mine:
                assert mine[metric] == pytest.approx(other[metric], rel=1e-6), metric
    assert ours[0]["grad_norm"] > 1e-2


def test_the_fields_matter(make_fixed, trained):
    """Each of the runs above is another one."""
    runs = [trained.get(name) or lines(run_in(make_fixed(**fields), name)) for name, fields in FIELDS.items()]
    losses = [run[4]["loss"] for run in runs]
    for index, loss in enumerate(losses):
        assert all(abs(loss - other) > 1e-7 for other in losses[:index]), list(FIELDS)[index]


def test_skipped_tokens(make_fixed, fixed, rows):
    """Where each completion has some left."""
    long = [row for row in rows if len(fixed(row["prompt"], 1)[0]) > 3][:12]
    ours, theirs = both(make_fixed(long, num_loss_tokens_to_skip=3, per_device_train_batch_size=4), fixed)
    assert_parity(ours, theirs)


def test_completions_without_loss_are_in_no_mean(make_fixed, fixed, rows):
    """TRL divides by them all the same: its loss shrinks as more are left out. Both numbers, and by hand."""
    chosen = rows[:8]
    left = sum(len(fixed(row["prompt"], 1)[0]) > 3 for row in chosen)
    assert 0 < left < 8
    ours, theirs = both(make_fixed(chosen, num_loss_tokens_to_skip=3, max_steps=1), fixed)
    print("ours", ours[0]["loss"], "TRL", theirs[0]["loss"])
    assert ours[0]["loss"] * left / 8 == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[0]["self_distillation/without_loss_fraction"] == 1 - left / 8
    expected = by_hand(chosen, fixed, make_fixed().model, skipped=3)
    assert ours[0]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def by_hand(rows: list[dict], completions_of: Any, model: str, skipped: int = 0) -> list[float]:
    """The mean over its tokens of each completion that has some: each sequence by itself, whole logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    found = []
    for row in rows:
        ids = completions_of(row["prompt"], 1)[0]
        logits = []
        for text in (row["prompt"], f"{row['prompt']}\n\n{row['privileged_context']}"):
            prompt = tokenizer(text)["input_ids"]
            with torch.no_grad():
                logits.append(policy(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1])
        values = LOSSES["topk_logits"](tokens_of(*logits, torch.tensor(ids)), SDFTConfig())[skipped:]
        found += [float(values.mean())] if len(values) else []
    return found


def test_accumulation(make_fixed, fixed, rows):
    """Steps of two micro-batches are those of one. TRL's loss is right too; its metric is a mean of the micro-batches'
    means over tokens, and ours one over all tokens."""
    whole = lines(run_in(make_fixed(), "whole"))
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    ours, theirs = both(make_fixed(**halves), fixed)
    assert_same(whole, ours, rel=1e-4, abs=2e-6)
    assert_parity(ours, theirs, {})
    sizes = [len(fixed(row["prompt"], 1)[0]) for row in rows[:8]]
    means = by_hand(rows[:8], fixed, make_fixed().model)
    sums = [size * value for size, value in zip(sizes, means, strict=True)]
    assert ours[0][LOSS] == pytest.approx(sum(sums) / sum(sizes), rel=1e-5)
    halved = (sum(sums[:4]) / sum(sizes[:4]) + sum(sums[4:]) / sum(sizes[4:])) / 2
    print("ours", ours[0][LOSS], "TRL", theirs[0][LOSS])
    assert theirs[0][LOSS] == pytest.approx(halved, rel=1e-5) and abs(halved / ours[0][LOSS] - 1) > 5e-4


def test_lora(make_fixed, fixed, llama, tmp_path):
    """A live teacher has the adapter as it is, in both."""
    adapter = save_adapter(llama, Path(tmp_path / "adapter"))
    config = make_fixed(model=str(adapter), use_peft=True, learning_rate=1e-2, teacher_model_kind="live")
    assert_parity(*both(config, fixed))


def test_lora_from_an_adapter(make_fixed, fixed, llama, tmp_path):
    """Where training goes on with an adapter, the model as the run found it has that adapter. TRL's teacher hasn't: its
    first loss is of another teacher. Ours is that of a live one, which there is the same."""
    adapter = save_adapter(llama, Path(tmp_path / "adapter"))
    fields = {"model": str(adapter), "use_peft": True, "learning_rate": 1e-2, "max_steps": 1}
    ours, theirs = both(make_fixed(**fields), fixed)
    live = lines(run_in(make_fixed(teacher_model_kind="live", **fields), "live"))
    print("ours", ours[0]["loss"], "TRL", theirs[0]["loss"])
    assert ours[0]["loss"] == pytest.approx(live[0]["loss"], rel=1e-6)
    assert abs(theirs[0]["loss"] / ours[0]["loss"] - 1) > 1e-3


def test_who_is_completed(make_fixed, fixed):
    """With generate_from_teacher the prompts to complete have the demonstration, in both; the student's rows have
    not."""
    reads: list[str] = []
    config = make_fixed(generate_from_teacher=True, max_steps=1)
    trl_trajectory(trainer_of(config, fixed, reads))
    assert all("Such as: " in text for text in reads)
