"""What rules say follows from what they have seen: messages and remedies of every rule, over made-up evidence.

A message's words of direction stand beside the two numbers that they are about, and those agree. A word about how many
(most, hardly, never) stands beside a share that it fits, or isn't said. A remedy's sentence is its patch in words.
"""

from __future__ import annotations

import re

import evidence_grid as grid
import pytest

from ft_host.diagnostics.view import percent, short, went

RULES = list(grid.every_rule())
BY_RULE = pytest.mark.parametrize("method, rule", RULES, ids=lambda each: getattr(each, "code", each))

NUMBER = r"-?\d[\d,]*\.?\d*(?:e-?\d+)?"
MOVED = re.compile(
    r"\b(?:(fell|fallen|sank|dropped|shrank|went down)|(rose|risen|grew|grown|climbed|went up))\b"
    rf"(?: from ({NUMBER})(?: at step \d+)? to ({NUMBER})| by ({NUMBER}))?"
)
COMPARED = re.compile(
    rf"({NUMBER}) ?(%|MB|s)?[^.;:()\d]{{0,40}}?\b"
    rf"(?:(above|over|more than|longer than|higher than)|(below|under|less than|fewer than|lower than)) "
    rf"(?:the |its )?({NUMBER})"
)
# Words about a share, and between what it must be; the share stands in the same sentence.
SHARES = {
    r"(?<!of )(?<!if )\ball\b(?! of)": (1.0, 1.0),
    r"\bevery\b": (1.0, 1.0),
    r"(?<!at )\bmost\b": (0.5, 1.0),
    r"\bhalf\b": (0.4, 0.6),
    r"\bnearly all\b": (0.9, 1.0),
    r"\bhardly any\b": (0.0, 0.1),
    r"\bonly\b": (0.0, 0.5),
    r"\bnone\b": (0.0, 0.0),
}
COUNTED = "(?:rows|pairs|completions|groups|texts|tokens|weights|experts|prompts|steps|conversations|labels)"
# What no number of a run says.
NEVER = r"\b(never|always|seldom|nearly|hardly|too (easy|hard)|far too|a long time|much too|obviously|certainly)\b"


def messages(method, rule):
    return [(case, rule.message(case.view)) for case in grid.hits(method, rule)]


def number(text: str) -> float:
    return float(text.replace(",", ""))


def wrong_directions(text: str) -> list[str]:
    found = []
    for match in MOVED.finditer(text):
        down, _, first, last, by = match.groups()
        if first is None and by is None:
            found.append(f"{match[0]!r} stands without from what to what")
        elif by is not None and not number(by) > 0:
            found.append(match[0])
        elif by is None and not (number(last) < number(first) if down else number(last) > number(first)):
            found.append(match[0])
    for match in COMPARED.finditer(text):
        value, unit, above, _, other = match.groups()
        rest = text[match.end() :]
        if (unit == "%") != bool(re.match(r" %", rest)):
            continue  # a share of what is above something else
        if not (number(value) > number(other) if above else number(value) < number(other)):
            found.append(match[0])
    return found


def wrong_shares(text: str) -> list[str]:
    found = []
    for sentence in re.split(r"(?<=[.;]) ", text):
        if "Either" in sentence:
            continue  # what may be
        shares = [number(each) / 100 for each in re.findall(rf"({NUMBER}) %", sentence)]
        if re.search(r"n't|\bnot\b|\bother", sentence):
            shares += [1 - share for share in shares]  # of those that aren't
        for word, (least, most) in SHARES.items():
            if re.search(word, sentence.replace("None", "").lower()) and not any(
                least <= share <= most for share in shares
            ):
                found.append(f"{word} in {sentence!r}")
    return found


@BY_RULE
def test_the_grid_reaches_every_rule_and_it_has_words_for_what_it_finds(method, rule):
    found = grid.hits(method, rule)
    assert found, f"no case of the grid makes {rule.code} True: give it a hint in tests/evidence_grid.py"
    for case in found:
        assert rule.message(case.view).strip()
        assert all(remedy.why.strip() for remedy in rule.remedies(case.view))


@BY_RULE
def test_directions_are_those_of_the_numbers(method, rule):
    wrong = {text: found for _, text in messages(method, rule) if (found := wrong_directions(text))}
    assert not wrong


