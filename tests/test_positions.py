"""Rows longer than a model's positions: known before the first step, cut and said, or refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ft_host import train
from ft_host.errors import ConfigError, DataError
from ft_host.models.positions import Positions, beyond_training, fit_rows, positions_of, scaled, scoring_limits
from ft_host.testing.models import tiny_tokenizer
from ft_host.types import ModelSpec


def save(folder, config):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def small(kind, **more):
    from transformers import AutoConfig

    own = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoConfig.for_model(kind, **own | more)


LEARNED = {
    "gpt2": {"n_positions": 48},
    "opt": {"max_position_embeddings": 48, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "gpt_neo": {"max_position_embeddings": 48, "attention_types": [[["global"], 1]], "num_layers": 1},
    "gptj": {"n_positions": 48, "rotary_dim": 8},
    "gpt_bigcode": {"n_positions": 48},
}
OTHERS = {
    "llama": ({"max_position_embeddings": 48, "intermediate_size": 32}, Positions(trained=48)),
    "gpt_neox": ({"max_position_embeddings": 48, "intermediate_size": 32}, Positions(trained=48)),
    "bloom": ({}, Positions()),
    "mamba": ({"state_size": 4}, Positions()),
}


@pytest.mark.parametrize("kind", LEARNED)
def test_tables_of_positions_are_found_without_weights(tmp_path, kind):
    small(kind, **LEARNED[kind]).save_pretrained(tmp_path)
    assert positions_of(str(tmp_path), "model", None, False) == Positions(table=48)


@pytest.mark.parametrize("kind", OTHERS)
def test_rotary_positions_and_none_have_no_table(tmp_path, kind):
    fields, expected = OTHERS[kind]
    small(kind, **fields).save_pretrained(tmp_path)
    assert positions_of(str(tmp_path), "model", None, False) == expected


@pytest.mark.parametrize(
    "rope, length",
    [
        ({}, 32),
        ({"rope_type": "default", "rope_theta": 1e4}, 32),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"type": "linear", "factor": 2.0}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 8}, 32),
        (
            {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
            256,
        ),
    ],
)
def test_rope_scaling_counts(rope, length):
    assert scaled(32, rope) == length


@pytest.fixture
def short(tmp_path, config):
    """Twelve rows, one of them long, and a model of 48 learned positions."""
    rows = [{"text": "ab " * (60 if index == 5 else 3)} for index in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(
        config,
        model=save(tmp_path / "gpt2", small("gpt2", n_positions=48)),
        dataset=str(tmp_path / "rows.jsonl"),
        eval_dataset=str(tmp_path / "rows.jsonl"),
        per_device_train_batch_size=4,
        max_steps=3,
        save_steps=0,
        progress="lines",
    )


def test_longer_rows_are_cut_at_the_table_and_that_is_said(short, capsys):
    folder = train(short).folder
    said = capsys.readouterr().err
    assert "Warning: max_length is 48, as " in said and "has 48 positions and fails beyond; longer rows are cut" in said
    recorded = json.loads((folder / "run.json").read_text())
    assert recorded["config"]["max_length"] == 48 and recorded["facts"]["model/positions"] == 48
    assert recorded["facts"]["data/length_max"] > 48
    assert "Raise max_length" not in (folder / "findings.jsonl").read_text()


def test_a_length_beyond_the_table_is_refused_by_name(short):
    config = dataclasses.replace(short, max_length=64)
    with pytest.raises(ConfigError, match=r"max_length: 64 is more than .*gpt2 \(model\) can read.*at most 48"):
        fit_rows(config, {})
    config = dataclasses.replace(short, max_length=None)
    notes, facts = fit_rows(config, {})
    assert config.max_length == 48 and len(notes) == 1 and facts == {"model/positions": 48, "model/row_limit": 48}
    config = dataclasses.replace(short, max_length=40)
    assert fit_rows(config, {}) == ([], facts) and config.max_length == 40


def test_a_reference_of_fewer_positions_limits_the_rows(short, tmp_path):
    small("gpt2", n_positions=32).save_pretrained(tmp_path / "reference")
    specs = {"reference": ModelSpec(source=str(tmp_path / "reference"), field="ref_model")}
    config = dataclasses.replace(short)
    notes, facts = fit_rows(config, specs)
    assert config.max_length == 32 and facts["model/positions"] == 32 and "reference (ref_model)" in notes[0]
    with pytest.raises(ConfigError, match=r"max_length: 48 is more than .*reference \(ref_model\)"):
        fit_rows(dataclasses.replace(short, max_length=48), specs)
    own = {"teacher": dataclasses.replace(specs["reference"], own_tokenizer=True)}
    assert fit_rows(dataclasses.replace(short, max_length=48), own)[0] == []


def test_prompts_leave_room_for_completions(short):
    from ft_grpo.config import GRPOConfig

    given = {"model": short.model, "dataset": "d", "reward": ["r"]}
    config = GRPOConfig(**given, max_completion_length=16)
    notes, _ = fit_rows(config, {})
    assert config.max_length == 32 and "longer prompts are left out, so that completions fit" in notes[0]
    with pytest.raises(ConfigError, match="max_completion_length: 48 leaves no room for a prompt"):
        fit_rows(GRPOConfig(**given, max_completion_length=48), {})
    notes, _ = fit_rows(GRPOConfig(**given, max_completion_length=16, max_length=40), {})
    assert "a prompt of max_length 40 leaves 8 tokens" in notes[0]


def test_a_reward_model_of_fewer_positions_is_said(short, tmp_path):
    small("gpt2", n_positions=32).save_pretrained(tmp_path / "scores")
    config = dataclasses.replace(short, eval_reward=[str(tmp_path / "scores")], max_length=48, max_completion_length=8)
    [said] = scoring_limits(config)
    assert said.startswith(f"the reward model {tmp_path / 'scores'} has 32 positions")
    assert scoring_limits(dataclasses.replace(config, max_length=24)) == []


def test_rows_beyond_rotary_positions_are_said_once(config):
    facts = {"model/trained_positions": 64, "data/length_max": 200}
    said = beyond_training(dataclasses.replace(config, max_length=None), facts)
    assert len(said) == 1 and "rows have up to 200 tokens" in said[0] and "is meant for 64" in said[0]
    assert beyond_training(dataclasses.replace(config, max_length=64), facts) == []
    assert beyond_training(config, {"data/length_max": 200}) == []


def test_what_reaches_a_table_all_the_same_is_refused_in_words(short):
    from ft_host.batch import Segment, flat_batch
    from ft_host.models import load_frozen

    policy = load_frozen(short, short.model, torch.device("cpu"))
    prompt, end = Segment(input_ids=[5] * 40, labels=[-100] * 40, row=0), [7] * 9
    ends = [Segment(input_ids=end, labels=end, row=0, parent=0) for _ in range(2)]
    with pytest.raises(DataError, match="a text of 49 tokens was given to .*gpt2, which has 48 positions"):
        policy(flat_batch([prompt, *ends], num_rows=1))
