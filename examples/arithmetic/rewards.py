"""What the arithmetic example is measured by: the last line of a completion must be the sum."""


def exact_match(completions, answer, **columns):
    """1.0 where the last line is the answer, digit for digit, else 0.0."""
    return [float(text.split("\n")[-1] == right) for text, right in zip(completions, answer, strict=True)]