# Words that stand without their number: what must be so instead.
ALLOWED = {
    ("REW001", "every"): lambda view: view["rewards/*/none_share"] >= 1,
    ("REW002", "every"): lambda view: view["eval_rewards/*/none_share"] >= 1,
    ("DATA023", "all"): lambda view: view["data/same/*"] == 1,
    ("DATA003", "most"): lambda view: view["data/end_mark"] is not None,  # with which most of them end
}
# Fields that come with another one.
COMPANIONS = {"backend": "backend_config", "loss_type": "loss_weights"}


@BY_RULE
def test_words_of_how_many_stand_beside_a_share_that_they_fit(method, rule):
    for case, text in messages(method, rule):
        for code, word in ALLOWED:
            if code == rule.code and re.search(word, text):
                assert ALLOWED[code, word](case.view)
                text = re.sub(word, "", text)
        assert not wrong_shares(text)
        assert not re.search(NEVER, text), text


@BY_RULE
def test_numbers_are_there(method, rule):
    """No number that isn't one, and no share that can't be."""
    for case, text in messages(method, rule):
        text = text.replace("returned None", "")
        assert not re.search(r"\b(nan|inf|None|nothing nats)\b", text) or "watch/not_finite" in case.facts, text
        assert all(number(each) >= 0 for each in re.findall(rf"({NUMBER}) %", text)), text
        assert all(number(each) <= 100 for each in re.findall(rf"({NUMBER}) % of (?:the )?{COUNTED}", text)), text


SAID = re.compile(rf"\b([Ll]ower|[Rr]aise|[Ss]et) (\w+) from (\S+) to ({NUMBER}|\w+)")


def wrong_sentences(config, remedy) -> list[str]:
    """What a remedy's sentence says of its patch and isn't so."""
    text, patch, found = remedy.why, remedy.patch, []
    with_others = {COMPANIONS[name] for name in patch if name in COMPANIONS}
    if patch and not any(name in text for name in patch):
        found.append("names no field of its patch")
    found += [f"{name} isn't named" for name in patch if name not in text and name not in with_others]
    for word, name, first, last in SAID.findall(text):
        if name not in patch:
            found.append(f"{name} isn't changed")
            continue
        now, new = config[name], patch[name]
        if isinstance(new, bool) or not isinstance(new, int | float):
            continue
        if last.rstrip(",") not in (short(new), str(new)):
            found.append(f"{name} becomes {new}")
        if isinstance(now, int | float):
            if first.rstrip(",") not in (short(now), str(now)):
                found.append(f"{name} is {now}")
            if not {"lower": new < now, "raise": new > now}.get(word.lower(), new != now):
                found.append(f"{name} goes from {now} to {new}")
    return [f"{text}: {each}" for each in found]


@BY_RULE
def test_the_sentence_of_a_remedy_is_its_patch(method, rule):
    for case in grid.hits(method, rule):
        for remedy in rule.remedies(case.view):
            assert not wrong_sentences(case.config, remedy)


def test_the_checks_see_what_is_wrong():
    assert wrong_directions("The entropy fell from 0.0067 to 0.0146 nats a token")
    assert wrong_directions("went on falling, and fell to 3") and wrong_directions("The length rose to 7")
    assert not wrong_directions("The loss rose from 1e-3 to 2.5, and the reward fell from 3 to -1")
    assert wrong_directions("It is 3, above 5.") and not wrong_directions("It is 5, above 3.")
    assert (
        wrong_shares("3 %, most of the prompts.")
        and wrong_shares("most of the prompts: 3 %")
        and wrong_shares("All rows are.")
    )
    assert not wrong_shares("63 % of the prompts, most of them")


@pytest.mark.parametrize(
    "before, now, said",
    [(3.0, 1.2, "fell from 3 to 1.2"), (0.0067, 0.0146, "rose from 0.0067 to 0.0146"), (3.0001, 3.0002, "stayed at 3")],
)
def test_what_has_changed_is_said_by_what_is_shown(before, now, said):
    assert went(before, now) == said


@pytest.mark.parametrize(
    "share, said",
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.9999, "99.99 %"),
        (0.99999999, "99.9999 %"),
        (1e-7, "1e-5 %"),
        (0.434, "43 %"),
        (1.2, "120 %"),
    ],
)
def test_only_none_is_0_percent_and_only_all_is_100(share, said):
    assert percent(share) == said
