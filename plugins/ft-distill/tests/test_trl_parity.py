"""Whole runs of five steps beside TRL's: the same completions at every step, whatever the policy has become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_distill import gkd as ours_module
from ft_distill.config import DistillConfig, GKDConfig

from ft_host.testing import (
    assert_parity,
    assert_same,
    forget_accelerate,
    lines,
    run_in,
    save_adapter,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

SIZE = 12  # the longest completion of the backend's
OWN = ("max_completion_length", "temperature", "disable_dropout", "beta")
COMPLETIONS = [
    f"completions/{which}_{name}" for name in ("length", "terminated_length") for which in ("mean", "min", "max")
]
TOLERANCES = {"num_tokens": 1.0, "entropy": 1e-5, "completions/clipped_ratio": 1e-6, **dict.fromkeys(COMPLETIONS, 1e-6)}


def tokenizer_of(config: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(config.model, padding_side="left")


# ---------------------------------------------------------------- distill


def distilled(config: DistillConfig, completion_of: Any) -> Any:
    """TRL's trainer for what `config` says, with given completions."""
    from transformers import AutoModelForCausalLM
    from trl import DistillationConfig, DistillationTrainer

    class Given(DistillationTrainer):
        def _generate_single_turn(self, prompt_ids, *_, **__):
            texts = self._tokenizer.batch_decode(prompt_ids)
            size = config.num_generations
            return [completion_of(text, place % size) for place, text in enumerate(texts)]

    return Given(
        model=trl_model(config),
        teacher_model=AutoModelForCausalLM.from_pretrained(config.teacher_model_name_or_path),
        args=DistillationConfig(**trl_arguments(config, *OWN), shuffle_dataset=False),
        train_dataset=trl_rows(config.dataset),
        processing_class=tokenizer_of(config),
    )


@pytest.fixture
def distill(make, backend, prompts):
    def made(rows=None, **fields: Any) -> DistillConfig:
        usual = {"backend": backend(), "max_sampling_logp_difference": 1e3, "max_length": None}
        return make(DistillConfig, rows or prompts, **(usual | fields))

    return made


FIELDS = {
    "reverse KL": {},
    "forward KL": {"beta": 0.0},
    "Jensen-Shannon": {"beta": 0.5},
    "in between, cool": {"beta": 0.2, "temperature": 0.7},
}


@pytest.mark.parametrize("name", FIELDS)
def test_five_steps(name, distill, fixed):
    config = distill(**FIELDS[name])
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(distilled(config, fixed))
    assert_parity(ours, theirs, **TOLERANCES)
    assert ours[0]["grad_norm"] > 1e-2


def test_the_fields_matter(distill):
    losses = [lines(run_in(distill(**fields), f"{index}"))[4]["loss"] for index, fields in enumerate(FIELDS.values())]
    for index, loss in enumerate(losses):
        assert all(abs(loss / other - 1) > 1e-3 for other in losses[:index]), list(FIELDS)[index]


