"""What must not change the numbers of gold: the checks of ft_host.testing."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ft_gold import method
from ft_gold.config import GOLDConfig
from ft_gold.tokens import meeting

from ft_host.testing import (
    assert_same,
    invariants,
    lines,
    other_tokenizer,
    rollouts_ahead,
    run_in,
    same_as_sync,
    save_tiny,
    small_tiles,
    tiny_llama,
    tiny_tokenizer,
    write_rows,
)

TOLERANCE, ABSOLUTE = 1e-4, 2e-6


@pytest.fixture
def mixed(make, chats) -> GOLDConfig:
    """A share of the prompts is the policy's to complete; the others have the completion of their row."""
    return make(chats, max_steps=4, train_sampling_strategy="random")


KINDS = {
    "mixed": {"uld_crossentropy_weight": 0.5},
    "of the data, bayesian": {"lmbda": 0.0, "uld_token_merge_strategy": "bayesian", "beta": 0.0},
    "sorted": {"uld_use_hybrid_loss": False, "uld_student_temperature": 0.7, "uld_crossentropy_weight": 0.3},
    "by position": {
        "use_extended_uld": False,
        "lmbda": 0.0,
        "uld_skip_student_eos": True,
        "uld_skip_teacher_eos": True,
    },
    "by the teacher": {"lmbda": 0.3, "seq_kd": True},
    "lora": {"use_peft": True, "learning_rate": 1e-2, "beta": 1.0},
    "the same tokens": {},
}


@pytest.fixture
def config(request, mixed, relative):
    kind = request.param
    more = {"teacher_model_name_or_path": str(relative)} if kind == "the same tokens" else {}
    return dataclasses.replace(mixed, **KINDS[kind], **more)


ALL = pytest.mark.parametrize("config", KINDS, indirect=True)


@ALL
def test_micro_batch_split(config):
    invariants.micro_batch_split(config, rel=TOLERANCE, abs=ABSOLUTE)


@pytest.mark.parametrize("config", ["mixed", "sorted", "of the data, bayesian"], indirect=True)
def test_tiles(config):
    """A unit or two at a time, or all at once."""
    whole = lines(run_in(config, "whole"))
    with small_tiles(3):
        assert_same(whole, lines(run_in(config, "tiles")), TOLERANCE, ABSOLUTE)


@pytest.mark.parametrize("config", ["mixed", "by the teacher"], indirect=True)
def test_rollouts_ahead(config):
    rollouts_ahead(config)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mixed", "by the teacher"], indirect=True)
def test_without_staleness_it_is_the_synchronous_run(config):
    same_as_sync(config)


@pytest.mark.parametrize("config", ["mixed"], indirect=True)
def test_seeds(config):
    invariants.seeds(config)


def test_the_order_of_rows(mixed):
    """Of what gold is given of the data: held-out rows are laid out as they are."""
    invariants.row_order(dataclasses.replace(mixed, lmbda=0.0), "gold")


# ---------------------------------------------------------------- where completions come from


def test_without_a_share_nothing_is_generated(make, chats, backend):
    """Not even to try the sampler out. Only evaluation completes prompts."""
    import importlib

    found = lines(run_in(make(chats, lmbda=0.0, backend=backend, max_steps=3), "run"))
    assert importlib.import_module(f"fake_{backend}").ASKED == []
    for line in found:
        assert line["distillation/on_policy_share"] == 0
        assert not [name for name in line if name.startswith(("completions/", "sampling/"))]


def test_what_the_teacher_says_is_its_own(make, chats, teacher):
    """In its own tokens, which the student reads as text: greedy, as all sampling is at a temperature of next to
    nothing. It is the teacher's end that ends it, not the student's, which is another token there."""
    import torch
    from transformers import AutoModelForCausalLM

    size = 20
    config = make(
        chats,
        lmbda=0.0,
        seq_kd=True,
        temperature=1e-4,
        max_steps=1,
        logged_completions=8,
        max_completion_length=size,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
    )
    folder = run_in(config, "run")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), other_tokenizer()
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    for sample in samples:
        assert sample["extra"] == {"by": "teacher"}
        ids = tokenizer.apply_chat_template(sample["prompt"], add_generation_prompt=True, return_dict=False)
        said: list[int] = []
        while len(said) < size and not (said and said[-1] in ends):
            with torch.no_grad():
                said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
        text = tokenizer.decode([token for token in said if token not in ends], skip_special_tokens=True)
        assert text.startswith(sample["completion"]) and (sample["completion"] or not text.strip())
    assert tiny_tokenizer().eos_token_id not in ends  # 7: an ordinary token of the teacher's
    [line] = lines(folder)
    assert line["distillation/aligned_share"] > 0.3  # up to the first mark of a turn that random weights say


