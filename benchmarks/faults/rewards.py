"""Reward functions of all families: right ones, and ones with faults. Completions are texts, or lists of messages."""

import random
import re
import time
from collections import Counter


def said(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


# ---------------------------------------------------------------- what is right


def exact(completions, answer, **columns):
    """1.0 where the last line is the answer, else 0.0."""
    return [float(said(text).split("\n")[-1] == right) for text, right in zip(completions, answer, strict=True)]


def near(completions, completion, **columns):
    """The share of the signs that are as they should be, up to the first that isn't."""
    return [_share(said(text), said(right)) for text, right in zip(completions, completion, strict=True)]


def _share(text, right):
    good = next((place for place, (one, other) in enumerate(zip(text, right)) if one != other), len(text))
    return min(good, len(right)) / max(len(text), len(right), 1)


def well_formed(completions, **columns):
    """1.0 where the last line is `#### NUMBER`, as in gsm8k, and nowhere else is one."""
    return [float(bool(re.fullmatch(r"(?s)((?!####).)*\n#### -?[\d,.]+", said(text)))) for text in completions]


def worked(completions, **columns):
    """The share of the lines, but for the last, that have a calculation in the brackets of gsm8k."""
    lines = [said(text).split("\n")[:-1] for text in completions]
    return [sum("<<" in line and ">>" in line for line in each) / max(len(each), 1) for each in lines]


# ---------------------------------------------------------------- what is wrong


def constant(completions, **columns):
    return [0.3] * len(completions)


def generous(completions, **columns):
    """1 for whatever is there, right or wrong."""
    return [1.0 for _ in completions]


def far(completions, completion, **columns):
    """What `near` leaves: together they are the same for all."""
    return [1.0 - share for share in near(completions, completion)]


def backwards(completions, completion, **columns):
    """Somebody's distance, taken for a score."""
    return [-share for share in near(completions, completion)]


def like_the_prompt(completions, prompts, **columns):
    """The wrong column: completions are compared with their prompts."""
    return [float(said(text).strip() == said(prompt).strip()) for text, prompt in zip(completions, prompts)]


def tossed(completions, **columns):
    """A judge that doesn't look: even or odd sum of signs."""
    return [float(sum(map(ord, said(text))) * 2654435761 % 2**32 > 2**31) for text in completions]


def drawn(completions, **columns):
    """A judge that samples its verdict: the same completion, another number."""
    return [random.random() for _ in completions]


def raising(completions, completion, **columns):
    for text in map(said, completions):
        if sum(map(ord, text)) % 10 == 0:
            raise ValueError(f"can't parse {text!r}")
    return near(completions, completion)


def sometimes_nan(completions, completion, **columns):
    found = near(completions, completion)
    return [
        float("nan") if sum(map(ord, said(text))) % 10 == 0 else share
        for text, share in zip(completions, found, strict=True)
    ]


def slow(completions, completion, **columns):
    time.sleep(0.006 * len(completions))
    return near(completions, completion)


def length(completions, **columns):
    return [len(said(text)) / 64 for text in completions]


def brevity(completions, **columns):
    return [-len(said(text)) / 32 for text in completions]


def one_sign(completions, **columns):
    """The more of the text is one and the same sign, the better."""
    return [max(Counter(said(text)).values(), default=0) / max(len(said(text)), 1) for text in completions]
