"""Runs with `rollouts: overlap` that are stopped with prompts under way, and go on: each prompt of an epoch is learnt
from once, tokens that a checkpoint had are kept, and none is sampled twice.

The engine is scripted: a prompt whose number is divisible by three has long completions, which get some tokens after
each update and so live through several; all others end at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trl
from ft_grpo.config import GRPOConfig

from ft_host.errors import Interrupted
from ft_host.run import Run
from ft_host.rundir.recorded import file_of, recorded
from ft_host.scheduling.packed import read_packed
from ft_host.testing import chat_tokenizer, lines, run_in, save_tiny, tiny_llama, tiny_run
from ft_host.testing.invariants import assert_same, resume_in

LONG = 60  # tokens of a long completion; others have 3 and the end
SCRIPT = f"""
import time
from collections import Counter
from dataclasses import replace

from ft_host.api import Completion, Piece, hookimpl
from ft_host.scheduling.inbox import key_of

AFTER_AN_UPDATE = 20  # tokens that a long completion gets then
STATE = {{"held": True}}  # whether long ones wait for updates
SAMPLED = Counter()  # tokens by the name of their request
CALL = '<tool_call>\\n{{"name": "increase", "arguments": {{"by": %d}}}}\\n</tool_call><|im_end|>'


def long(text):
    number = int("".join(letter for letter in text.rpartition("prompt ")[2][:3] if letter.isdigit()))
    return number % 3 == 0


def text_of(prompt, request):
    if "increase" in prompt and "<tool_response>" not in prompt:
        return CALL % (request.number % 4)
    end = "<|im_end|>" if "<|im_end|>" in prompt else None
    return "".join("abcdefg"[(request.number + at) % 7] for at in range({LONG} if long(prompt) else 3)) + (end or "")


class Scripted:
    def __init__(self, tokenizer):
        self.tokenizer, self.running, self.ending = tokenizer, {{}}, False

    def submit(self, key, request, sampling):
        began = len(request.prompt_ids) - request.offset
        whole = replace(request, prompt_ids=request.prompt_ids[:began], offset=0)
        prompt = self.tokenizer.decode(whole.prompt_ids)
        ids = self.tokenizer(text_of(prompt, request), add_special_tokens=False)["input_ids"]
        ids += [] if prompt.startswith("<|im_start|>") else [self.tokenizer.eos_token_id]
        assert ids[: request.offset] == request.prompt_ids[began:], "it goes on with other tokens than it had"
        most = sampling.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        ids = ids[request.offset :][:most]
        calls = "increase" in prompt and "<tool_response>" not in prompt
        held = STATE["held"] and long(prompt) and not calls and sampling.max_new_tokens > AFTER_AN_UPDATE
        self.running[key] = [ids, AFTER_AN_UPDATE if held else len(ids), key_of(whole, sampling)]

    def poll(self, patience):
        found = []
        for key, (ids, left, name) in list(self.running.items()):
            if self.ending or not left:
                continue
            SAMPLED[name] += 1
            self.running[key] = [ids[1:], left - 1, name]
            found.append((key, Piece(token_ids=ids[:1], logprobs=[-1.0], finish_reason=None if ids[1:] else "stop")))
            if not ids[1:]:
                del self.running[key]
        if self.ending:
            self.running.clear()
        self.ending = False
        if not found:
            time.sleep(min(patience, 0.002))
        return found

    def withdraw(self, key):
        self.running.pop(key, None)

    def interrupt(self):
        self.ending = True

    def update(self, version, weights):
        pass

    def close(self):
        pass


@hookimpl
def ft_engine(place):
    return Scripted(place.tokenizer)


@hookimpl
def ft_generate(requests, sampling, run):
    return [Completion(token_ids=[5], logprobs=[-1.0], finish_reason="length") for _ in requests]
"""
REWARD = """
def some(completions, number, **columns):
    return [0.0 if n % 4 == 1 and SAME else index % 3 for index, n in enumerate(number)]
