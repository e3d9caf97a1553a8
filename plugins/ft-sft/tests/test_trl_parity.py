"""The numbers of this package beside those of TRL's SFTTrainer, on the same model, rows and settings.

Where TRL's number depends on how rows are batched, ours is compared with one computed from the full logits.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_sft.config import SFTConfig

from ft_host.testing import (
    CHAT_TEMPLATE,
    TOLERANCES,
    assert_parity,
    assert_same,
    assert_same_training,
    differences,
    disturb,
    forget_accelerate,
    lines,
    run_in,
    save_adapter,
    save_tiny,
    tiny_llama,
    tiny_moe,
    tiny_qwen,
    tiny_tokenizer,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
    write_rows,
)

OWN = (
    "loss_type",
    "label_smoothing_factor",
    "completion_only_loss",
    "assistant_only_loss",
    "dataset_text_field",
    "max_length",
    "truncation_mode",
    "packing",
    "packing_strategy",
    "chat_template_path",
    "eos_token",
    "router_aux_loss_coef",
)
METRICS = {"entropy": 1e-5, "mean_token_accuracy": 1e-6}

# Marks the assistant's turns as TRL needs them; the text is that of CHAT_TEMPLATE.
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}<|end|>{% endgeneration %}{% else %}{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def trainer_of(config: SFTConfig, **more: Any) -> Any:
    """TRL's trainer for what `config` says. `more` overrides TRL's arguments."""
    import trl
    from transformers import AutoTokenizer

    return trl.SFTTrainer(
        model=trl_model(config),
        args=trl.SFTConfig(**(trl_arguments(config, *OWN) | more)),
        train_dataset=trl_rows(config.dataset),
        eval_dataset=trl_rows(config.eval_dataset) if config.eval_dataset else None,
        processing_class=AutoTokenizer.from_pretrained(config.model),
    )


def assert_same_as_trl(config: SFTConfig, **tolerances: float) -> list[dict[str, Any]]:
    """Both trainings, compared step by step and by the weights at the end. Gives ours."""
    folder = run_in(config, "ours")
    trainer = trainer_of(config)
    theirs = trl_trajectory(trainer)
    ours = lines(folder)
    assert len(ours) == config.max_steps
    assert_parity(ours, theirs, **tolerances)
    assert_same_training(config.model, folder / "model", trainer.model)
    return ours


# ---------------------------------------------------------------- one micro-batch a step: everything is equal


def test_plain_text(make, texts):
    assert_same_as_trl(make(texts), **METRICS)


def test_plain_text_with_weight_decay_and_a_schedule(make, texts):
    config = make(
        texts, weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=2, adam_beta2=0.95, max_grad_norm=0.0
    )
    assert_same_as_trl(config, **METRICS)


def test_plain_text_with_tied_embeddings_and_truncation(make, texts, tmp_path):
    model = save_tiny(tmp_path / "qwen", tiny_qwen(), tiny_tokenizer(chat=False))
    assert_same_as_trl(make(texts, model=str(model), max_length=24, truncation_mode="keep_end"), **METRICS)


def test_completion_only_by_default(make, prompts):
    ours = assert_same_as_trl(make(prompts), **METRICS)
    everything = lines(run_in(make(prompts, completion_only_loss=False), "everything"))
    assert ours[0]["loss"] != everything[0]["loss"], "the prompt was supervised"


def test_prompt_and_completion_all_supervised(make, prompts):
    assert_same_as_trl(make(prompts, completion_only_loss=False), **METRICS)


def test_conversational_completions(make, chats):
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in chats]
    assert_same_as_trl(make(rows), **METRICS)


def test_messages_all_supervised(make, chats):
    assert_same_as_trl(make(chats), **METRICS)


def test_assistant_only(make, chats, tmp_path):
    """TRL by a template's generation marks; ours by them and, from the text alone, without them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MARKED
    marked = save_tiny(tmp_path / "marked", tiny_llama(), tokenizer)
    ours = assert_same_as_trl(make(chats, model=str(marked), assistant_only_loss=True), **METRICS)
    unmarked = make(chats, assistant_only_loss=True)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(unmarked.model).chat_template == CHAT_TEMPLATE
    assert_same(ours, lines(run_in(unmarked, "unmarked")), rel=0)


def test_dft(make, prompts):
    assert_same_as_trl(make(prompts, loss_type="dft"), **METRICS)


