"""Completions that call tools: turns of the model, with the results of the tools in between, as one row of tokens.

Sampled tokens are never tokenised again: the prompt of the next turn is all tokens so far, followed by what the chat
template puts between a turn that calls tools and the next one (`turn_boundary`). Those tokens are the template's, not
the model's: they are in no loss. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ft_host.data import templates
from ft_host.data.chat_tokens import template_arguments
from ft_host.data.prefill import apart, begins_answer
from ft_host.data.tokens import chat_ids, conversation
from ft_host.errors import DataError, FtHostError
from ft_host.generation import Completion, Request, Sampling
from ft_host.rollouts.parsing import read_turn
from ft_host.rollouts.tools import Call, Toolbox
from ft_host.rollouts.turn_boundary import between, check_template
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config.rollout import RolloutConfig

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversation(Completion):
    """A completion with the calls made in it. `messages` are its turns and the results of tools."""

    prompt: list[Message]  # with the environment's text
    calls: int = 0
    failures: int = 0
    reward: float | None = None  # the result of `get_reward` of its environment
    reward_problem: str = ""  # why it gave none


@dataclass(kw_only=True)
class Episode:
    """A conversation in progress."""

    number: int
    chat: templates.Conversation  # its messages: the prompt
    prompt_ids: list[int]
    environment: Any
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    finish_reason: str = "stop"
    calls: int = 0
    failures: int = 0

    def say(self, answer: Completion) -> None:
        """Add a turn of the model."""
        self.ids += answer.token_ids
        self.sampled += [True] * len(answer.token_ids)
        self.logprobs += answer.logprobs
        self.versions += answer.versions
        self.turns += 1
        self.finish_reason = answer.finish_reason

    def observe(self, ids: list[int]) -> None:
        """Add tokens that the model didn't sample. Their weight version is that of the sampled tokens before them."""
        self.ids += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids) if self.logprobs else []
        self.versions += self.versions[-1:] * len(ids)


def run_episodes(
    rows: list[Row],
    generations: int,
    engine: Callable[[list[Request], Sampling], list[Completion]],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    config: RolloutConfig,
    toolbox: Toolbox,
    more: Callable[[bool], bool],
    positions: int | None = None,
) -> list[Conversation]:
    """Return `generations` conversations from each prompt row: those of rows[0] first.

    A conversation ends with a turn that calls no tool, after `max_tool_calling_iterations` turns that were answered, or
    when `sampling.max_new_tokens` tokens of all its turns and tool results are used up, or the model's `positions`,
    prompt included. Its finish_reason is then "length", also if a tool result didn't fit, which is left out as a whole.

    `more(here)` says whether any rank has something to generate: `engine` is called equally often on all. Each turn has
    noise of its own; the first has that of a completion without tools.

    Raises ConfigError if the chat template can't be used with tools, DataError for rows that can't, FtHostError if an
    environment can't be reset.
    """
    talks = started(rows, generations, tokenizer, config, toolbox)
    limit = config.max_tool_calling_iterations
    active, turn = talks, 0
    while more(bool(active)):
        requests = [
            Request(
                prompt_ids=talk.prompt_ids + talk.ids,
                number=talk.number,
                max_new_tokens=sampling.max_new_tokens - len(talk.ids) if turn else None,
            )
            for talk in active
        ]
        asking: list[tuple[Episode, list[Call]]] = []
        for talk, answer in zip(active, engine(requests, of_turn(sampling, turn)), strict=True):
            before = talk.prompt_ids + talk.ids
            talk.say(answer)
            message, calls = read_turn(answer, before, tokenizer, toolbox.schemas, first=talk.calls)
            talk.messages.append(message)
            if calls and (limit is None or turn < limit):
                asking.append((talk, calls))
        active = answered(asking, toolbox, sampling.max_new_tokens, positions)
        turn += 1
    return finished(talks, rows, generations, toolbox)


def of_turn(sampling: Sampling, turn: int) -> Sampling:
    """Return the same sampling with other noise in each turn, since a completion keeps its number."""
    if turn == 0 or sampling.seed is None:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed} turn {turn}".encode(), digest_size=4).digest()
    return replace(sampling, seed=int.from_bytes(digest, "big") >> 1)


# ---------------------------------------------------------------- beginning and end


