"""Whole runs of five steps beside TRL's trainer: completions of the data, and fixed ones of the policy."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ft_gold.config import GOLDConfig

from ft_host.testing import (
    assert_parity,
    assert_same,
    forget_accelerate,
    lines,
    rounds,
    run_in,
    save_adapter,
    tiny_tokenizer,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = (
    "temperature",
    "disable_dropout",
    "beta",
    "lmbda",
    "seq_kd",
    "use_extended_uld",
    "uld_token_merge_strategy",
    "uld_use_hybrid_loss",
    "uld_hybrid_matched_weight",
    "uld_hybrid_unmatched_weight",
    "uld_crossentropy_weight",
    "uld_distillation_weight",
    "uld_skip_student_eos",
    "uld_skip_teacher_eos",
    "max_completion_length",
)
UNTOLD = {"num_tokens": 1}  # by TRL
ENDS = {"uld_skip_student_eos": True, "uld_skip_teacher_eos": True}  # TRL's default


def golden(config: GOLDConfig, gives: Any = None, uld: bool = True, **more: Any) -> Any:
    """TRL's trainer for what `config` says, on rows in their order. `gives(prompt)` stands for what it would sample."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gold import GOLDConfig as Theirs
    from trl.experimental.gold import GOLDTrainer
    from trl.trainer.utils import RepeatSampler

    class Given(GOLDTrainer):
        def _get_train_sampler(self, dataset=None):
            steps = self.args.gradient_accumulation_steps
            size = self.args.per_device_train_batch_size * steps
            return RepeatSampler(self.train_dataset, 1, batch_size=size, repeat_count=steps, shuffle=False)

        def _generate_non_vllm_for_slices(self, slices, on_policy_indices):
            places, prompts = [], []
            for place in on_policy_indices:
                for ids, mask in zip(slices[place]["prompts"], slices[place]["prompt_attention_mask"], strict=True):
                    places.append(place)
                    prompts.append(ids[mask.bool()].tolist())
            texts = self.processing_class.batch_decode(prompts)
            said = [gives(text) for text in texts]
            self._process_completions_to_buffer(
                slices, on_policy_indices, places, said, prompts, texts, config.max_completion_length
            )

    temperatures = {
        "uld_student_temperature": config.student_temperature,
        "uld_teacher_temperature": config.teacher_temperature,
    }
    return Given(
        model=trl_model(config),
        teacher_model=AutoModelForCausalLM.from_pretrained(config.teacher_model_name_or_path),
        args=Theirs(**(trl_arguments(config, *OWN) | temperatures | more), use_uld_loss=uld, max_length=None),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
    )


@pytest.fixture
def gold(make, backend, chats):
    def made(rows=None, **fields: Any) -> GOLDConfig:
        usual = {"backend": backend, "max_length": None, "lmbda": 0.0, "max_completion_length": 200}
        return make(rows or chats, **(usual | fields))

    return made


BAYESIAN = ENDS | {"uld_token_merge_strategy": "bayesian"}  # TRL's other one reads logits one place late
KINDS = {
    "hybrid": BAYESIAN,
    "weights": BAYESIAN | {"uld_hybrid_matched_weight": 1.0, "uld_hybrid_unmatched_weight": 0.5, "beta": 0.3},
    "sorted": BAYESIAN | {"uld_use_hybrid_loss": False, "uld_student_temperature": 0.8, "uld_teacher_temperature": 1.2},
    "cross-entropy": BAYESIAN | {"uld_crossentropy_weight": 0.5, "uld_distillation_weight": 2.0},
}


@pytest.mark.parametrize("name", KINDS)
def test_five_steps_on_the_data(name, gold):
    config = gold(**KINDS[name])
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(golden(config))
    assert_parity(ours, [line | UNTOLD for line in theirs], num_tokens=1.0)
    assert ours[0]["grad_norm"] > 1e-2 and ours[0]["distillation/on_policy_share"] == 0


@pytest.mark.parametrize("ends", [{}, ENDS], ids=["ends", "no ends"])
@pytest.mark.parametrize("hybrid", [True, False], ids=["hybrid", "sorted"])
def test_five_steps_by_position(gold, ends, hybrid):
    """TRL's `bayesian` merges nothing here, but is the one whose logits are in place."""
    config = gold(use_extended_uld=False, uld_use_hybrid_loss=hybrid, **ends)
    skipped = dict.fromkeys(ENDS, bool(ends))
    theirs = trl_trajectory(golden(config, uld_token_merge_strategy="bayesian", **skipped))
    assert_parity(lines(run_in(config, "ours")), [line | UNTOLD for line in theirs], num_tokens=1.0)


