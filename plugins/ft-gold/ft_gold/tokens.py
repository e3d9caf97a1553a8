"""Two tokenizers over one text: what each token stands for, where both end one, and which of their tokens are the same.

A *unit* is a run of the student's tokens and the run of the teacher's that spells the same bytes, (a, b) of them,
neither of which can be cut further. A unit (1, 0) is a token of the student's that the teacher says nothing of.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from ft_gold.config import OF_ULD, GOLDConfig
from ft_gold.vocabulary import Vocabulary
from ft_host.api import ConfigError, tokenizer_of

Row = dict[str, Any]
Unit = tuple[int, int]

LONGEST = 64  # tokens of a unit on either side: it is compared at once, and its merged probability is next to nothing


# ---------------------------------------------------------------- one tokenizer


# ---------------------------------------------------------------- two of them


@dataclass(frozen=True, eq=False)
class Meeting:
    """The student's tokens and the teacher's."""

    ours: Vocabulary
    theirs: Vocabulary

    def check(self, config: GOLDConfig) -> None:
        """Raise ConfigError, before a model is loaded, for problems that the first completion would show."""
        for vocabulary in (self.ours, self.theirs):
            _ = vocabulary.turn_end
            if config.use_extended_uld:
                _ = vocabulary.pieces
        if config.uld_use_hybrid_loss:
            _ = self.shared
        else:
            config.refuse({"beta": 0.5}, "with uld_use_hybrid_loss: false, where all is sorted")

    @functools.cached_property
    def shared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (K,) of tokens that stand for the same bytes, the student's and the teacher's. Ends belong to ends,
        whatever they are called. Raises ConfigError where nothing is shared."""
        pairs = {self.ours.end: self.theirs.end} | {self.ours.turn_end: self.theirs.turn_end}
        taken = set(pairs.values())
        mine, others = self.ours.spellings, self.theirs.spellings
        for key, token in mine.items():
            if key in others and token not in pairs and others[key] not in taken:
                pairs[token] = others[key]
        if len(pairs) <= 2:
            raise ConfigError(
                f"{self.theirs.field}: its tokenizer has no token that the student has; uld_use_hybrid_loss: false"
                " compares without"
            )
        order = sorted(pairs.items(), key=lambda pair: pair[1])
        return torch.tensor([ours for ours, _ in order]), torch.tensor([theirs for _, theirs in order])


def meeting(tokenizer: Any, config: GOLDConfig) -> Meeting | None:
    """The tokens of student and teacher, where they are compared by text. None: they are the same, or are to be.

    Raises ConfigError for a tokenizer that can't be loaded, two that can't be compared as `config` wants, and for
    fields that have no effect on the same tokens.
    """
    if config.use_uld_loss is False:
        return None  # the host has compared them
    named = config.teacher_tokenizer_name_or_path
    field = "teacher_model_name_or_path" if named is None else "teacher_tokenizer_name_or_path"
    place = named or config.teacher_model_name_or_path
    revision = config.teacher_model_revision if named is None else None
    found = _meeting(tokenizer, place, field, revision, config.trust_remote_code)
    if config.use_uld_loss or found.ours.tokenizer.get_vocab() != found.theirs.tokenizer.get_vocab():
        found.check(config)
        return found
    config.refuse(OF_ULD, "on a teacher with the student's tokens; use_uld_loss: true compares by text all the same")
    return None


@functools.lru_cache(maxsize=4)
def _meeting(tokenizer: Any, place: str, field: str, revision: str | None, trust: bool) -> Meeting:
    theirs = tokenizer_of(place, field, revision=revision, trust_remote_code=trust)
    return Meeting(Vocabulary(tokenizer, "model"), Vocabulary(theirs, field))


# ---------------------------------------------------------------- completions


def groups_of(ours: list[int], theirs: list[int]) -> list[Unit]:
    """From where in the bytes the tokens of both end, how many of each are between two places where both do. What comes
    after the last such place is in none."""
    found: list[Unit] = []
    i = j = first = other = 0
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            i, j = i + 1, j + 1
            found.append((i - first, j - other))
            first, other = i, j
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return found


def as_teacher_reads(row: Row, met: Meeting, config: GOLDConfig, chat: bool, said: list[int] | None = None) -> Row:
    """A row of a completion with its text as the teacher reads it: `teacher_completion_ids`, which of them the
    student's are compared with (`teacher_sampled`), and `units`, which cover the student's sampled tokens in order,
    with the tokens of either that begin with the text of one (`unit_spans`: see `Vocabulary.span`).

    `said`: the teacher's tokens, without an end, where it was the teacher who said it.
    """
    ids, sampled = row["completion_ids"], row["sampled"]
    stop = next((place for place, token in enumerate(ids) if token in met.ours.special), len(ids))
    over = stop < len(ids) and ids[stop] in (met.ours.end, met.ours.turn_end)  # and no other mark
    ended = [met.theirs.turn_end if chat else met.theirs.end] if over else []
    compared = over and sampled[stop] and not config.uld_skip_student_eos
    if config.use_extended_uld:
        text, ends = (met.ours if said is None else met.theirs).spelled(ids[:stop] if said is None else said)
        if said is None:
            said = met.theirs.encode(text)
            groups = groups_of(ends, met.theirs.ends_of(said, text))
        else:
            groups = groups_of(met.ours.ends_of(ids[:stop], text), ends)
    else:  # by place, whatever stands there: where one is shorter, its end is compared with text of the other
        if said is None:
            said = met.theirs.encode(met.ours.tokenizer.decode(ids[:stop]))
        groups = [(1, 1)] * min(stop + compared, len(said) + compared)
        compared = False  # as an end with an end
    theirs = said + ended
    mask, place, other = [False] * len(theirs), 0, 0
    units: list[Any] = []
    spans: list[Any] = []

    def alone(count: int) -> None:
        units.extend([1, 0] for _ in range(count))
        spans.extend([0] * 4 for _ in range(count))

    def together(mine: list[int], others: list[int]) -> None:
        units.append([len(mine), len(others)])
        spans.append([*met.ours.span(mine), *met.theirs.span(others)] if config.merge_strategy == "text" else [0] * 4)

    for a, b in groups:
        if max(a, b) <= LONGEST and all(sampled[place : place + a]):
            together(ids[place : place + a], theirs[other : other + b])
            mask[other : other + b] = [True] * b
        else:
            alone(sum(sampled[place : place + a]))
        place, other = place + a, other + b
    if compared:
        alone(sum(sampled[place:stop]))
        mask[-1] = True
        together(ids[stop : stop + 1], ended)
        place = stop + 1
    alone(sum(sampled[place:]))
    return row | {"teacher_completion_ids": theirs, "teacher_sampled": mask, "units": units, "unit_spans": spans}
