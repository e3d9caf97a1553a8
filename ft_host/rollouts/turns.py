"""Completions that call tools: turns of the model, with the results of the tools in between, as one row of tokens.

Sampled tokens are never tokenised again: the prompt of the next turn is all tokens so far, followed by what the chat
template puts between a turn that calls tools and the next one (`turn_boundary`). Those tokens are the template's, not
the model's: they are in no loss. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.data import templates
from ft_host.data.chat_tokens import template_arguments
from ft_host.data.prefill import apart, begins_answer
from ft_host.data.tokens import chat_ids, conversation
from ft_host.errors import DataError, FtHostError
from ft_host.generation import Completion, Request, Sampling
from ft_host.rollouts.parsing import read_turn
from ft_host.rollouts.talking import Calls, Talk, Turn, each_by_itself, in_rounds
from ft_host.rollouts.tool_executor import ToolResult
from ft_host.rollouts.tools import Call, Toolbox
from ft_host.rollouts.turn_boundary import between, check_template
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config.rollout import RolloutConfig

Message = dict[str, Any]
Prompt = tuple[templates.Conversation, list[int]]  # with the environment's text, and its tokens


@dataclass(frozen=True, kw_only=True)
class Conversation(Completion):
    """A completion with the calls made in it. `messages` are its turns and the results of tools."""

    prompt: list[Message]  # with the environment's text
    calls: int = 0
    failures: int = 0
    reward: float | None = None  # the result of `get_reward` of its environment
    reward_problem: str = ""  # why it gave none


@dataclass(frozen=True)
class Room:
    """The most tokens of a conversation behind its prompt, of prompt and conversation, and the most turns with calls
    that are answered. None: no limit."""

    longest: int
    positions: int | None
    answered: int | None

    def behind(self, prompt: list[int]) -> int:
        return self.longest if self.positions is None else min(self.longest, self.positions - len(prompt))


@dataclass(kw_only=True)
class Episode:
    """A conversation in progress."""

    number: int
    chat: templates.Conversation  # its messages: the prompt
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    finish_reason: str = "stop"
    calls: int = 0
    failures: int = 0

    def turn(self, longest: int) -> Turn:
        """Return the wish for the next turn, of a conversation of up to `longest` tokens."""
        left = longest - len(self.ids) if self.turns else None
        request = Request(prompt_ids=self.prompt_ids + self.ids, number=self.number, max_new_tokens=left)
        return Turn(request, self.turns)

    def say(self, answer: Completion) -> None:
        """Add a turn of the model."""
        self.ids += answer.token_ids
        self.sampled += [True] * len(answer.token_ids)
        self.logprobs += answer.logprobs
        self.versions += answer.versions
        self.turns += 1
        self.finish_reason = answer.finish_reason

    def told(self, calls: list[Call], results: list[ToolResult], room: Room) -> bool:
        """Add the results of a turn's calls. Returns whether there is room for an answer; otherwise they are left
        out."""
        self.calls += len(calls)
        self.failures += sum(bool(result.problem) for result in results)
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
        ids = between(self.chat, self.ids, messages)
        if len(self.ids) + len(ids) >= room.behind(self.prompt_ids):
            self.finish_reason = "length"
            return False
        self.messages += messages
        self.observe(ids)
        return True

    def observe(self, ids: list[int]) -> None:
        """Add tokens that the model didn't sample. Their weight version is that of the sampled tokens before them."""
        self.ids += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids) if self.logprobs else []
        self.versions += self.versions[-1:] * len(ids)

    def ended(self, row: Row, worth: ToolResult) -> Conversation:
        """Return the whole, with the result of `get_reward`. Raises FtHostError for half of the log-probs."""
        for name, values in (("logprobs", self.logprobs), ("versions", self.versions)):
            if values and len(values) != len(self.ids):
                raise FtHostError(f"the backend returned {name} for some turns of a conversation and not for others")
        return Conversation(
            token_ids=self.ids,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            sampled=self.sampled,
            versions=self.versions,
            turns=self.turns,
            prompt_ids=self.prompt_ids if self.prompt_ids != row["prompt_ids"] else [],
            messages=self.messages,
            prompt=self.chat.messages,
            calls=self.calls,
            failures=self.failures,
            reward=worth.value,
            reward_problem=worth.problem,
        )


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
    submit: Callable[[Request, Sampling], Future[Completion]] | None = None,
) -> list[Conversation]:
    """Return `generations` conversations from each prompt row: those of rows[0] first.

    A conversation ends with a turn that calls no tool, after `max_tool_calling_iterations` turns that were answered, or
    when `sampling.max_new_tokens` tokens of all its turns and tool results are used up, or the model's `positions`,
    prompt included. Its finish_reason is then "length", also if a tool result didn't fit, which is left out as a whole.

    With `submit` each conversation goes on by itself. Without it they go in rounds, each with one call of `engine`:
    `more(here)` says whether any rank has something to generate, so that it is called equally often on all. Each turn
    has noise of its own; the first has that of a completion without tools.

    Raises ConfigError if the chat template can't be used with tools, DataError for rows that can't, FtHostError if an
    environment can't be reset, and what `engine` or a future of `submit` raises.
    """
    check_template(tokenizer, toolbox.schemas, config.chat_template_kwargs)
    room = Room(sampling.max_new_tokens, positions, config.max_tool_calling_iterations)
    talks = []
    for row in rows:
        prompts: dict[str, Prompt] = {}  # by what the environment adds
        for index in range(generations):
            number = row["group"] * generations + index
            talks.append(held(row, number, prompts, room, tokenizer, config, toolbox))
    if submit is None:
        return in_rounds(talks, sampling, engine, toolbox.caller, more)
    return each_by_itself(talks, sampling, submit, toolbox.caller)


def held(
    row: Row,
    number: int,
    prompts: dict[str, Prompt],
    room: Room,
    tokenizer: PreTrainedTokenizerBase,
    config: RolloutConfig,
    toolbox: Toolbox,
) -> Talk[Conversation]:
    """Hold one conversation: yields what it waits for, and returns it in the end."""
    environment, added = None, ""
    if toolbox.environment:
        [outcome] = yield Calls([toolbox.opening(row["columns"])])
        environment, added = toolbox.opened(outcome)
    if added not in prompts:
        chat = chat_of(row, added, tokenizer, config, toolbox)
        prompts[added] = chat, chat_ids(chat, ask=True)
    chat, prompt_ids = prompts[added]
    talk = Episode(number=number, chat=chat, prompt_ids=prompt_ids)
    while True:
        answer = yield talk.turn(room.longest)
        before = talk.prompt_ids + talk.ids
        talk.say(answer)
        message, calls = read_turn(answer, before, tokenizer, toolbox.schemas, first=talk.calls)
        talk.messages.append(message)
        if not calls or (room.answered is not None and talk.turns > room.answered):
            break
        results = yield Calls(toolbox.answering(calls, environment))
        if not talk.told(calls, results, room):
            break
    worth = ToolResult()
    if toolbox.rewards:
        [worth] = yield Calls([toolbox.scoring(environment)], last=True)
    return talk.ended(row, worth)


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