def test_the_fields_matter(gold):
    losses = [lines(run_in(gold(**fields), f"{index}"))[4]["loss"] for index, fields in enumerate(KINDS.values())]
    losses.append(lines(run_in(gold(**ENDS), "observed"))[4]["loss"])
    losses.append(lines(run_in(gold(**KINDS["hybrid"] | dict.fromkeys(ENDS, False)), "ends"))[4]["loss"])
    for index, loss in enumerate(losses):
        assert all(abs(loss / other - 1) > 1e-3 for other in losses[:index]), index


def own_runs(gold, fixed, rows) -> tuple[list, list]:
    config = gold(rows, lmbda=1.0, max_completion_length=12, max_sampling_logp_difference=1e3, **BAYESIAN)
    return lines(run_in(config, "ours")), trl_trajectory(golden(config, fixed))


@pytest.fixture
def said(fixed):
    """Conversations, and the fixed completion of each one's prompt."""
    tokenizer, noise = tiny_tokenizer(), random.Random(7)
    found = []
    for _ in range(200):
        row = {"messages": rounds(noise, 1, 6)}
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        found.append((row, fixed(prompt)))
    return found


END = 7


def test_five_steps_on_the_policys_own(gold, fixed, said):
    """Fixed completions that say something and end."""
    rows = [row for row, ids in said if ids[-1] == END and len(ids) > 1][:40]
    ours, theirs = own_runs(gold, fixed, rows)
    assert_parity(ours, [line | UNTOLD for line in theirs], num_tokens=1.0)


def test_completions_that_are_cut_short_are_compared_up_to_their_last_token(gold, fixed, said):
    """TRL takes the last token of each for its end, and leaves it out."""
    ours, theirs = own_runs(gold, fixed, [row for row, ids in said if ids[-1] != END][:8])
    forget_accelerate()
    print("ours", ours[0]["loss"], "TRL", theirs[0]["loss"])
    assert abs(theirs[0]["loss"] / ours[0]["loss"] - 1) > 1e-4


def test_completions_of_nothing_are_in_no_denominator(gold, fixed, said):
    """Of five that say something and three that end at once, TRL's loss is the sum of the five over eight."""
    full = [row for row, ids in said if ids[-1] == END and len(ids) > 1][:5]
    rows = full + [row for row, ids in said if ids == [END]][:3]
    ours, theirs = own_runs(gold, fixed, rows)
    forget_accelerate()
    print("ours", ours[0]["loss"], "TRL", theirs[0]["loss"])
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"] * 8 / 5, rel=1e-5)


def test_five_steps_with_the_same_tokens(gold, relative):
    """The plain divergence, as TRL has it with use_uld_loss: false."""
    config = gold(teacher_model_name_or_path=str(relative), beta=0.3, temperature=0.8)
    ours = lines(run_in(config, "ours"))
    theirs = trl_trajectory(golden(config, uld=False))
    assert_parity(ours, [line | UNTOLD for line in theirs], num_tokens=1.0)


def test_lora(gold, llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter")
    config = gold(model=str(adapter), use_peft=True, learning_rate=1e-2, **BAYESIAN)
    ours = lines(run_in(config, "ours"))
    assert_parity(ours, [line | UNTOLD for line in trl_trajectory(golden(config))], num_tokens=1.0)


@pytest.mark.parametrize("kind", ["by text", "the same tokens"])
def test_accumulation(kind, gold, relative):
    """Steps of two micro-batches are those of one. TRL's aren't: the plain divergence is divided by the tokens of the
    whole step twice over, and the comparison by text not at all."""
    plain = kind == "the same tokens"
    fields = {"teacher_model_name_or_path": str(relative)} if plain else KINDS["hybrid"]
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    whole = lines(run_in(gold(**fields, max_steps=1), "whole"))
    ours = lines(run_in(gold(**fields, **halves), "halves"))
    assert_same(whole, ours, rel=1e-4, abs=2e-6)
    [theirs] = trl_trajectory(golden(gold(**fields, **halves), uld=not plain))
    forget_accelerate()
    ratios = {name: theirs[name] / ours[0][name] for name in ("loss", "grad_norm")}
    print("ours", ours[0]["loss"], ours[0]["grad_norm"], "TRL", theirs["loss"], theirs["grad_norm"], ratios)
    expected = 0.5 if plain else 2.0
    assert ratios == {name: pytest.approx(expected, rel=2e-3) for name in ratios}
