"""Rewards: a function gets the completions and the columns of their rows, and gives one number for each."""


def right(completions, answer, **columns):
    """1 where the answer stands in the completion."""
    return [float(word in text) for text, word in zip(completions, answer, strict=True)]
