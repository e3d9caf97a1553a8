"""Texts and supervised tokens, read off batches of known shape."""

from __future__ import annotations

from ft_host.batch import IGNORE, Segment, flat_batch
from ft_host.data.texts import texts_of
from ft_host.monitor.data_stats import _ends

END = 9


def pair(prompt_labels, prompt_row=0, rejected=(3, 5, END)):
    """A prompt [1, 2] and two completions of it."""
    segments = [
        Segment(input_ids=[1, 2], labels=prompt_labels, row=prompt_row),
        Segment(input_ids=[3, 4, END], labels=[3, 4, END], row=prompt_row + 1, parent=0),
        Segment(input_ids=list(rejected), labels=list(rejected), row=prompt_row + 2, parent=0),
    ]
    return flat_batch(segments, num_rows=prompt_row + 3)


def test_a_leaf_is_a_text_with_what_it_follows_on():
    chosen, rejected = texts_of(pair([IGNORE, IGNORE]))
    assert (chosen.ids, rejected.ids) == ([1, 2, 3, 4, END], [1, 2, 3, 5, END])
    assert chosen.before == rejected.before == 2
    assert chosen.supervised == rejected.supervised == [False, False, True, True, True]


def test_the_first_token_of_a_root_is_predicted_by_nothing():
    (text,) = texts_of(flat_batch([Segment(input_ids=[1, 2], labels=[1, 2], row=0)], num_rows=1))
    assert text.supervised == [False, True]
    assert texts_of(flat_batch([], num_rows=1)) == []


def test_a_first_token_that_is_not_supervised_is_told_from_its_sibling():
    segments = [
        Segment(input_ids=[1], labels=[IGNORE], row=0),
        Segment(input_ids=[3, 4], labels=[IGNORE, 4], row=0, parent=0),
        Segment(input_ids=[5, 6], labels=[5, 6], row=1, parent=0),
    ]
    first, second = texts_of(flat_batch(segments, num_rows=2))
    assert (first.own, second.own) == ([False, True], [True, True])


def test_a_supervised_prompt_is_no_text_that_has_to_end():
    """ORPO's: the prompt is a row of its own, whose targets end with no end token."""
    texts = texts_of(pair([1, 2]))
    assert [text.supervised for text in texts] == [[False, True, True, True, True]] * 2
    assert _ends(texts, {END}) == [True, True]
    assert _ends(texts_of(pair([1, 2], rejected=(3, 5))), {END}) == [True, False]
