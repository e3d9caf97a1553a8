"""Rewards of a run that a later release goes on with."""


def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
