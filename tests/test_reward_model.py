"""A reward that is a model's folder: what it gives, and what is refused before its weights are opened."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ft_host.config import RunConfig
from ft_host.config.paths import folder_problem, path_problems
from ft_host.errors import ConfigError, FtHostError
from ft_host.models import load_policy, save_model
from ft_host.rewards import RewardPool, Scoring, load_rewards, score
from ft_host.rewards.model import RewardModel, name_of
from ft_host.testing import models

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
TEXTS = {"prompts": ["how many?", "a b"], "completions": [" 12 apples", " c"]}
TALKS = {
    "prompts": [[{"role": "user", "content": "how many?"}], [{"role": "user", "content": "a"}]],
    "completions": [[{"role": "assistant", "content": "12 apples"}], [{"role": "assistant", "content": "b"}]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of ft-reward called first, as far as its model is concerned."""
    place = tmp_path_factory.mktemp("runs") / "first" / "model"
    return models.save_tiny(place, models.as_classifier(models.tiny_llama()), TOKENIZER)


def config_of(*rewards: Path | str, **fields: Any) -> RunConfig:
    given = {"model": "m", "dataset": "d", "eval_dataset": "e", "use_cpu": True}
    return RunConfig(**given, eval_reward=[str(reward) for reward in rewards], **fields)


def scores(config: RunConfig, columns: dict[str, list[Any]] | None = None, **given: Any) -> list[float | None]:
    scoring = Scoring(
        completion_ids=[[1]] * len(given["prompts"]), columns=columns or {}, trainer_state=SimpleNamespace(), **given
    )
    [found] = score(load_rewards(config), scoring)
    return found