def test_the_share_is_drawn_for_each_prompt():
    """By nothing but seed, rollout and prompt: the same in every process, and in a run that goes on."""
    config = GOLDConfig(lmbda=0.3)
    drawn = [[method.on_policy(config, rollout, group) for group in range(50)] for rollout in range(40)]
    assert abs(sum(map(sum, drawn)) / 2000 - 0.3) < 0.04
    assert not any(method.on_policy(GOLDConfig(lmbda=0.0), 0, group) for group in range(500))
    assert all(method.on_policy(GOLDConfig(lmbda=1.0), 0, group) for group in range(500))


def test_metrics(mixed):
    for line in lines(run_in(mixed, "run", max_steps=2)):
        assert 0 < line["distillation/on_policy_share"] < 1
        both = sorted((line["distillation/on_policy_loss"], line["distillation/off_policy_loss"]))
        assert both[0] < line["distillation/divergence"] < both[1]
        assert line["sampling/sampling_logp_difference/mean"] < 1e-5
        for name in ("aligned_share", "matched_mass", "teacher_agreement"):
            assert 0 <= line[f"distillation/{name}"] <= 1
        share = len(meeting(tiny_tokenizer(), mixed).shared[0]) / 200
        parts = share * line["distillation/matched_loss"] + (1 - share) * line["distillation/unmatched_loss"]
        assert line["distillation/divergence"] == pytest.approx(parts, rel=1e-5)


def test_the_end_is_taught(make, chats):
    """An end is compared with an end: a student learns to stop where its teacher would. Left out, it has no gradient
    there."""
    whole = lines(run_in(make(chats, lmbda=0.0, max_steps=1), "whole"))[0]
    without = lines(
        run_in(make(chats, lmbda=0.0, max_steps=1, uld_skip_student_eos=True, uld_skip_teacher_eos=True), "without")
    )
    assert whole["distillation/aligned_share"] == 1 > without[0]["distillation/aligned_share"]


def said_of(folder) -> str:
    return (folder / "events.jsonl").read_text(encoding="utf-8")


def test_the_run_says_how_the_two_are_compared(make, chats, relative):
    same = run_in(make(chats, max_steps=1, teacher_model_name_or_path=str(relative)), "same")
    assert (
        "the teacher reads the student's tokens: they are compared token by token, by the plain divergence"
        in said_of(same)
    )
    other = run_in(make(chats, max_steps=1), "other")
    assert f"of its {len(other_tokenizer())} tokens are also the student's" in said_of(other)
    plain = run_in(make(chats, max_steps=1, uld_use_hybrid_loss=False), "sorted")
    assert "compared by their sorted probabilities" in said_of(plain)


