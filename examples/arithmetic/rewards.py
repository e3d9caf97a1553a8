"""What the arithmetic example is measured by and rewarded for: sums that come out right, and the way to them."""


def exact_match(completions, answer, **columns):
    """1.0 where the last line is the answer, digit for digit, else 0.0."""
    return [float(text.split("\n")[-1] == right) for text, right in zip(completions, answer, strict=True)]


def right_lines(completions, completion, **columns):
    """The share of the lines that are as they should be, up to the first that isn't."""
    return [of_lines(text.split("\n"), right.split("\n")) for text, right in zip(completions, completion, strict=True)]


def of_lines(lines, right):
    good = next((place for place, (one, other) in enumerate(zip(lines, right)) if one != other), len(lines))
    return min(good, len(right)) / max(len(lines), len(right))
