"""What gsm8k_rollouts.py pays for, and what it only counts."""

from __future__ import annotations

import re
from typing import Any

CALCULATION = re.compile(r"<<([\d.+*/()\- ]{1,60})=(-?\d*\.?\d+)>>")
ANSWER = re.compile(r"\n#### (-?[\d,.]+)$")
NUMBER = re.compile(r"\d*\.?\d+")


def answer_follows(completions: list[str], **columns: Any) -> list[float]:
    """1 for a text that ends in an answer which is the result of its last calculation in double brackets."""
    said = [(ANSWER.search(text.rstrip()), CALCULATION.findall(text)) for text in completions]
    return [float(bool(end) and bool(made) and _number(end[1]) == _number(made[-1][1])) for end, made in said]


def right_calculations(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of the calculations in double brackets, as gsm8k writes them, that are right and calculate with a
    number of the question or the result of an earlier one. 0 for a text without one, or without an answer at its end.

    Without a number of the question, `<<10=10>>` would earn as much as any: a small model finds that within 24 steps.
    """
    return [
        _share(text, prompt) if ANSWER.search(text.rstrip()) else 0.0
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def right_answer(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where the answer is that of the row."""
    said = [ANSWER.search(text.rstrip()) for text in completions]
    return [float(bool(found) and _number(found[1]) == _number(right)) for found, right in zip(said, answer)]


def _number(text: str) -> str:
    return text.replace(",", "").rstrip(".")


def _share(text: str, prompt: str) -> float:
    known = set(map(float, NUMBER.findall(prompt.replace(",", ""))))
    opened, right = text.count("<<"), 0
    for formula, result in CALCULATION.findall(text):
        used = set(map(float, NUMBER.findall(formula)))
        is_calculation = re.search(r"[\d)] *[-+*/]", formula) is not None
        if is_calculation and used & known and _value(formula) == _rounded(float(result)):
            right += 1
            known.add(float(result))
    return right / opened if opened else 0.0


def _rounded(value: float) -> float:
    return round(value, 2)


def _value(formula: str) -> float | None:
    """What a formula of numbers, + - * / and brackets comes to; None where it is none."""
    tokens = re.findall(r"\d+\.?\d*|\.\d+|[+*/()-]", formula)
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return None if rest else _rounded(value)


def _sum(tokens: list[str]) -> tuple[float, list[str]]:
    value, rest = _product(tokens)
    while rest and rest[0] in "+-":
        other, after = _product(rest[1:])
        value, rest = (value + other if rest[0] == "+" else value - other), after
    return value, rest


def _product(tokens: list[str]) -> tuple[float, list[str]]:
    value, rest = _factor(tokens)
    while rest and rest[0] in "*/":
        other, after = _factor(rest[1:])
        value, rest = (value * other if rest[0] == "*" else value / other), after
    return value, rest


def _factor(tokens: list[str]) -> tuple[float, list[str]]:
    if tokens[0] == "(":
        value, rest = _sum(tokens[1:])
        if rest[0] != ")":
            raise ValueError("a bracket that isn't closed")
        return value, rest[1:]
    if tokens[0] == "-":
        value, rest = _factor(tokens[1:])
        return -value, rest
    return float(tokens[0]), tokens[1:]
