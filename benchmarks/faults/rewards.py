"""Reward functions with faults."""

import time


def constant(completions, **columns):
    return [0.3] * len(completions)


def generous(completions, **columns):
    """1 for whatever has a digit in it, right or wrong."""
    return [float(any(sign.isdigit() for sign in text) or not text) for text in completions]


def _share(text, right):
    said, wanted = text.split("\n"), right.split("\n")
    good = next((place for place, (one, other) in enumerate(zip(said, wanted)) if one != other), len(said))
    return min(good, len(wanted)) / max(len(said), len(wanted))


def lines(completions, completion, **columns):
    return [_share(text, right) for text, right in zip(completions, completion, strict=True)]


def wrong_lines(completions, completion, **columns):
    return [1.0 - share for share in lines(completions, completion)]


def raising(completions, completion, **columns):
    for text in completions:
        if sum(map(ord, text)) % 10 == 0:
            raise ValueError(f"can't parse {text!r}")
    return lines(completions, completion)


def sometimes_nan(completions, completion, **columns):
    found = lines(completions, completion)
    return [float("nan") if sum(map(ord, text)) % 10 == 0 else share for text, share in zip(completions, found)]


def slow(completions, completion, **columns):
    time.sleep(0.006 * len(completions))
    return lines(completions, completion)


def length(completions, **columns):
    return [len(text) / 64 for text in completions]


def brevity(completions, **columns):
    return [-len(text) / 32 for text in completions]


def one_text(completions, **columns):
    """The more of the text is the digit 1, the better."""
    return [text.count("1") / max(len(text), 1) for text in completions]