"""
COUNTER = '''
class Counter:
    """Counts for one completion."""

    def reset(self, number, **columns):
        self.value = number

    def increase(self, by: int) -> int:
        """Counts on.

        Args:
            by: how far
        """
        self.value += by
        return self.value

    def get_reward(self):
        return float(self.value)
'''


@pytest.fixture
def scripted(install_plugin):
    """The module of a backend of this name."""
    install_plugin(
        "ft-scripted",
        entry_points={"ft_host.backends": {"scripted": "fake_scripted"}},
        modules={"fake_scripted": SCRIPT},
        requires=["ft-host"],
    )
    __import__("fake_scripted")
    return sys.modules["fake_scripted"]


def made(model: Path, folder: Path, rows: list[dict[str, Any]], **fields: Any) -> GRPOConfig:
    """Rollouts of two prompts, of which five may be begun ahead: no bound waits for a long completion."""
    given = {
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": LONG + 4,
        "backend": "scripted",
        "max_sampling_logp_difference": 1e3,
        "importance_sampling_correction": "none",
        "rollouts": "overlap",
        "max_staleness": 4,
        "max_steps": -1,
        "num_train_epochs": 1.0,
    }
    return tiny_run(GRPOConfig, model, folder, rows, **(given | fields))


@pytest.fixture
def config(scripted, llama, tmp_path):
    (tmp_path / "pays.py").write_text(REWARD.replace("SAME", "False"), encoding="utf-8")
    rows = [{"prompt": f"prompt {n}? ", "number": n} for n in range(18)]
    return made(llama, tmp_path, rows, reward=[f"{tmp_path / 'pays.py'}:some"])


@pytest.fixture
def with_tools(scripted, tmp_path):
    (tmp_path / "counter.py").write_text(COUNTER, encoding="utf-8")
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    tokenizer = chat_tokenizer(template, eos_token="<|im_end|>")
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048)
    rows = [{"prompt": [{"role": "user", "content": f"prompt {n}? "}], "number": n} for n in range(18)]
    environment = {"environment": f"{tmp_path / 'counter.py'}:Counter", "max_length": 2000}
    return made(
        save_tiny(tmp_path / "llama", model, tokenizer), tmp_path, rows, max_completion_length=512, **environment
    )


def stopped(config: GRPOConfig, steps: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train so many steps; then the run is asked to stop."""
    log = Run.log

    def then_stop(run: Run, entry: dict[str, Any]) -> None:
        log(run, entry)
        run.signals.asked = run.step == steps

    monkeypatch.setattr(Run, "log", then_stop)
    with pytest.raises(Interrupted, match=f"stopped at step {steps} as asked"):
        run_in(config, "run")
    monkeypatch.setattr(Run, "log", log)
    return Path(config.output_dir) / "run"


def gone_on(config: GRPOConfig, folder: Path, scripted: Any) -> None:
    scripted.STATE["held"] = False
    resume_in(dataclasses.replace(config, output_dir=str(folder)), folder)


def units_of(folder: Path, step: int) -> list[dict[str, Any]]:
    """What a checkpoint has of prompts under way."""
    return json.loads((folder / f"checkpoints/step-{step}/buffer-0.json").read_text())["ahead"]["ledger"]["units"]


def rollouts_of(folder: Path) -> list[dict[str, Any]]:
    return [read_packed(file_of(folder, number, 0)) for number in recorded(folder)]


def learnt(folder: Path, tokenizer: Any) -> Counter[int]:
    """How often each prompt was learnt from: by number, of a group with all its rows."""
    found: Counter[int] = Counter()
    for rollout in rollouts_of(folder):
        texts = [tokenizer.decode(row["prompt_ids"]).rpartition("prompt ")[2] for row in rollout["rows"]]
        rows = Counter(int(text.partition("?")[0]) for text in texts)
        assert set(rows.values()) <= {2}, "part of a group"
        found.update(rows.keys())
    return found