@pytest.mark.parametrize("factor", [0.1, 1.0])
def test_label_smoothing(make, prompts, texts, tmp_path, factor):
    """As transformers' LabelSmoother, in training and in evaluation, whose loss is smoothed too."""
    held_out = str(write_rows(tmp_path / "held_out.jsonl", prompts[:5]))
    config = make(prompts, label_smoothing_factor=factor, eval_dataset=held_out)
    ours = assert_same_as_trl(config, mean_token_accuracy=1e-6)
    plain = lines(run_in(config, "plain", label_smoothing_factor=0.0))
    assert abs(ours[0]["loss"] - plain[0]["loss"]) > 1e-3
    found = lines(run_in(config, "evaluated", eval_on_start=True), "eval")[0]["eval_loss"]
    trainer = trainer_of(config, per_device_eval_batch_size=5)
    assert found == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    forget_accelerate()


def test_label_smoothing_does_not_depend_on_the_split(make, prompts):
    config = make(prompts, label_smoothing_factor=0.2)
    whole = lines(run_in(config, "4x1"))
    parts = lines(run_in(config, "1x4", per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert_parity(parts, whole, **METRICS)


def test_given_tokens(make):
    rows = [{"input_ids": [5 + i, 9, 40 + i, 77, 8], "labels": [-100, -100, 40 + i, 77, 8]} for i in range(24)]
    assert_same_as_trl(make(rows), **METRICS)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing(make, texts, strategy):
    """Blocks of 20 tokens; some rows are longer than that, and are cut, split or run on into the next block."""
    config = make(texts, packing=True, packing_strategy=strategy, max_length=20, per_device_train_batch_size=2)
    assert_same_as_trl(config, **METRICS)


def test_lora(make, texts, llama, tmp_path):
    """Both start from one adapter whose B is not zero, so that A and B have gradients from the first step."""
    adapter = save_adapter(llama, tmp_path / "adapter")
    assert_same_as_trl(make(texts, model=str(adapter), use_peft=True, weight_decay=0.1), **METRICS)


def test_mixture_of_experts(make, texts, tmp_path):
    """TRL's loss holds the weighted load-balancing loss, ours is the method's alone with `aux_loss` beside it."""
    model = save_tiny(tmp_path / "moe", tiny_moe())
    config = make(texts, model=str(model), router_aux_loss_coef=0.1)
    ours, theirs = lines(run_in(config, "ours")), trl_trajectory(trainer_of(config))
    summed = [line | {"loss": line["loss"] + 0.1 * line["aux_loss"]} for line in ours]
    assert_parity(summed, theirs, aux_loss=1e-5, **METRICS)
    without = lines(run_in(dataclasses.replace(config, router_aux_loss_coef=0.0), "without"))
    assert "aux_loss" not in without[0]
    assert without[0]["loss"] == pytest.approx(ours[0]["loss"], rel=1e-6)
    assert without[0]["grad_norm"] != pytest.approx(ours[0]["grad_norm"], rel=1e-4), "the routers got no gradient of it"


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_accumulation(make, prompts, loss_type):
    """Four rows at once and one by one, here and in TRL: loss and gradient are the same four times."""
    config = make(prompts, loss_type=loss_type)
    whole = lines(run_in(config, "4x1"))
    split_config = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    split = lines(run_in(split_config, "1x4"))
    assert_parity(split, whole, **METRICS)
    assert_parity(whole, trl_trajectory(trainer_of(config)), **METRICS)
    assert_parity(split, trl_trajectory(trainer_of(split_config)))


def test_metrics_are_means_over_tokens_where_trl_averages_micro_batches(make, prompts):
    config = make(prompts, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    ours = lines(run_in(config, "ours"))[0]
    theirs = trl_trajectory(trainer_of(config))[0]
    expected = by_hand(config, prompts[:4])
    for name in ("loss", "entropy", "mean_token_accuracy"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-5), name
    each = [by_hand(config, [row]) for row in prompts[:4]]
    assert theirs["entropy"] == pytest.approx(sum(row["entropy"] for row in each) / 4, rel=1e-5)
    assert abs(theirs["entropy"] - ours["entropy"]) > 1e-4 * ours["entropy"]


def test_evaluation_does_not_depend_on_its_batch_size_where_that_of_trl_does(make, prompts):
    found, trl_found = [], []
    for size in (1, 4, 6):
        config = make(prompts, max_steps=1, per_device_eval_batch_size=size, eval_on_start=True)
        file = write_rows(Path(config.output_dir) / "eval.jsonl", prompts[:6])
        config = dataclasses.replace(config, eval_dataset=str(file))
        found.append(lines(run_in(config, f"eval-{size}"), "eval")[0])
        trl_found.append(trainer_of(config).evaluate()["eval_loss"])
    expected = by_hand(config, prompts[:6])
    for entry in found:
        for name in ("loss", "entropy", "mean_token_accuracy"):
            assert entry[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-5), name
    assert trl_found[2] == pytest.approx(expected["loss"], rel=1e-5)  # all rows in one batch
    assert abs(trl_found[0] - expected["loss"]) > 1e-4 * expected["loss"]


def by_hand(config: SFTConfig, rows: list[dict[str, str]]) -> dict[str, float]:
    """The metrics of prompt-completion rows from the model's full logits, row by row."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(config.model), AutoTokenizer.from_pretrained(config.model)
    loss = entropy = hits = count = 0.0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        first = next(at for at, token in enumerate(ids) if at == len(prompt) or token != prompt[at])
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        for position in range(first, len(ids)):  # the completion is where the tokens part
            row_logs = logs[position - 1]
            loss -= float(row_logs[ids[position]])
            entropy -= float((row_logs.exp() * row_logs).sum())
            hits += float(row_logs.argmax() == ids[position])
            count += 1
    return {"loss": loss / count, "entropy": entropy / count, "mean_token_accuracy": hits / count}


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_a_model_without_opinion(make, tmp_path, loss_type):
    """With a head of zeros every token has probability 1/V, so that all is known without a model."""
    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = [
        {"input_ids": [10, 11, 12], "labels": [10, 11, 12]},  # 2 targets: nothing predicts the first
        {"input_ids": [13, 14, 15, 16], "labels": [-100, -100, -100, 16]},  # 1
        {"input_ids": [17, 18, 19, 20, 21], "labels": [-100, 18, -100, 20, 21]},  # 3
    ]
    folder = save_tiny(tmp_path / "flat", model)
    config = make(rows, model=str(folder), loss_type=loss_type, max_steps=1, per_device_train_batch_size=3)
    line = lines(run_in(config, "flat"))[0]
    vocabulary = 256
    share = {"nll": 1.0, "dft": 1 / vocabulary}[loss_type]
    assert line["loss"] == pytest.approx(share * math.log(vocabulary), rel=1e-6)
    assert line["entropy"] == pytest.approx(math.log(vocabulary), rel=1e-6)
    assert line["num_tokens"] == 12
    # Only the head has a gradient: the mean over the six targets of weight × (p - onehot) ⊗ hidden.
    gradient = torch.zeros(vocabulary, 64)
    for row in rows:
        with torch.no_grad():
            hidden = model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0]
        for position, label in enumerate(row["labels"]):
            if position and label != -100:
                error = torch.full((vocabulary,), 1 / vocabulary)
                error[label] -= 1
                gradient += share / 6 * torch.outer(error, hidden[position - 1])
    assert line["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_parity_is_refused_where_something_differs():
    """The comparison itself: it sees a difference just above what is allowed."""
    ours = [{"step": 1, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_tokens": 7}]
    theirs = [ours[0] | {"loss": 1.0 + 2 * TOLERANCES["loss"]}]
    assert differences(ours, theirs, ("loss",))["loss"] == pytest.approx(2e-5, rel=1e-3)
    with pytest.raises(AssertionError, match="loss: relative difference 2.00e-05"):
        assert_parity(ours, theirs)


def test_another_training_is_seen_in_the_weights(tmp_path):
    trained = tiny_llama()
    begun = save_tiny(tmp_path / "begun", trained)
    disturb(trained)
    ours = save_tiny(tmp_path / "ours", trained)
    assert_same_training(begun, ours, trained)
    with pytest.raises(AssertionError, match="was not trained"):
        assert_same_training(ours, ours, trained)
    with torch.no_grad():
        trained.model.norm.weight.add_(1e-3)
    with pytest.raises(AssertionError, match="^model.norm.weight"):
        assert_same_training(begun, ours, trained)
