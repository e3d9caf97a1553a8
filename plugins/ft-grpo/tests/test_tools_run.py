"""A whole run with an environment: a sampler that calls a tool in its first turn and answers in the second, and the
loss of what it said alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import trl
from ft_grpo.config import GRPOConfig

from ft_host.api import FtHostError, UsageError
from ft_host.testing import RunFolder, chat_tokenizer, lines, run_in, save_tiny, tiny_llama, tiny_run

COUNTER = '''
class Counter:
    """Counts for one completion."""

    def reset(self, start, **columns):
        self.value = start

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
CALLS = """
from ft_host.api import Completion, Piece, hookimpl

CALL = '<tool_call>\\n{"name": "increase", "arguments": {"by": %d}}\\n</tool_call><|im_end|>'


@hookimpl
def ft_generate(requests, sampling, run):
    found = []
    for request in requests:
        seen = run.tokenizer.decode(request.prompt_ids)
        text = "done<|im_end|>" if "<tool_response>" in seen else CALL % (request.number % 4)
        ids = run.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason="stop"))
    return found


class Engine:  # answers what it has been asked at the next poll
    def __init__(self, run):
        self.run, self.asked = run, {}

    def submit(self, key, request, sampling):
        self.asked[key] = request

    def poll(self, patience):
        asked, self.asked = self.asked, {}
        found = ft_generate(list(asked.values()), None, self.run)
        pieces = [Piece(token_ids=each.token_ids, logprobs=each.logprobs, finish_reason="stop") for each in found]
        return list(zip(asked, pieces, strict=True))

    def withdraw(self, key):
        self.asked.pop(key, None)

    def interrupt(self):
        self.asked.clear()

    def update(self, version, weights): ...

    def close(self): ...


@hookimpl
def ft_engine(place):
    return Engine(place.run)
"""
FAILS = COUNTER.replace(
    "        self.value = start\n",
    """        from pathlib import Path
        tried = Path(__file__).with_name(f"tried-{start}")
        if start in (1, 5) or (start == 3 and not tried.exists()):
            tried.touch()
            raise ConnectionError(f"no server for {start}")
        self.value = start
""",
)


@pytest.fixture
def config(tmp_path: Path, install_plugin):
    install_plugin(
        "ft-caller",
        entry_points={"ft_host.backends": {"caller": "caller_that_calls"}},
        modules={"caller_that_calls": CALLS},
        requires=["ft-host"],
    )
    (tmp_path / "counter.py").write_text(COUNTER, encoding="utf-8")
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    tokenizer = chat_tokenizer(template, eos_token="<|im_end|>")
    model = save_tiny(
        tmp_path / "llama", tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048), tokenizer
    )
    rows = [{"prompt": [{"role": "user", "content": f"Count from {start}."}], "start": start} for start in range(8)]
    return tiny_run(
        GRPOConfig,
        model,
        tmp_path,
        rows,
        environment=f"{tmp_path / 'counter.py'}:Counter",
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=2,
        max_completion_length=512,
        max_length=2000,
        backend="caller",
        importance_sampling_correction="none",
        max_sampling_logp_difference=1e3,
        top_entropy_quantile=0.5,
    )


def test_what_tools_say_is_seen_and_not_learnt(config):
    folder = run_in(config, "counts")
    found = lines(folder)
    assert [line["tools/call_frequency"] for line in found] == [1.0, 1.0]
    assert [line["tools/failure_frequency"] for line in found] == [0.0, 0.0]
    # rows 0 and 1 of the data, then 2 and 3; each group has counted on by 0, 1, 2 and 3
    assert [line["reward"] for line in found] == [0.5 + 1.5, 2.5 + 1.5]
    assert [line["rewards/environment/mean"] for line in found] == [2.0, 4.0]
    samples = [each for each in RunFolder(folder).read("samples.jsonl") if each["kind"] == "rollout"]
    by_reward = {each["rewards"]["environment"]: each["advantage"] for each in samples[:4]}
    assert list(by_reward) == [0.0, 1.0, 2.0, 3.0] and sorted(by_reward.values()) == list(by_reward.values())
    assert all("increase" in each["completion"] and "done" in each["completion"] for each in samples)
    # a call of 44 characters or so and an answer were sampled; what the template and the tool say is in `tokens` alone
    assert all(each["tokens"] > found[0]["completions/mean_length"] for each in samples)
    assert all(line["grad_norm"] > 0 for line in found)


def test_a_reward_is_needed_that_the_environment_may_give(config, tmp_path):
    (tmp_path / "counter.py").write_text(COUNTER.partition("    def get_reward")[0], encoding="utf-8")
    with pytest.raises(UsageError, match="environment .* has no get_reward"):
        run_in(config, "for nothing")
    with pytest.raises(UsageError, match=r"reward is required: .*\(or environment\)"):
        run_in(dataclasses.replace(config, environment=None), "nothing")


def test_prompts_whose_environment_fails_are_set_aside_and_named_and_the_others_are_learnt_once(
    config, tmp_path, no_pauses
):
    (tmp_path / "counter.py").write_text(FAILS, encoding="utf-8")
    folder = run_in(
        config, "fails", rollouts="overlap", max_steps=-1, num_train_epochs=1, train_sampling_strategy="sequential"
    )
    rows = Counter(
        each["prompt"][0]["content"] for each in RunFolder(folder).read("samples.jsonl") if each["kind"] == "rollout"
    )
    assert rows == {f"Count from {start}.": 4 for start in (0, 2, 3, 4, 6, 7)}
    said = [each["text"] for each in RunFolder(folder).read("events.jsonl") if each["level"] == "warning"]
    aside = sorted(text for text in said if text.startswith("set aside"))
    for text, start in zip(aside, (1, 5), strict=True):
        assert text.startswith(f"set aside after all its retries: prompt {start} (")
        assert text.endswith(
            f"line {start + 1}; environment): environment Counter: reset failed: ConnectionError: no server for {start}"
        )
    findings = [each for each in RunFolder(folder).read("findings.jsonl") if each["code"] == "ASY009"]
    assert "failed again and again and won't be learnt from: prompt " in findings[0]["message"]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["facts"]["watch/set_aside_count"] == 2
    again = [text.split()[0] for text in said if "tried again" in text]  # "a prompt", or "2 attempts"
    assert sum(1 if count == "a" else int(count) for count in again) == 2 + 2 + 1


def test_an_environment_that_always_fails_ends_the_run_by_its_cause(config, tmp_path, no_pauses):
    (tmp_path / "counter.py").write_text(COUNTER.replace("self.value = start", "raise OSError(28, 'full')"))
    with pytest.raises(FtHostError, match=r"3 prompts of epoch 1 are set aside \(max_set_aside: 2\): prompt .*full"):
        run_in(config, "never", rollouts="overlap", max_set_aside=2)
    with pytest.raises(FtHostError, match="^environment Counter: reset failed: OSError"):
        run_in(config, "never at all")  # sync: at once, as ever
