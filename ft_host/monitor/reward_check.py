"""Calls rewards with right answers and with rubbish before a model is loaded. A reward that fails, or that can't tell
the two apart, would otherwise be noticed only after rollouts that taught nothing.

It runs in processes of its own, which end with it, so that no state of a function reaches the training. Reward models
are left out, since they would have to be loaded. Slow functions are skipped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError
from ft_host.monitor.row_overlap import sample_of
from ft_host.monitor.rows.read import ANSWERS, WHOLE
from ft_host.monitor.rows.signs import FINAL, final
from ft_host.rewards import RewardPool, Scoring
from ft_host.types import Drop

ROWS = 8
AGAIN = 16  # completions that are tried a second time
ENDS = (" ", "\n")  # what wrong ones are tried with at their end
SECONDS = 30.0  # time limit of a call, for functions that hang: nothing else depends on time


def check_rewards(config: RolloutConfig, source: Any, prepare: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Return facts about each reward: the share of completions for which it fails, and by how much rewards of one
    prompt differ. None if the rows have no right answer."""
    specs = [spec for spec in config.reward if not Path(spec).is_dir()]
    tried = trials(source, prepare) if specs else []
    if not tried:
        return {}
    limits = {"reward_timeout": min(SECONDS, config.reward_timeout), "max_reward_failures": 3 * len(tried)}
    facts: dict[str, Any] = {}
    earned: dict[str, list[float | None]] = {}
    reads: dict[str, bool] = {}
    for spec in specs:  # one at a time: a failure of one doesn't affect the others
        alone = replace(config, reward=[spec], reward_weights=[], reward_workers=1, **limits)
        pool = RewardPool([spec], alone, waits_again=False)
        try:
            found, values = _try(pool, tried)
        finally:
            pool.close()
        facts |= found
        earned[pool.names[0]] = values
        reads[pool.names[0]] = any(column in pool.functions[0].takes for column in (*ANSWERS, *WHOLE))
    if len(earned) == len(config.reward) and all(earned.values()):
        weights = list(config.reward_weights) or [1.0] * len(earned)
        for place, (name, share) in enumerate(turned(tried, earned, weights).items()):
            if reads[name] or tried[0]["whole"]:  # of a number by itself it can't be told in which form it is wanted
                told = {"turned": share, "place": place, "reads": reads[name]}
                facts |= {f"data/reward/{name}/{key}": value for key, value in told.items()}
    return facts


