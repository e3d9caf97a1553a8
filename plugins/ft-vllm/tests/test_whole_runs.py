"""Whole runs whose rollouts don't wait, over two servers of fake_vllm.py: what they sample is no language, so that
log-probs don't match, but each prompt is learnt from once, with its versions, whatever happens to a server.
"""

from __future__ import annotations

import collections
import random
import threading
import time
from pathlib import Path

import pytest
from ft_grpo.config import GRPOConfig

import ft_host
from ft_host.testing import RunFolder, lines, save_tiny, sentence, tiny_llama, tiny_run, tiny_tokenizer, train_apart

pytestmark = pytest.mark.slow
REWARD = """
def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
"""


@pytest.fixture
def config(tmp_path: Path, fakes) -> GRPOConfig:
    """Six rollouts of two prompts, four completions each, a step each."""
    noise = random.Random(4)
    rows = [{"prompt": f"{sentence(noise, 4)}? "} for _ in range(12)]
    (tmp_path / "pays.py").write_text(REWARD, encoding="utf-8")
    model = save_tiny(tmp_path / "llama", tiny_llama(head_dim=32), tiny_tokenizer())
    for fake in fakes:
        fake.pace = 0.02
    return tiny_run(
        GRPOConfig,
        model,
        tmp_path,
        rows,
        reward=[f"{tmp_path / 'pays.py'}:letters"],
        max_completion_length=20,
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=6,
        learning_rate=1e-3,
        max_sampling_logp_difference=1e3,
        backend="vllm",
        backend_config={
            "urls": [fake.url for fake in fakes],
            "health_period": 0.2,
            "health_timeout": 2.0,
            "transfer": "folder",
        },
    )


def prompts_learnt(folder: Path) -> collections.Counter:
    samples = RunFolder(folder).read("samples.jsonl")
    return collections.Counter(each["prompt"] for each in samples if each["kind"] == "rollout")


@pytest.mark.nightly("async-False")
@pytest.mark.parametrize("rollouts, recompute", [("overlap", True), ("async", True), ("async", False)])
def test_a_run_over_two_servers_one_of_which_is_lost(config, fakes, begin_fake, rollouts, recompute):
    config.rollouts, config.max_staleness, config.recompute_cache = rollouts, 1, recompute
    first = fakes[0]
    port = first.server.server_address[1]

    def lose() -> None:
        while first.state["version"] in ("default", "0", "1"):
            time.sleep(0.01)
        first.die()
        time.sleep(0.5)
        begin_fake(port)

    chaos = threading.Thread(target=lose, daemon=True)
    chaos.start()
    folder = ft_host.train(config).folder
    chaos.join(20)
    assert not chaos.is_alive()
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]
    learnt = prompts_learnt(folder)
    assert len(learnt) == 12 and set(learnt.values()) == {4}  # each prompt once, with its group
    for line in lines(folder):
        assert line["rollouts/staleness_max"] <= 1
    assert int(fakes[1].state["version"]) >= 5  # the last rollout was made with its weights


@pytest.mark.nightly("ddp")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_trainers_and_two_servers(config, fakes, strategy):
    """The main process has the rollouts of both, and both learn from them; weights are whole when they go."""
    config.rollouts, config.max_staleness = "async", 1
    config.distributed_strategy, config.per_device_train_batch_size = strategy, 4
    train_apart(config, 2)
    folder = Path(config.output_dir)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]
    learnt = prompts_learnt(folder)
    assert len(learnt) == 12 and set(learnt.values()) == {4}
    assert max(line["rollouts/staleness_max"] for line in lines(folder)) <= 1
    assert all(int(fake.state["version"]) >= 5 for fake in fakes)