def by_transformers(folder: Path, texts: list[str]) -> list[float]:
    """Each text alone, its tokens as they are."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits) for text in texts]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("size", [1, 8])
def test_texts_end_in_eos_and_conversations_are_what_the_template_makes_of_them(folder, size):
    config = config_of(folder, per_device_eval_batch_size=size)
    texts = ["how many? 12 apples<|end|>", "a b c<|end|>"]
    assert scores(config, **TEXTS) == pytest.approx(by_transformers(folder, texts), abs=1e-5)
    talks = ["<|user|>how many?<|end|><|assistant|>12 apples<|end|>", "<|user|>a<|end|><|assistant|>b<|end|>"]
    assert scores(config, **TALKS) == pytest.approx(by_transformers(folder, talks), abs=1e-5)


def test_the_template_is_the_models_own_and_sees_columns_of_the_data(tmp_path):
    tokenizer = models.tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{{ mark | default('.') }}{% endfor %}"
        "{% for tool in tools or [] %}{{ tool['name'] }}{% endfor %}"
    )
    place = models.save_tiny(tmp_path / "own", models.as_classifier(models.tiny_llama()), tokenizer)
    columns = {"tools": [None, [{"name": "look"}]], "chat_template_kwargs": [{"mark": "!"}, None]}
    found = scores(config_of(place), columns, **TALKS)
    assert found == pytest.approx(by_transformers(place, ["how many?!12 apples!", "a.b.look"]), abs=1e-5)


def test_an_adapter_of_a_language_model(tmp_path):
    """Its base gets a new head on the way: the run's random numbers don't see it."""
    base = models.save_tiny(tmp_path / "base", models.tiny_llama(), TOKENIZER)
    policy = load_policy(RunConfig(model=str(base), use_peft=True), TOKENIZER, CPU, "reward").eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    policy.requires_grad_(False)
    save_model(policy, tmp_path / "adapter")
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    texts = ["how many? 12 apples<|end|>", "a b c<|end|>"]
    expected = [float(policy.model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits) for text in texts]
    before = torch.random.get_rng_state()
    assert scores(config_of(tmp_path / "adapter"), **TEXTS) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_is_loaded_once_and_when_it_is_needed(folder, monkeypatch):
    loads, load = [], RewardModel.load
    monkeypatch.setattr(RewardModel, "load", lambda model: loads.append(model.folder) or load(model))
    [function] = load_rewards(config_of(folder))
    assert not loads
    first, second = function.call(**TEXTS), function.call(**TEXTS)
    assert first == second and loads == [str(folder)]
    policy, _ = function.call.loaded
    assert not policy.training and not any(parameter.requires_grad for parameter in policy.parameters())


def test_it_is_never_quantised(folder, monkeypatch):
    """With a quantised policy, that is: it would score as another model."""
    from ft_host import models as host

    seen, load = [], host.load_frozen
    monkeypatch.setattr(
        host, "load_frozen", lambda config, *a, **k: seen.append(config.load_in_4bit) or load(config, *a, **k)
    )
    assert len(scores(config_of(folder, load_in_4bit=True, use_peft=True), **TEXTS)) == 2
    assert seen == [False]


def test_no_rows_are_no_scores(folder):
    [function] = load_rewards(config_of(folder))
    assert function.call(prompts=[], completions=[]) == []


def test_in_a_pool_it_stays_in_this_process_beside_functions_in_others(folder, tmp_path):
    from ft_host.config.rollout import RolloutConfig

    (tmp_path / "mine.py").write_text("import os\ndef process(completions): return [os.getpid()] * len(completions)\n")
    specs = [str(folder), f"{tmp_path / 'mine.py'}:process"]
    pool = RewardPool(specs, RolloutConfig(model="m", dataset="d", use_cpu=True, reward=specs))
    given = {"completion_ids": [[1], [1]], "columns": {}, "trainer_state": None}
    values = pool.score(Scoring(**TEXTS, **given)).values
    expected = by_transformers(folder, ["how many? 12 apples<|end|>", "a b c<|end|>"])
    assert [value[0] for value in values] == pytest.approx(expected, abs=1e-5)
    assert pool.names == ["first", "process"] and values[0][1] == values[1][1] == pool.workers[0].process.pid
    with pytest.raises(FtHostError, match="^reward function first raised ValueError: text input"):
        pool.score(Scoring(prompts=[3, 4], completions=["a", "b"], **given))
    assert not pool.workers
    with pytest.raises(ConfigError, match="^reward: .* has no config.json"):
        RewardPool([str(tmp_path)], RolloutConfig(model="m", dataset="d", reward=[str(tmp_path)]))


# ---------------------------------------------------------------- names


def test_the_metric_has_the_name_of_the_run(folder, tmp_path, monkeypatch):
    assert [function.name for function in load_rewards(config_of(folder))] == ["first"]
    assert name_of("runs/x/merged") == "x"
    assert name_of("runs/x/checkpoints/step-20/model") == "step-20"
    assert name_of("judges/kind/") == "kind"
    monkeypatch.chdir(folder.parent)
    assert name_of("model") == "first"
    other = models.save_tiny(tmp_path / "first", models.as_classifier(models.tiny_llama()), TOKENIZER)
    with pytest.raises(ConfigError, match="two rewards are called 'first'"):
        load_rewards(config_of(folder, other))


# ---------------------------------------------------------------- refusals


def rewritten(folder: Path, place: Path, **changes: Any) -> Path:
    """Config and tokenizer of a reward model, with a weights file that must not be opened."""
    place.mkdir()
    for file in folder.glob("*.json"):
        (place / file.name).write_text(file.read_text())
    written = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
    (place / "model.safetensors").write_bytes(b"not to be opened")
    return place


CAUSAL = {"architectures": ["LlamaForCausalLM"]}
THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (CAUSAL, "holds a model LlamaForCausalLM; expected a sequence classifier with one label, as the training of"),
        (THREE, "holds a LlamaForSequenceClassification of 3 labels; expected"),
        ({"id2label": None}, "holds a LlamaForSequenceClassification of 2 labels; expected"),
    ],
    ids=["language model", "three labels", "two labels"],
)
def test_other_models_are_refused(folder, tmp_path, changes, said):
    place = rewritten(folder, tmp_path / "other", **changes)
    with pytest.raises(ConfigError, match="^eval_reward: .*" + said):
        load_rewards(config_of(place))
    [(field, problem)] = [found for found in path_problems(config_of(place), {}) if found[0] == "eval_reward"]
    assert said in problem


def test_what_transformers_saves_by_default_has_two_labels(tmp_path):
    models.save_tiny(tmp_path, models.as_classifier(models.tiny_llama(), num_labels=2), TOKENIZER)
    assert "of 2 labels" in folder_problem(tmp_path)


def test_folders_that_lack_something(folder, tmp_path):
    assert folder_problem(folder) is None
    assert folder_problem(folder.parent) == f"{folder.parent} has no config.json; did you mean {folder}?"
    assert "has no config.json; expected a sequence" in folder_problem(tmp_path)
    place = rewritten(folder, tmp_path / "bare")
    (place / "model.safetensors").unlink()
    assert "holds no weights" in folder_problem(place)
    (place / "model.safetensors").touch()
    for file in place.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in folder_problem(place)


def test_adapters_that_are_no_reward_models(tmp_path):
    base = models.save_tiny(tmp_path / "base", models.tiny_llama(), TOKENIZER)
    save_model(load_policy(RunConfig(model=str(base), use_peft=True), TOKENIZER, CPU), tmp_path / "language")
    assert "is an adapter of something else (task_type CAUSAL_LM)" in folder_problem(tmp_path / "language")
    save_model(load_policy(RunConfig(model=str(base), use_peft=True), TOKENIZER, CPU, "reward"), tmp_path / "reward")
    assert "has no tokenizer" in folder_problem(tmp_path / "reward")
    TOKENIZER.save_pretrained(tmp_path / "reward")
    assert folder_problem(tmp_path / "reward") is None
    base.rename(tmp_path / "moved")
    assert folder_problem(tmp_path / "reward").endswith(f"is an adapter of {base}, which isn't there")


def test_a_folder_that_is_not_there(folder):
    spec = str(folder.with_name("modle"))
    [(_, problem)] = [found for found in path_problems(config_of(spec), {}) if found[0] == "eval_reward"]
    assert problem == f"{spec}: no such folder; did you mean {folder}?"
    with pytest.raises(
        ConfigError, match="is not of the form file.py:function or package.module:function, and no folder"
    ):
        load_rewards(config_of(spec))