def test_accumulation(distill, fixed):
    """Steps of two micro-batches are those of one, and TRL's too; but for its entropy, a mean of the micro-batches'
    means over tokens, where ours is one over all tokens."""
    whole = lines(run_in(distill(), "whole"))
    config = distill(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    ours = lines(run_in(config, "halves"))
    assert_same(whole, ours, rel=1e-4, abs=2e-6)
    theirs = trl_trajectory(distilled(config, fixed))
    assert_parity(ours, theirs, num_tokens=1.0)
    print("entropy: ours", ours[0]["entropy"], "TRL", theirs[0]["entropy"])
    assert abs(theirs[0]["entropy"] / ours[0]["entropy"] - 1) > 1e-4


def test_lora(distill, fixed, llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter")
    config = distill(model=str(adapter), use_peft=True, learning_rate=1e-2)
    ours = lines(run_in(config, "ours"))
    assert_parity(ours, trl_trajectory(distilled(config, fixed)), **TOLERANCES)


# ---------------------------------------------------------------- gkd


def generalised(config: GKDConfig, gives: Any = None, draws: Iterator[bool] | None = None) -> Any:
    """TRL's trainer for what `config` says. `gives(model, inputs)` stands for what it would sample. `draws`: whether
    the policy completes the prompts of each micro-batch, where that isn't left to chance; and the loss is then divided
    by the tokens that it is of, as it isn't in TRL."""
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDConfig as Theirs
    from trl.experimental.gkd import GKDTrainer, gkd_trainer

    class Given(GKDTrainer):
        def __init__(self, **arguments):
            self.asked: list[str] = []
            super().__init__(**arguments)

        def generate_on_policy_outputs(self, model, inputs, generation_config):
            self.asked.append("teacher" if model is self.teacher_model else "policy")
            return gives(self, inputs)

        def get_batch_samples(self, *arguments):
            batches, count = super().get_batch_samples(*arguments)
            if draws is not None:
                self.turns = [next(draws) for _ in batches]
                labels = [
                    gives(self, batch)[2] if own or config.seq_kd else batch["labels"]
                    for own, batch in zip(self.turns, batches, strict=True)
                ]
                count = sum((each != -100).sum() for each in labels)
            return batches, count

        def training_step(self, *arguments, **more):
            if draws is None:
                return super().training_step(*arguments, **more)
            value = 0.0 if self.turns.pop(0) else 1.0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gkd_trainer, "random", SimpleNamespace(random=lambda: value))
                return super().training_step(*arguments, **more)

    names = ("temperature", "disable_dropout", "beta", "lmbda", "seq_kd")
    return Given(
        model=trl_model(config),
        teacher_model=AutoModelForCausalLM.from_pretrained(config.teacher_model_name_or_path),
        args=Theirs(**trl_arguments(config, *names), max_length=None, max_new_tokens=config.max_completion_length),
        train_dataset=trl_rows(config.dataset),
        processing_class=tokenizer_of(config),
    )


def given(completion_of: Any, trainer: Any, inputs: dict) -> tuple[torch.Tensor, ...]:
    """The fixed completions of the prompts of a batch, in TRL's layout."""
    tokenizer = trainer.processing_class
    rows = []
    for ids, mask in zip(inputs["prompts"], inputs["prompt_attention_mask"], strict=True):
        prompt = ids[mask.bool()].tolist()
        rows.append((prompt, completion_of(tokenizer.decode(prompt))))
    width = max(len(prompt) + len(said) for prompt, said in rows)
    found = torch.zeros(3, len(rows), width, dtype=torch.long)
    found[2] = -100
    for index, (prompt, said) in enumerate(rows):
        size = len(prompt) + len(said)
        found[0, index, :size] = torch.tensor(prompt + said)
        found[1, index, :size] = 1
        found[2, index, len(prompt) : size] = torch.tensor(said)
    return tuple(found)


@pytest.fixture
def gkd(make, backend, chats):
    def made(rows=None, **fields: Any) -> GKDConfig:
        usual = {"backend": backend(), "max_length": None, "lmbda": 0.0, "max_completion_length": 200}
        return make(GKDConfig, rows or chats, **(usual | fields))

    return made


UNTOLD = {"num_tokens": 1}  # by TRL
# at a temperature of 1, as it is in no loss of TRL's
OFF_POLICY = {
    "Jensen-Shannon": {},
    "forward KL": {"beta": 0.0},
    "reverse KL": {"beta": 1.0},
    "two micro-batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", OFF_POLICY)
def test_five_steps_on_the_data(name, gkd):
    config = gkd(**OFF_POLICY[name])
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(generalised(config))
    assert_parity(ours, [line | UNTOLD for line in theirs], num_tokens=1.0)
    assert ours[0]["grad_norm"] > 1e-2 and ours[0]["distillation/on_policy_share"] == 0


def test_lora_on_the_data(gkd, llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter")
    config = gkd(model=str(adapter), use_peft=True, learning_rate=1e-2)
    ours = lines(run_in(config, "ours"))
    assert_parity(ours, [line | UNTOLD for line in trl_trajectory(generalised(config))], num_tokens=1.0)


def test_the_temperature_is_in_the_loss(gkd):
    """In TRL it is only that of sampling: off-policy, nothing comes of it. Ours is what its own function gives at
    it."""
    ours = {t: lines(run_in(gkd(temperature=t, max_steps=1), f"{t}"))[0]["loss"] for t in (1.0, 0.5)}
    theirs = {t: trl_trajectory(generalised(gkd(temperature=t, max_steps=1)))[0]["loss"] for t in (1.0, 0.5)}
    forget_accelerate()
    print("ours", ours, "TRL", theirs)
    assert theirs[0.5] == theirs[1.0] == pytest.approx(ours[1.0], rel=1e-5)
    assert ours[0.5] == pytest.approx(by_hand(gkd(temperature=0.5, max_steps=1)), rel=1e-5)
    assert abs(ours[0.5] / ours[1.0] - 1) > 0.01


def by_hand(config: GKDConfig) -> float:
    """The first step's loss by TRL's function, with its temperature, on the logits of its own batch."""
    trainer = generalised(config)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        both = [
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            for model in (trainer.model, trainer.teacher_model)
        ]
    loss = trainer.generalized_jsd_loss(
        *both, labels=batch["labels"][:, 1:], beta=config.beta, temperature=config.temperature
    )
    forget_accelerate()
    return float(loss)


def test_what_the_policy_says_is_divided_by_its_own_tokens(gkd, fixed):
    """TRL divides the loss of sampled completions by the number of tokens that the data's had."""
    config = gkd(lmbda=1.0, max_steps=1, max_completion_length=SIZE, max_sampling_logp_difference=1e3)
    [ours] = lines(run_in(config, "ours"))
    trainer = generalised(config, partial(given, fixed))
    batch = next(iter(trainer.get_train_dataloader()))
    data = int((batch["labels"] != -100).sum())
    sampled = int((given(fixed, trainer, batch)[2] != -100).sum())
    [theirs] = trl_trajectory(trainer)
    print("ours", ours["loss"], "TRL", theirs["loss"], "tokens", sampled, data)
    assert ours["loss"] * sampled == pytest.approx(theirs["loss"] * data, rel=1e-5) and sampled != data
    assert ours["distillation/divergence"] == pytest.approx(ours["loss"], rel=1e-6)


def test_five_steps_on_what_the_teacher_says(gkd, fixed):
    """Sequence-level distillation, in both with the division by the tokens that are learnt from."""
    config = gkd(seq_kd=True, max_completion_length=SIZE)
    ours = lines(run_in(config, "ours"))
    trainer = generalised(config, partial(given, fixed), itertools.repeat(False))
    assert_parity(ours, [line | UNTOLD for line in trl_trajectory(trainer)], num_tokens=1.0)
    assert trainer.asked == ["teacher"] * 5 and ours[0]["grad_norm"] > 1e-2
    assert all(line["distillation/on_policy_share"] == 0 for line in ours)


def test_what_the_teacher_says_is_divided_by_its_own_tokens(gkd, fixed):
    """TRL divides by the number of tokens that the data's completions had, here too. Both numbers."""
    config = gkd(seq_kd=True, max_steps=1, max_completion_length=SIZE)
    [ours] = lines(run_in(config, "ours"))
    trainer = generalised(config, partial(given, fixed))
    batch = next(iter(trainer.get_train_dataloader()))
    data, said = (int((labels != -100).sum()) for labels in (batch["labels"], given(fixed, trainer, batch)[2]))
    [theirs] = trl_trajectory(trainer)
    print("ours", ours["loss"], "TRL", theirs["loss"], "tokens", said, data)
    assert ours["loss"] * said == pytest.approx(theirs["loss"] * data, rel=1e-5)
    assert abs(ours["loss"] / theirs["loss"] - 1) > 0.1


@pytest.mark.parametrize("seq_kd", [False, True], ids=["the data's", "the teacher's"])
def test_five_steps_of_which_half_is_the_policys(gkd, fixed, seq_kd, monkeypatch):
    """TRL draws who completes once for each micro-batch, so that it is given micro-batches of one prompt, and our
    draws."""
    drawn: dict[tuple[int, int], bool] = {}
    plain = ours_module.on_policy

    def watched(config, rollout, group):
        return drawn.setdefault((rollout, group), plain(config, rollout, group))

    monkeypatch.setattr(ours_module, "on_policy", watched)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    config = gkd(lmbda=0.5, seq_kd=seq_kd, max_sampling_logp_difference=1e3, **single)
    ours = lines(run_in(config, "ours"))
    draws = [drawn[key] for key in sorted(drawn)]
    assert len(draws) == 40 and 10 < sum(draws) < 30
    shares = [sum(draws[8 * step : 8 * step + 8]) / 8 for step in range(5)]
    assert [line["distillation/on_policy_share"] for line in ours] == shares
    trainer = generalised(config, partial(given, fixed), iter(draws))
    assert_parity(ours, [line | UNTOLD for line in trl_trajectory(trainer)], num_tokens=1.0)
    assert trainer.asked.count("policy") == sum(draws)
    assert trainer.asked.count("teacher") == (40 - sum(draws) if seq_kd else 0)


def test_what_the_teacher_says(gkd):
    """The completions of the backend are the same, whoever says them."""
    config = gkd(seq_kd=True, max_steps=1, max_completion_length=SIZE)
    [ours] = lines(run_in(config, "ours"))
    [mine] = lines(
        run_in(gkd(lmbda=1.0, max_steps=1, max_completion_length=SIZE, max_sampling_logp_difference=1e3), "on")
    )
    assert ours["loss"] == mine["loss"]
    assert (ours["distillation/on_policy_share"], mine["distillation/on_policy_share"]) == (0, 1)
