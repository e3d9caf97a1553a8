"""A whole run with an environment: a sampler that calls a tool in its first turn and answers in the second, and the
loss of what it said alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trl
from ft_grpo.config import GRPOConfig

from ft_host.api import UsageError
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
from ft_host.api import hookimpl
from ft_host.api import Completion

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
"""


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