def trials(source: Any, prepare: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    """Return completions of a few prompts: right ones, in the forms that common rewards look for, and wrong ones."""
    rows: list[dict[str, Any]] = []
    for number, raw in enumerate(sample_of(source, ROWS)):
        try:
            result = prepare(raw)
        except FtHostError:  # it is refused, with its place, when its turn comes
            continue
        name = next((name for name in (*WHOLE, *ANSWERS) if text_of(raw.get(name)) is not None), None)
        if name is None or isinstance(result, (Drop, list)):
            continue
        gold, prompt = text_of(raw[name]), result["prompt"]
        answer = next((text for name in ANSWERS if (text := text_of(raw.get(name))) is not None), gold)
        question = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
        right = [gold, *forms(gold, answer)]
        ends = (
            forms(gold, final(answer) or answer) if FINAL.search(answer) else []
        )  # of a worked answer, what it ends in
        varied = [question, f"{answer} {answer} no 7"]  # other ones in each row
        wrong = ["", "qzx vjw. 0 0 0", *varied]
        plain = gold.strip(), answer.strip()
        bare = [plain[0], *forms(*plain)] if plain != (gold, answer) else []
        own = [gold] if name in WHOLE and answer != gold else []
        kinds = [("right", right), ("own", own), ("final", ends), ("bare", bare), ("wrong", wrong)]
        for kind, text in ((kind, text) for kind, texts in kinds for text in texts):
            completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            rows.append(
                {
                    "row": number,
                    "kind": kind,
                    "varied": kind == "wrong" and text in varied,
                    "plain": kind == "right" and text in (gold, answer),
                    "column": name,
                    "whole": name in WHOLE,
                    "prompt": prompt,
                    "completion": completion,
                    "columns": raw,
                    "ids": [0] * max(1, len(text.split())),
                }
            )
    return rows


def text_of(value: Any) -> str | None:
    """What a column says: a text, a number, or messages, of which the last counts. None for anything else."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


def forms(gold: str, answer: str) -> list[str]:
    """An answer in the forms that common rewards look for."""
    tagged = f"<think>\n{gold}\n</think>\n<answer>\n{answer}\n</answer>"
    return [answer, tagged, f"\\boxed{{{answer}}}", f"#### {answer}"]


def earned_by_row(tried: list[dict[str, Any]], values: list[float | None]) -> list[dict[str, float]]:
    """Return for each row the most that each kind of completion earns; rows with a failure are left out."""
    rows: dict[int, dict[str, float]] = {}
    failed = {trial["row"] for trial, value in zip(tried, values, strict=True) if value is None}
    for trial, value in zip(tried, values, strict=True):
        if value is not None and trial["row"] not in failed:
            row = rows.setdefault(trial["row"], {})
            row[trial["kind"]] = max(row.get(trial["kind"], -math.inf), value)
    return list(rows.values())


def by_row(tried: list[dict[str, Any]], values: list[float | None], takes: Callable[[str], bool]) -> dict[str, float]:
    """Return by row what all rows together hide: the share of rows whose right answer earns nothing, where that of the
    others earns one and the same; of those whose worked answer earns only as a whole, and of those whose answer earns
    only with the white space around it, or alone, and not the completion of the row. Of a function that takes the
    answer."""
    if not any(takes(name) for name in (*ANSWERS, *WHOLE)):
        return {}
    rows = earned_by_row(tried, values)
    paid = {row["right"] for row in rows if row["right"] > row["wrong"]}
    out: dict[str, float] = {}
    if len(paid) == 1 and rows:
        unpaid = sum(row["right"] <= row["wrong"] for row in rows)
        worked = [row for row in rows if "final" in row and row["right"] > row["wrong"]]
        out["unpaid"] = unpaid / len(rows)
        whole = [row for row in rows if "own" in row and row["right"] > row["wrong"]]
        if whole:
            out["own_unpaid"] = sum(row["own"] <= row["wrong"] for row in whole) / len(rows)
        spaced = [row for row in rows if "bare" in row and row["right"] > row["wrong"]]
        if spaced:
            out["only_spaced"] = sum(row["bare"] <= row["wrong"] for row in spaced) / len(rows)
        if worked:
            out["only_whole"] = sum(row["final"] <= row["wrong"] for row in worked) / len(rows)
    return out


def turned(
    tried: list[dict[str, Any]], earned: dict[str, list[float | None]], weights: list[float]
) -> dict[str, float]:
    """Return for each reward the share of rows whose own answer earns less than each of the wrong completions, by the
    reward with its weight, or by all of them together if that is less: a cost that is taken for a score, or a score
    with a negative weight. A reward may well do so beside another that outweighs it."""
    worth = {
        name: [None if value is None else weight * value for value in values]
        for (name, values), weight in zip(earned.items(), weights, strict=True)
    }
    total = [None if None in each else sum(each) for each in zip(*worth.values(), strict=True)]
    together = _less(tried, total)
    return {name: min(_less(tried, values), together) for name, values in worth.items()}


def _less(tried: list[dict[str, Any]], values: list[float | None]) -> float:
    """The share of rows whose own answer earns less than each of the wrong completions."""
    rows: dict[int, tuple[list[float], list[float]]] = {}
    failed = {trial["row"] for trial, value in zip(tried, values, strict=True) if value is None}
    for trial, value in zip(tried, values, strict=True):
        if trial["row"] not in failed and (trial["plain"] or trial["kind"] == "wrong"):
            rows.setdefault(trial["row"], ([], []))[trial["kind"] == "wrong"].append(value)
    return sum(min(own) < min(wrong) for own, wrong in rows.values()) / len(rows) if rows else 0.0


def _try(pool: RewardPool, tried: list[dict[str, Any]]) -> tuple[dict[str, Any], list[float | None]]:
    """Return what is known of a reward, and what each trial earns; nothing where it can't be told."""
    name = pool.names[0]
    every = -(-len(tried) // AGAIN)
    again, wrong = tried[::every], [place for place, trial in enumerate(tried) if trial["varied"]]
    touched = [(place, ended(tried[place], end)) for place in wrong for end in ENDS]
    given = tried + again + [trial for _, trial in touched]
    columns = sorted({column for trial in tried for column in trial["columns"]})
    scoring = Scoring(
        prompts=[trial["prompt"] for trial in given],
        completions=[trial["completion"] for trial in given],
        completion_ids=[trial["ids"] for trial in given],
        columns={column: [trial["columns"].get(column) for trial in given] for column in columns},
        trainer_state=None,
    )
    try:
        scored = pool.score(scoring)
    except FtHostError as error:  # it would end the run in the same way, and is reported then
        if "took longer" in str(error):
            return {}, []
        return {f"data/reward/{name}/failed": 1.0, f"data/reward/{name}/said": str(error)[:300]}, []
    failures = scored.failures.get(name, [])
    if any("took longer" in reason or "was not imported" in reason for _, reason in failures):
        return {}, []
    broken = [index for index, reason in failures if not _is_no_number(reason)]
    facts: dict[str, Any] = {
        f"data/reward/{name}/failed": len(broken) / len(given),
        f"data/reward/{name}/not_finite": (len(failures) - len(broken)) / len(given),
        f"data/reward/{name}/whole": all(trial["whole"] for trial in tried),
    }
    if failures:
        facts[f"data/reward/{name}/said"] = failures[0][1][:300]
    function = pool.functions[0]
    earned = [each[0] for each in scored.values]
    first, rest = earned[: len(tried)], earned[len(tried) :]
    told = by_row(tried, first, lambda column: column in function.takes)
    facts |= {f"data/reward/{name}/{kind}": share for kind, share in told.items()}
    values = [value for value in first if value is not None]
    if len(values) >= len(tried) / 2:
        facts[f"data/reward/{name}/spread"] = max(values) - min(values)
        facts[f"data/reward/{name}/value"] = values[0]
        facts[f"data/reward/{name}/most"] = max(values)
    noise = noise_of(list(zip(first[::every], rest[: len(again)], strict=True)), values)
    if noise is None:
        return facts, first
    return facts | {
        f"data/reward/{name}/noise": noise,
        f"data/reward/{name}/tossed": tossed(
            [(first[place], value) for (place, _), value in zip(touched, rest[len(again) :], strict=True)]
        ),
    }, first


def ended(trial: dict[str, Any], end: str) -> dict[str, Any]:
    """The same completion with this at its end."""
    said = trial["completion"]
    said = said + end if isinstance(said, str) else [{**said[0], "content": said[0]["content"] + end}]
    return trial | {"completion": said}


def tossed(pairs: list[tuple[float | None, float | None]]) -> float:
    """Return how much of the variance of a reward's values of wrong completions is there between a completion and the
    same with white space at its end, where that raises some and lowers others: about 1 for a value that is drawn from
    all that is written, as a hash is. 0 where it goes one way only, as for a reward that grows with length. Right ones
    are left out: a reward may want them without white space, or with it.
    """
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    ways = min(sum(other > one for one, other in both), sum(other < one for one, other in both))
    return 0.0 if ways < max(2, len(both) / 10) else noise_of(both, [one for one, _ in both]) or 0.0


def noise_of(pairs: list[tuple[float | None, float | None]], values: list[float]) -> float | None:
    """Return how much of the variance of a reward's values is there between two values of one completion: 0 for a
    function, about 1 for chance. None where too little has a value, or all have the same.

    `pairs`: the values of a completion and of the same again.
    """
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(both) < 4 or len(values) < 4:
        return None
    of_all = statistics.pvariance(values)
    return statistics.fmean((one - other) ** 2 / 2 for one, other in both) / of_all if of_all > 0 else None


def _is_no_number(reason: str) -> bool:
    return reason.startswith("gave float ") and any(word in reason for word in ("nan", "inf"))