def check_tokens(folder: Path, scripted: Any, *, turns: bool = False) -> None:
    """Nothing was sampled twice: each request of a prompt that ended has cost as many tokens as it has."""
    told: Counter[str] = Counter()
    for rollout in rollouts_of(folder):
        for prompt in rollout["prompts"]:
            told.update({name: sum(count for _, count in runs) for name, runs in prompt["versions"].items()})
        if not turns:
            lengths = sorted(len(row["completion_ids"]) for row in rollout["rows"])
            of_learnt = [len(row["sampling_logps"]) for row in rollout["rows"]]
            assert sorted(of_learnt) == lengths
    assert told and {name: scripted.SAMPLED[name] for name in told} == dict(told)


def tokenizer_of(config: GRPOConfig) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(config.model)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_that_goes_on_learns_from_each_prompt_once_and_samples_no_token_twice(
    config, scripted, monkeypatch, steps
):
    folder = stopped(config, steps, monkeypatch)
    units = units_of(folder, steps)
    under_way = [unit for unit in units if unit["state"] != "ready" and unit["begun"]]
    assert under_way, "nothing was under way: this tests nothing"
    gone_on(config, folder, scripted)
    assert learnt(folder, tokenizer_of(config)) == dict.fromkeys(range(18), 1)
    check_tokens(folder, scripted)
    rows = [row for rollout in rollouts_of(folder) for row in rollout["rows"]]
    for unit in under_way:
        [prompt] = unit["rows"]
        completions = [row["completion_ids"] for row in rows if row["prompt_ids"] == prompt["prompt_ids"]]
        for begun in unit["begun"].values():
            assert len(begun["versions"]) == len(begun["token_ids"]) > 0
            assert any(ids[: len(begun["token_ids"])] == begun["token_ids"] for ids in completions)


def test_the_run_that_went_on_replays_whole(config, scripted, monkeypatch):
    folder = stopped(config, 2, monkeypatch)
    gone_on(config, folder, scripted)
    again = run_in(config, "again", replay=str(folder))
    assert_same(lines(folder), lines(again), rel=0)


@pytest.mark.parametrize("steps", [8, 9])
def test_at_the_end_of_an_epoch_and_into_the_next_each_prompt_is_learnt_from_once_an_epoch(
    config, scripted, monkeypatch, steps
):
    scripted.STATE["held"] = False
    config = dataclasses.replace(config, num_train_epochs=2.0)
    folder = stopped(config, steps, monkeypatch)
    gone_on(config, folder, scripted)
    assert learnt(folder, tokenizer_of(config)) == dict.fromkeys(range(18), 2)
    check_tokens(folder, scripted)


def test_groups_without_a_signal_are_neither_learnt_from_nor_drawn_again(config, scripted, monkeypatch, tmp_path):
    (tmp_path / "pays.py").write_text(REWARD.replace("SAME", "True"), encoding="utf-8")
    config = dataclasses.replace(config, dynamic_sampling=True)
    folder = stopped(config, 2, monkeypatch)
    gone_on(config, folder, scripted)
    assert learnt(folder, tokenizer_of(config)) == {n: 1 for n in range(18) if n % 4 != 1}
    check_tokens(folder, scripted)
    numbers = Counter(prompt["number"] for rollout in rollouts_of(folder) for prompt in rollout["prompts"])
    assert numbers == dict.fromkeys(range(18), 1)  # those left out are recorded too, once each


@pytest.mark.parametrize("steps", [1, 2])
def test_conversations_with_tools_go_on_where_they_were(with_tools, scripted, monkeypatch, steps):
    folder = stopped(with_tools, steps, monkeypatch)
    units = units_of(folder, steps)
    assert any(len(unit["begun"]) > 2 for unit in units if unit["state"] != "ready"), "no second turn was under way"
    gone_on(with_tools, folder, scripted)
    assert learnt(folder, tokenizer_of(with_tools)) == dict.fromkeys(range(18), 1)
    check_tokens(folder, scripted, turns=True)
