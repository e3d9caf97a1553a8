"""What gsm8k_rollouts.py pays for, and what it only counts."""

from __future__ import annotations

import re
from typing import Any

CALCULATION = re.compile(r"<<([\d.+*/()\- ]{1,60})=(-?\d*\.?\d+)>>")
ANSWER = re.compile(r"\n#### (-?[\d,.]+)$")


def right_calculations(completions: list[str], **columns: Any) -> list[float]:
    """The share of the calculations in double brackets, as gsm8k writes them, that are right. 0 for a text without one,
    or one that doesn't end in an answer."""
    return [_share(text) if ANSWER.search(text.rstrip()) else 0.0 for text in completions]


def right_answer(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where the answer is that of the row."""
    said = [ANSWER.search(text.rstrip()) for text in completions]
    return [float(bool(found) and _number(found[1]) == _number(right)) for found, right in zip(said, answer)]


def _number(text: str) -> str:
    return text.replace(",", "").rstrip(".")


def _share(text: str) -> float:
    found = CALCULATION.findall(text)
    opened = text.count("<<")
    return sum(_value(formula) == _rounded(float(result)) for formula, result in found) / opened if opened else 0.0


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
