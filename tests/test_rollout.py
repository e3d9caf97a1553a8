"""What `ft_rollout` is handed: prompts as rows, completions of a real model, rewards from real processes, and errors
that one rank has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl

from ft_host.config.rollout import RolloutConfig
from ft_host.data import prompt_row
from ft_host.data.tokens import chat_ids, conversation
from ft_host.errors import DataError, FtHostError
from ft_host.generation import Completion, Request, Sampling
from ft_host.metrics import Accumulator, combine
from ft_host.rewards import RewardPool
from ft_host.rollouts.rewards import without_zeros
from ft_host.rollouts.rollout import RolloutRun, rollout_sampling, seed_of, variety_metrics, worth_metrics
from ft_host.rollouts.tools import load_tools
from ft_host.testing.generation import generating_run
from ft_host.testing.models import tiny_gpt2, tiny_tokenizer
from ft_host.testing.ranks import as_ranks
from ft_host.testing.tokenizers import chat_tokenizer
from ft_host.types import Drop

REWARDS = """
def letters(completions, log_metric, log_extra, **columns):
    for text in completions:
        log_metric("letters", len(text))
    log_extra("first", [text[:1] for text in completions])
    return [float(len(text)) for text in completions]


def odd(level, **columns):
    return [1.0 if each % 2 else None for each in level]


def breaks(level, trainer_state, **columns):
    if 2 in level:
        raise ValueError(f"no {level[0]} at step {trainer_state.global_step}")
    return [float(each) for each in level]
"""
TOOLS = '''
def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: one of them
        b: the other
    """
    return a + b


class Purse:
    """Money of one completion."""

    def reset(self, start, **columns):
        self.held = start
        return f" You have {start}."

    def spend(self, much: int) -> int:
        """Spends some of it.

        Args:
            much: how much
        """
        self.held -= much
        return self.held

    def get_reward(self):
        if self.held < 0:
            raise ArithmeticError("in debt")
        return float(self.held)