def started(
    rows: list[Row], generations: int, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, toolbox: Toolbox
) -> list[Episode]:
    """Return conversations before their first turn: prompts that show the tools, with the texts of environments."""
    check_template(tokenizer, toolbox.schemas, config.chat_template_kwargs)
    every = [row for row in rows for _ in range(generations)]
    opened = toolbox.open([row["columns"] for row in every]) if toolbox.environment else [(None, "")] * len(every)
    prompts: dict[tuple[int, str], tuple[templates.Conversation, list[int]]] = {}
    talks = []
    for index, (row, (environment, added)) in enumerate(zip(every, opened, strict=True)):
        key = (index // generations, added)
        if key not in prompts:
            chat = chat_of(row, added, tokenizer, config, toolbox)
            prompts[key] = chat, chat_ids(chat, ask=True)
        chat, ids = prompts[key]
        number = row["group"] * generations + index % generations
        talks.append(Episode(number=number, chat=chat, prompt_ids=ids, environment=environment))
    return talks


def chat_of(
    row: Row, added: str, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, toolbox: Toolbox
) -> templates.Conversation:
    """Return a row's prompt with the tools of the run, and `added` at the end of the last user message. Raises
    DataError."""
    prompt, columns = row["prompt"], row["columns"]
    if not isinstance(prompt, list):
        raise DataError(
            "tools need conversations: expected a prompt that is a list of {role, content}, found the text "
            f"{prompt[:60]!r}"
        )
    if columns.get("tools"):
        raise DataError("column tools: the run sets its own tools (tools, environment); remove the column")
    if added:
        users = [index for index, message in enumerate(prompt) if message["role"] == "user"]
        if not users:
            raise DataError(
                "environment: reset returned text for the last user message, but the prompt has no user message"
            )
        message = prompt[users[-1]]
        content = message["content"]
        content = content + added if isinstance(content, str) else [*content, {"type": "text", "text": added}]
        prompt = [*prompt[: users[-1]], {**message, "content": content}, *prompt[users[-1] + 1 :]]
    arguments = config.chat_template_kwargs | template_arguments(columns)
    cut = apart(prompt) if columns.get("prompt") is None else {}  # the prompt was cut off a conversation
    begun = begins_answer(prompt, cut)
    return conversation(
        tokenizer, prompt, {"tools": toolbox.schemas, "chat_template_kwargs": arguments}, continues=begun
    )


def finished(talks: list[Episode], rows: list[Row], generations: int, toolbox: Toolbox) -> list[Conversation]:
    scores = toolbox.score([talk.environment for talk in talks]) if toolbox.rewards else [None] * len(talks)
    done = []
    for index, (talk, score) in enumerate(zip(talks, scores, strict=True)):
        for name, values in (("logprobs", talk.logprobs), ("versions", talk.versions)):
            if values and len(values) != len(talk.ids):
                raise FtHostError(f"the backend returned {name} for some turns of a conversation and not for others")
        done.append(
            Conversation(
                token_ids=talk.ids,
                logprobs=talk.logprobs,
                finish_reason=talk.finish_reason,
                sampled=talk.sampled,
                versions=talk.versions,
                turns=talk.turns,
                prompt_ids=talk.prompt_ids if talk.prompt_ids != rows[index // generations]["prompt_ids"] else [],
                messages=talk.messages,
                prompt=talk.chat.messages,
                calls=talk.calls,
                failures=talk.failures,
                reward=score.value if score else None,
                reward_problem=score.problem if score else "",
            )
        )
    return done


# ---------------------------------------------------------------- between turns


def answered(
    asking: list[tuple[Episode, list[Call]]], toolbox: Toolbox, longest: int, positions: int | None
) -> list[Episode]:
    """Make the calls, add their results, and return the conversations that go on."""
    outcomes = toolbox.call([calls for _, calls in asking], [talk.environment for talk, _ in asking])
    going = []
    for (talk, calls), results in zip(asking, outcomes, strict=True):
        talk.calls += len(calls)
        talk.failures += sum(bool(result.problem) for result in results)
        messages = [
            {
                "role": "tool",
                "name": call.name,
                "tool_call_id": call.id,
                "content": json.dumps({"error": result.problem}, ensure_ascii=False)
                if result.problem
                else result.value,
            }
            for call, result in zip(calls, results, strict=True)
        ]
        ids = between(talk.chat, talk.ids, messages)
        room = longest if positions is None else min(longest, positions - len(talk.prompt_ids))
        if len(talk.ids) + len(ids) >= room:  # no room would be left for an answer
            talk.finish_reason = "length"
            continue
        talk.messages += messages
        talk.observe(ids)
        going.append(talk)
    return going
