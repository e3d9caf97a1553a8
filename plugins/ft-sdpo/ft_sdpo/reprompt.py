"""What the teacher of an attempt is asked: the prompt again, with a successful attempt of its group, or feedback on
it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ft_host.api import Drop, Metric, content_of, mean, prompt_row, without_thoughts
from ft_sdpo.config import CONTEXT, SDPOConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What the teacher of one completion can be shown."""

    solution: str | None  # a successful completion of the same prompt
    feedback: str | None  # what is said of this one, where it is to be shown
    told: bool  # whether there is feedback, shown or not


def is_success(reward: float | None, config: SDPOConfig) -> bool:
    return reward is not None and reward >= config.success_reward_threshold


def solution_for(
    place: int, texts: list[str], rewards: list[float | None], config: SDPOConfig, opened: str = ""
) -> str | None:
    """The first successful completion of a group that may be shown for the one at `place`; without thoughts, one that
    says something beside them. `opened`: the tag that their prompt ends with."""
    if not config.use_successful_as_teacher:
        return None
    for other, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
        if is_success(reward, config) and not (other == place and config.dont_reprompt_on_self_success):
            shown = without_thoughts(text, opened) if config.remove_thinking_from_demonstration else text
            if shown or not text.strip():
                return shown
    return None


def attempts(
    texts: list[str], rewards: list[float | None], feedback: list[str | None], config: SDPOConfig, opened: str = ""
) -> list[Attempt]:
    """Of the completions of one prompt, which ends with the tag `opened`, or with none."""
    found = []
    for place, said in enumerate(feedback):
        solution = solution_for(place, texts, rewards, config, opened)
        told = said is not None and bool(said.strip())
        shown = told and config.include_environment_feedback
        if config.environment_feedback_only_without_solution and solution is not None:
            shown = False
        found.append(Attempt(solution=solution, feedback=said if shown else None, told=told))
    return found


def reprompt(prompt: str | list[dict], attempt: Attempt, config: SDPOConfig) -> str | list[dict] | None:
    """What the teacher is asked; None where there is nothing to show. Of a conversation the last message is
    replaced."""
    if attempt.solution is None and attempt.feedback is None:
        return None
    solution, feedback = "", ""
    if attempt.solution is not None:
        solution = config.solution_template.format(successful_previous_attempt=attempt.solution)
    if attempt.feedback is not None:
        feedback = config.feedback_template.format(feedback_raw=attempt.feedback)
    question = prompt if isinstance(prompt, str) else content_of(prompt[-1])
    asked = config.reprompt_template.format(prompt=question, solution=solution, feedback=feedback)
    return asked if isinstance(prompt, str) else [*prompt[:-1], {"role": "user", "content": asked}]


def teacher_ids(
    row: dict[str, Any], found: list[Attempt], tokenizer: PreTrainedTokenizerBase, config: SDPOConfig
) -> list[list[int] | Drop | None]:
    """The tokens that the teacher of each completion of a prompt's row is asked; None where it has nothing to show, a
    Drop where they would be too many."""
    limit = replace(config, max_length=config.max_reprompt_len)
    asked = [reprompt(row["prompt"], attempt, config) for attempt in found]
    made: dict[str, list[int] | Drop] = {}  # siblings are often shown the same
    for each in asked:
        if each is not None and repr(each) not in made:
            prompt = prompt_row(row["columns"] | {"prompt": each}, tokenizer, limit)
            made[repr(each)] = prompt if isinstance(prompt, Drop) else prompt["prompt_ids"]
    return [None if each is None else made[repr(each)] for each in asked]


def feedback_of(row: dict[str, Any], logged: list[Any] | None, size: int) -> list[str | None]:
    """Feedback on the `size` completions of a row: what a reward function `logged` of each; if none does, what the row
    says of all."""
    if logged is None:
        given = row["columns"].get(CONTEXT)
        return [given if isinstance(given, str) else None] * size  # in a run that shows it, it is text
    return [None if each is None else str(each) for each in logged]


def metrics_of(
    groups: list[list[Attempt]], rewards: list[list[float | None]], prompts: list[list[Any]], config: SDPOConfig
) -> dict[str, Metric]:
    """Of a rollout: how many completions were taught, and by what. As sums."""
    every, count = [each for group in groups for each in group], sum(map(len, groups))
    asked = [each for group in prompts for each in group]
    found = {
        "feedback_available_fraction": mean(sum(each.told for each in every), count),
        "feedback_used_fraction": mean(sum(each.feedback is not None for each in every), count),
        "reprompt_sample_fraction": mean(sum(isinstance(ids, list) for ids in asked), count),
        "reprompt_too_long_fraction": mean(sum(isinstance(ids, Drop) for ids in asked), count),
    }
    if config.use_successful_as_teacher:
        winners = sum(any(is_success(reward, config) for reward in group) for group in rewards)
        found["success_group_fraction"] = mean(winners, len(groups))
        found["success_sample_fraction"] = mean(sum(each.solution is not None for each in every), count)
    return {f"self_distillation/{name}": value for name, value in found.items()}