'''


@dataclass(kw_only=True)
class Config(RolloutConfig):
    """Without a plan: nothing here is a step."""


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2()


@pytest.fixture
def sampler(model):
    """A run whose backend is a tiny model."""
    return generating_run(model, decode_batch_size=3)


@pytest.fixture
def make(tmp_path, sampler):
    """A RolloutRun, and what was said in it."""
    (tmp_path / "pays.py").write_text(REWARDS)
    (tmp_path / "tools.py").write_text(TOOLS)
    pools = []

    def made(*rewards, rank=0, world_size=1, gather=None, engine=None, tokenizer=None, number=0, step=0, **fields):
        given = {
            "model": "m",
            "dataset": "d",
            "reward": [f"{tmp_path / 'pays.py'}:{name}" for name in rewards],
            "max_completion_length": 8,
            "reward_timeout": 20.0,
            "reward_workers": 1,
            "temperature": 0.8,
        }
        config = Config(**(given | fields))
        pools.append(RewardPool(config.reward, config))
        run = RolloutRun(
            config=config,
            tokenizer=tokenizer or sampler.tokenizer,
            rank=rank,
            world_size=world_size,
            version=step,
            number=number,
            gather=gather or (lambda value: [value]),
            say=lambda *told: said.append(told),
            engine=engine or sampler.generate,
            pool=pools[-1],
            toolbox=load_tools(config),
            positions=None,
            trainer_state=SimpleNamespace(global_step=step),
        )
        said: list = []
        run.said = said
        return run

    yield made
    for pool in pools:
        pool.close()


def rows_of(run, *texts, first=0, **columns) -> list[dict]:
    """Prepared prompts, numbered; column `level` is the number."""
    rows = []
    for index, text in enumerate(texts):
        row = {"prompt": text, "level": first + index} | {name: values[index] for name, values in columns.items()}
        rows.append(prompt_row(row, run.tokenizer, run.config) | {"group": first + index})
    return rows


def metrics_of(found) -> dict[str, float]:
    accumulator = Accumulator()
    accumulator.add(found)
    return combine([accumulator.local()])


# ---------------------------------------------------------------- prompts


def test_a_prompt_as_a_row():
    tokenizer, row = tiny_tokenizer(), {"prompt": "12 plus 30?", "answer": "42", "level": 3}
    ids = tokenizer("12 plus 30?")["input_ids"]
    assert prompt_row(row, tokenizer, Config()) == {
        "prompt_ids": ids,
        "prompt": "12 plus 30?",
        "columns": row,
        "length": len(ids),
    }
    chat = {"prompt": [{"role": "user", "content": "12 plus 30?"}]}
    made = prompt_row(chat, tokenizer, Config())
    assert made["prompt"] == chat["prompt"] and made["columns"] == chat
    assert tokenizer.decode(made["prompt_ids"]) == "<|user|>12 plus 30?<|end|><|assistant|>"


def test_a_prompt_that_is_too_long_is_left_out_and_not_cut():
    tokenizer, row = tiny_tokenizer(), {"prompt": "one two three four"}
    size = len(tokenizer(row["prompt"])["input_ids"])
    found = prompt_row(row, tokenizer, Config(max_length=size - 1))
    assert isinstance(found, Drop) and found == "the prompt is longer than max_length"
    assert prompt_row(row, tokenizer, Config(max_length=size))["length"] == size
    long = {"prompt": "a b " * 2000}
    assert isinstance(prompt_row(long, tokenizer, Config()), Drop)
    assert prompt_row(long, tokenizer, Config(max_length=None))["length"] > 1024


def test_an_empty_prompt_is_left_out():
    """Nothing can complete it: a backend refuses it, when the row's turn comes, without its file and line."""
    found = prompt_row({"prompt": ""}, tiny_tokenizer(), Config())
    assert isinstance(found, Drop) and found == "the prompt is empty"


def test_arguments_of_the_template_are_the_configs_and_then_the_rows():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}{{ more }}{% if add_generation_prompt %}:{%"
        " endif %}"
    )
    prompt = [{"role": "user", "content": "hi"}]
    config = Config(chat_template_kwargs={"mood": " calm", "more": " indeed"})

    def text(**columns):
        return tokenizer.decode(prompt_row({"prompt": prompt, **columns}, tokenizer, config)["prompt_ids"])

    assert text() == "hi calm indeed:"
    assert text(chat_template_kwargs={"mood": " wild"}) == "hi wild indeed:"
    assert text(chat_template_kwargs=None) == "hi calm indeed:"


def test_a_row_without_a_prompt_is_refused():
    with pytest.raises(DataError, match="prompt"):
        prompt_row({"text": "a"}, tiny_tokenizer(), Config())


# ---------------------------------------------------------------- completions


def test_completions_are_those_of_the_backend_in_the_order_of_the_prompts(make, sampler):
    run = make(number=3)
    rows = rows_of(run, "a", "bb", first=5)
    found = run.generate(rows, 3)
    requests = [
        Request(prompt_ids=row["prompt_ids"], number=row["group"] * 3 + index) for row in rows for index in range(3)
    ]
    seed = seed_of(run.config.seed, "rollout", 3, 0)
    assert found == sampler.generate(requests, Sampling(max_new_tokens=8, temperature=0.8, seed=seed))
    assert len({tuple(each.token_ids) for each in found}) > 1
    assert run.tokens == sum(len(each.token_ids) for each in found)
    assert run.seconds["generation"] > 0
    again = run.generate(rows, 3)
    assert again != found, "each call has noise of its own"
    assert make(number=3).generate(rows, 3) == found != make(number=4).generate(rows, 3)
    assert make(number=3, top_k=1).generate(rows, 3) != found
    assert run.generate([], 3) == []


def test_sampling_is_as_the_config_says():
    fields = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
    found = rollout_sampling(Config(max_completion_length=9, **fields), 4)
    assert found == Sampling(max_new_tokens=9, seed=4, **fields)
    assert rollout_sampling(Config(), 4) == Sampling(max_new_tokens=512, seed=4)


def test_a_completion_depends_on_the_number_of_its_prompt_alone(make):
    """As ranks have it: whichever rank a prompt is on, and whatever else is."""
    run = make()
    rows = rows_of(run, "a", "bb", "ccc", "dd")
    whole = run.generate(rows, 2)
    found = make().generate(rows[1::2], 2)
    assert [each.token_ids for each in found] == [each.token_ids for each in whole[2:4] + whole[6:8]]


# ---------------------------------------------------------------- rewards


def test_rewards_of_a_rollout(make):
    run = make("letters", "odd", reward_weights=[0.5, 10.0])
    rows = rows_of(run, "a", "bb")
    completions = run.generate(rows, 2)
    found = run.reward(rows, completions)
    texts = [run.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]
    sizes = [float(len(text)) for text in texts]
    assert found.texts == texts and found.names == ["letters", "odd"] and found.weights == [0.5, 10.0]
    assert found.values == [[sizes[0], None], [sizes[1], None], [sizes[2], 1.0], [sizes[3], 1.0]]
    assert found.totals() == [sizes[0] / 2, sizes[1] / 2, sizes[2] / 2 + 10, sizes[3] / 2 + 10]
    assert found.extra == {"first": [text[:1] for text in texts]}
    mean = sum(sizes) / 4
    metrics = metrics_of(found.metrics)
    assert metrics["rewards/letters/mean"] == pytest.approx(mean)
    assert metrics["rewards/letters/std"] == pytest.approx((sum((size - mean) ** 2 for size in sizes) / 3) ** 0.5)
    assert (metrics["rewards/odd/mean"], metrics["rewards/odd/std"]) == (1.0, 0.0)  # of the two that it applies to
    assert metrics["letters"] == pytest.approx(mean)
    assert run.said == [] and run.seconds["reward"] > 0


def test_a_completion_without_any_reward_has_no_total(make):
    run = make("odd")
    rows = rows_of(run, "a", "bb")
    found = run.reward(rows, run.generate(rows, 1))
    assert found.totals() == [None, 1.0] and found.weights == [1.0]


def test_failures_are_counted_and_told_once(make):
    """For prompt 2 the function raises; the others are called again, each by itself."""
    run = make("letters", "breaks", step=7)
    rows = rows_of(run, "a", "b", "c")
    found = run.reward(rows, run.generate(rows, 2))
    assert [values[1] for values in found.values] == [0.0, 0.0, 1.0, 1.0, None, None]
    assert found.totals()[4] == found.values[4][0]
    assert metrics_of(found.metrics)["rewards/breaks/failed"] == 2
    assert "rewards/letters/failed" not in without_zeros(metrics_of(found.metrics))
    ((text, level),) = run.said
    assert level == "warning" and text.startswith(
        "reward breaks: no value for 2 of 6 completions: raised ValueError: no 2 at"
    )


def test_a_reward_that_fails_in_every_rollout_is_told_of_once_and_counted_in_each(make):
    run = make("breaks")
    for _ in range(3):
        rows = rows_of(run, "c", first=2)
        assert metrics_of(run.reward(rows, run.generate(rows, 2)).metrics)["rewards/breaks/failed"] == 2
    assert len(run.said) == 1 and "rewards/breaks/failed counts them" in run.said[0][0]


def test_failures_of_another_kind_are_told_of_too(make):
    pool = make("breaks").pool
    assert pool.is_new("breaks", "raised ValueError: no 2 (a.py, line 3)")
    assert not pool.is_new("breaks", "raised ValueError: no 7 (a.py, line 3)")
    assert pool.is_new("breaks", "raised KeyError: 'x' (a.py, line 3)") and pool.is_new(
        "breaks", "took longer than 60 s"
    )
    assert pool.is_new("letters", "took longer than 60 s") and not pool.is_new("letters", "took longer than 30 s")


def test_the_share_of_failures_is_over_all_prompts_that_had_runs_of_their_own(make):
    accumulator = Accumulator()
    for first in (2, 5):  # the reward breaks for the first of these prompts alone
        run = make("letters", "breaks")
        rows = rows_of(run, "a prompt", first=first)
        accumulator.add(run.reward(rows, run.generate(rows, 2)).metrics)
    metrics = without_zeros(combine([accumulator.local()]))
    assert metrics["rewards/breaks/failed"] == 2 and metrics["rewards/breaks/failed_share"] == 0.5
    assert not [name for name in metrics if name.startswith("rewards/letters/failed")]


def test_too_many_failures_in_a_row_end_it(make):
    run = make("breaks", max_reward_failures=1)
    rows = rows_of(run, "c", first=2)
    with pytest.raises(FtHostError, match="breaks.*max_reward_failures"):
        run.reward(rows, run.generate(rows, 2))


def test_what_ranks_say_of_failures_is_added_up(make):
    def work(rank, gather):
        run = make("breaks", rank=rank, world_size=2, gather=gather, engine=lambda requests, sampling: spoken(requests))
        rows = rows_of(run, "a", "b", first=2 * rank)  # 0 and 1 here, 2 and 3 there
        found = run.reward(rows, run.generate(rows, 2))
        return [values[0] for values in found.values], metrics_of(found.metrics), run.said

    ranks = as_ranks(2, work)
    assert [values for values, _, _ in ranks] == [[0.0, 0.0, 1.0, 1.0], [None, None, 3.0, 3.0]]
    assert [metrics["rewards/breaks/failed"] for _, metrics, _ in ranks] == [0, 2]
    for _, _, said in ranks:  # the main process' `say` is the one that is heard
        assert said[0][0].startswith("reward breaks: no value for 2 of 8 completions")


def test_a_rank_may_have_no_prompts(make):
    def work(rank, gather):
        run = make(
            "letters", rank=rank, world_size=2, gather=gather, engine=lambda requests, sampling: spoken(requests)
        )
        rows = [] if rank else rows_of(run, "a")
        found = run.reward(rows, run.generate(rows, 2))
        return found.values, found.totals(), metrics_of(found.metrics)

    (first, totals, metrics), nothing = as_ranks(2, work)
    assert first == [[totals[0]], [totals[1]]] and metrics["rewards/letters/mean"] == totals[0]
    assert nothing == ([], [], {})


def spoken(requests: list[Request], text: str = "") -> list[Completion]:
    return [Completion(token_ids=[5, 6, 7], logprobs=[-1.0] * 3, finish_reason="stop") for _ in requests]


# ---------------------------------------------------------------- tools


@pytest.fixture(scope="module")
def chatty():
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    return chat_tokenizer(template.read_text(encoding="utf-8"), eos_token="<|im_end|>")


class Script:
    """A backend that says, in turn n, text n of those for the completion."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.turn = tokenizer, texts, -1

    def __call__(self, requests, sampling):
        self.turn += 1
        said = [self.texts[request.number][self.turn] for request in requests]
        ids = [self.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"] for text in said]
        return [Completion(token_ids=each, logprobs=[-1.0] * len(each), finish_reason="stop") for each in ids]


def called(name: str, **arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def chat_rows(run, count: int, **columns) -> list[dict]:
    prompt = [{"role": "user", "content": "what now?"}]
    ids = chat_ids(conversation(run.tokenizer, prompt, {"tools": run.toolbox.schemas}), ask=True)
    return [
        {
            "group": index,
            "prompt": prompt,
            "prompt_ids": ids,
            "columns": {"prompt": prompt} | {name: values[index] for name, values in columns.items()},
        }
        for index in range(count)
    ]


def test_what_an_environment_gives_is_the_last_reward(make, chatty, tmp_path):
    texts = [[called("spend", much=2), "done"], [called("spend", much=9), "oh"], ["no"], ["never"]]
    run = make(
        "odd",
        tokenizer=chatty,
        engine=Script(chatty, texts),
        environment=f"{tmp_path / 'tools.py'}:Purse",
        reward_weights=[3.0],
        max_completion_length=400,
    )
    rows = chat_rows(run, 2, start=[5, 8], level=[1, 2])
    completions = run.generate(rows, 2)
    assert [each.turns for each in completions] == [2, 2, 1, 1]
    found = run.reward(rows, completions)
    assert found.names == ["odd", "environment"] and found.weights == [3.0, 1.0]
    assert found.values == [[1.0, 3.0], [1.0, None], [None, 8.0], [None, 8.0]]
    assert found.totals() == [6.0, 3.0, 8.0, 8.0]
    metrics = metrics_of(found.metrics)
    assert metrics["rewards/environment/mean"] == pytest.approx(19 / 3)
    assert metrics["rewards/environment/failed"] == 1 and metrics["tools/call_frequency"] == 2 / 4
    assert "reward environment: no value for 1 of 4 completions" in run.said[0][0] and "in debt" in run.said[0][0]
    assert (
        run.tokens == sum(sum(each.sampled) for each in completions) < sum(len(each.token_ids) for each in completions)
    )


def test_ranks_generate_equally_often(make, chatty, tmp_path):
    """One rank's conversations take three turns, the other's one: its backend is asked with nothing."""
    add = called("add", a=1, b=2)
    texts = [[add, add, "three"], ["no"], ["no"], ["no"]]

    def work(rank, gather):
        engine = Script(chatty, texts[2 * rank :])
        run = make(
            rank=rank,
            world_size=2,
            gather=gather,
            tokenizer=chatty,
            engine=engine,
            tools=[f"{tmp_path / 'tools.py'}:add"],
            max_completion_length=400,
        )
        return [each.turns for each in run.generate(chat_rows(run, 1), 2)], engine.turn

    assert as_ranks(2, work) == [([3, 1], 2), ([1, 1], 2)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", [FtHostError, DataError])
def test_what_one_rank_raises_all_raise(make, kind):
    def work(rank, gather):
        def engine(requests, sampling):
            if rank == 1:
                raise kind("prompts.jsonl, line 3: no good")
            return spoken(requests)

        run = make(rank=rank, world_size=2, gather=gather, engine=engine)
        return run.generate(rows_of(run, "a"), 2)

    for error in as_ranks(2, work):
        assert type(error) is kind and str(error) == "prompts.jsonl, line 3: no good"


def test_an_error_in_the_middle_of_conversations_is_everybodys(make, chatty, tmp_path):
    """The rank that failed in its second turn is at the end of `generate` while the other asks who goes on."""
    add = called("add", a=1, b=2)

    def work(rank, gather):
        script = Script(chatty, [[add, add, add, "three"]])

        def engine(requests, sampling):
            if rank == 0 and script.turn == 0:
                raise DataError("the second turn can't be")
            return script(requests, sampling)

        run = make(
            rank=rank,
            world_size=2,
            gather=gather,
            tokenizer=chatty,
            engine=engine,
            tools=[f"{tmp_path / 'tools.py'}:add"],
            max_completion_length=400,
        )
        run.generate(chat_rows(run, 1), 1)

    for error in as_ranks(2, work):
        assert type(error) is DataError and str(error) == "the second turn can't be"


def test_an_error_of_a_reward_is_everybodys(make):
    def work(rank, gather):
        run = make(
            "breaks",
            rank=rank,
            world_size=2,
            gather=gather,
            engine=lambda requests, sampling: spoken(requests),
            max_reward_failures=0,
        )
        rows = rows_of(run, "a", first=rank * 2)
        return run.reward(rows, run.generate(rows, 1))

    errors = as_ranks(2, work)
    assert type(errors[0]) is type(errors[1]) is FtHostError and str(errors[0]) == str(errors[1])
    assert "breaks" in str(errors[0])


def made(*tokens: int) -> Completion:
    return Completion(token_ids=list(tokens), logprobs=[0.0] * len(tokens), finish_reason="stop")


def test_how_many_completions_of_a_prompt_are_different_ones():
    found = metrics_of(variety_metrics([made(1), made(1), made(2, 3), made(4)], ["a", "a", " ", "b"], 2))
    assert found == {"completions/unique_share": 0.75, "completions/empty_share": 0.25}
    assert "completions/unique_share" not in variety_metrics([made(1)], ["a"], 1)


def test_whether_longer_completions_earn_more():
    completions = [made(1), made(1, 2), made(1, 2, 3), made(*range(9))]
    found = metrics_of(worth_metrics([0.0, 1.0, 2.0, None], completions))
    assert found == pytest.approx(
        {"completions/reward_min": 0.0, "completions/reward_max": 2.0, "completions/reward_length_correlation": 1.0}
    )
    flat = metrics_of(worth_metrics([0.1] * 4, completions))
    assert flat == pytest.approx({"completions/reward_min": 0.1, "completions/reward_max": 0.1})
    assert worth_metrics([None] * 4, completions) == {}