def test_the_same_tokens_by_text(make, chats, tmp_path):
    """Asked for: with all tokens shared and each a unit, the hybrid loss of a row is the plain one."""
    size = len(tiny_tokenizer())
    places = [str(save_tiny(tmp_path / f"{seed}", tiny_llama(seed=seed, vocab_size=size))) for seed in (0, 5)]
    rows = [row for row in chats if len(row["messages"]) == 2][:1]
    fields = {
        "lmbda": 0.0,
        "per_device_train_batch_size": 1,
        "max_steps": 1,
        "model": places[0],
        "teacher_model_name_or_path": places[1],
    }
    plain = lines(run_in(make(rows, **fields), "plain"))[0]
    more = {"uld_hybrid_matched_weight": 1.0, "uld_hybrid_unmatched_weight": 0.0}
    by_text = lines(run_in(make(rows, **fields, use_uld_loss=True, **more), "text"))[0]
    assert by_text["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert by_text["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_teacher_whose_tokens_cant_be_told_apart(make, chats, tmp_path):
    """By position and sorted probabilities, which is what the refusal offers."""
    from tokenizers import decoders

    lossy = other_tokenizer()
    lossy.backend_tokenizer.decoder = decoders.WordPiece()
    place = save_tiny(tmp_path / "lossy", tiny_llama(vocab_size=200), lossy)
    config = make(
        chats, teacher_model_name_or_path=str(place), use_extended_uld=False, uld_use_hybrid_loss=False, max_steps=2
    )
    assert all(line["loss"] > 0 for line in lines(run_in(config, "run")))


# ---------------------------------------------------------------- evaluation


def test_held_out_divergence(mixed, chats, tmp_path):
    """Of the completions of held-out rows, whatever the size of a batch, and beside it completions by the policy."""
    held_out = write_rows(tmp_path / "held_out.jsonl", chats[:7])
    config = dataclasses.replace(mixed, eval_dataset=str(held_out), eval_steps=2)
    found = lines(run_in(config, "run"), "eval")
    small = lines(run_in(config, "small", per_device_eval_batch_size=2), "eval")
    assert_same(found, small, TOLERANCE, ABSOLUTE)
    assert [line["step"] for line in found] == [2, 4]
    assert all(line["eval_loss"] > 0 and line["eval_completions/mean_length"] > 0 for line in found)
    first = lines(run_in(config, "first", max_steps=1, eval_on_start=True), "eval")[0]
    data = lines(
        run_in(
            dataclasses.replace(config, train_sampling_strategy="sequential"),
            "data",
            lmbda=0.0,
            dataset=str(held_out),
            per_device_train_batch_size=7,
            max_steps=1,
        )
    )
    assert first["eval_loss"] == pytest.approx(data[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("fields", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_held_out_prompts_alone(make, prompts, tmp_path, fields):
    held_out = write_rows(tmp_path / "held_out.jsonl", prompts[:4])
    config = make(prompts, eval_dataset=str(held_out), eval_steps=1, max_steps=1, **fields)
    [line] = lines(run_in(config, "run"), "eval")
    assert "eval_loss" not in line and line["eval_completions/mean_length"] > 0


def test_rewards_are_watched(make, chats, tmp_path):
    """Nothing is learnt from them."""
    (tmp_path / "rewards.py").write_text("def length(completions, **_):\n    return [1.0 for _ in completions]\n")
    config = make(chats, max_steps=2)
    plain = lines(run_in(config, "plain"))
    paid = lines(run_in(config, "paid", reward=[f"{tmp_path / 'rewards.py'}:length"]))
    assert [line["loss"] for line in plain] == [line["loss"] for line in paid]
    assert all(line["reward"] == 1 and line["rewards/length/mean"] == 1 for line in paid)


# ---------------------------------------------------------------- embeddings with rows that are no token


@pytest.mark.parametrize("rows", [{"student": 300, "teacher": 200}, {"student": 256, "teacher": 230}], ids=str)
def test_padded_embeddings(make, prompts, tmp_path, rows):
    tokenizers = {"student": tiny_tokenizer(), "teacher": other_tokenizer()}
    places = {
        name: str(save_tiny(tmp_path / name, tiny_llama(seed=seed, vocab_size=size), tokenizers[name]))
        for seed, (name, size) in enumerate(rows.items())
    }
    config = make(
        prompts, lmbda=1.0, model=places["student"], teacher_model_name_or_path=places["teacher"], learning_rate=1e-2
    )
    found = lines(run_in(config, "run"))
    assert found[-1]["loss"] < found[0]["loss"]


# ---------------------------------------------------------------- other processes


@pytest.mark.slow
@pytest.mark.nightly("mixed")
@pytest.mark.parametrize("config", ["mixed", "by the teacher"], indirect=True)
def test_resume(config):
    """Killed in the middle: completions and whose they are come from the checkpoint, or are drawn again."""
    invariants.resume(dataclasses.replace(config, max_steps=12, save_steps=5))


@pytest.mark.slow
@pytest.mark.nightly("sorted-ddp", "lora-fsdp2")
@pytest.mark.parametrize(
    ("config", "strategy"),
    [("mixed", "ddp"), ("sorted", "ddp"), ("lora", "fsdp2"), ("by the teacher", "fsdp2")],
    indirect=["config"],
)
def test_process_count(config, strategy):
    """Two processes sample the same completions, ask the same teacher, and have one gradient."""
    config = dataclasses.replace(config, save_steps=2, distributed_strategy=strategy)
    invariants.process_count(config, rel=TOLERANCE, abs=ABSOLUTE)
