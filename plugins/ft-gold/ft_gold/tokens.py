"""Two tokenizers over one text: what each token stands for, where both end one, and which of their tokens are the same.

A *unit* is a run of the student's tokens and the run of the teacher's that spells the same bytes, (a, b) of them,
neither of which can be cut further. A unit (1, 0) is a token of the student's that the teacher says nothing of.
"""

from __future__ import annotations

import bisect
import codecs
import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import torch

from ft_gold.config import OF_ULD, GOLDConfig
from ft_host.api import ConfigError, tokenizer_of, turn_marks

Row = dict[str, Any]
Unit = tuple[int, int]

LONGEST = 64  # tokens of a unit on either side: it is compared at once, and its merged probability is next to nothing


# ---------------------------------------------------------------- one tokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer, and the config `field` that named it."""

    tokenizer: Any
    field: str

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """Tokens that are no text: marks of turns, of the end, padding."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(token for token, each in added.items() if each.special) | set(self.tokenizer.all_special_ids)

    @functools.cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes that each token stands for. Raises ConfigError for a tokenizer that doesn't keep text as it is."""
        added = {token: each.content.encode() for token, each in self.tokenizer.added_tokens_decoder.items()}
        read = reader_of(self.tokenizer, self.field)
        names = self.tokenizer.get_vocab()
        return {token: added[token] if token in added else read(name) for name, token in names.items()}

    @property
    def end(self) -> int:
        """What ends a text. Raises ConfigError where nothing does."""
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"{self.field}: the tokenizer has no eos_token, so that a completion would have no end")
        return self.tokenizer.eos_token_id

    @functools.cached_property
    def turn_end(self) -> int:
        """What ends a turn of the assistant's."""
        if not self.tokenizer.chat_template:
            return self.end
        close = turn_marks(self.tokenizer, self.tokenizer.get_chat_template())[1]
        ids = self.encode(close)
        return ids[0] if ids else self.end

    @functools.cached_property
    def spellings(self) -> dict[tuple[bytes, bool], int]:
        """The token of each spelling, marks apart from text. Where two have one (SentencePiece has each byte again),
        the one that the tokenizer makes of a text."""
        found: dict[tuple[bytes, bool], int] = {}
        ids = sorted(self.pieces)
        for token, name in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True):
            key = self.pieces[token], token in self.special
            if key not in found or not name.startswith("<0x"):
                found[key] = token
        return found

    @functools.cached_property
    def order(self) -> list[tuple[bool, bytes]]:
        """What tokens spell, in the order of bytes, marks behind: those that begin with a text follow each other."""
        return sorted((token in self.special, piece) for token, piece in self.pieces.items())

    @functools.cached_property
    def ranks(self) -> torch.Tensor:
        """(V,) where each token is in that order, -1 for what is none."""
        found = torch.full((max(self.pieces) + 1,), -1)
        by_piece = sorted(self.pieces, key=lambda token: (token in self.special, self.pieces[token]))
        found[torch.tensor(by_piece)] = torch.arange(len(by_piece))
        return found

    def span(self, ids: list[int]) -> list[int]:
        """From where to where in that order the tokens are that begin with what these spell; a mark is alone."""
        if len(ids) == 1 and ids[0] in self.special:
            place = int(self.ranks[ids[0]])
            return [place, place + 1]
        text = b"".join(self.pieces.get(token, b"") for token in ids)
        if not text:
            return [0, 0]
        beyond = text.rstrip(b"\xff")
        stop = (False, beyond[:-1] + bytes([beyond[-1] + 1])) if beyond else (True, b"")
        return [bisect.bisect_left(self.order, (False, text)), bisect.bisect_left(self.order, stop)]

    def encode(self, text: str) -> list[int]:
        """Without the tokens that begin or end a text."""
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def spelled(self, ids: list[int]) -> tuple[str, list[int]]:
        """What tokens say, with U+FFFD for bytes that are no text, and how many bytes of it are over at the end of
        each."""
        decoder, said, ends, size = codecs.getincrementaldecoder("utf-8")("replace"), [], [], 0
        for token in ids:
            said.append(decoder.decode(self.pieces.get(token, b"")))  # embeddings have rows that are no token
            size += len(said[-1].encode())
            ends.append(size + len(decoder.getstate()[0]))  # within a character, as far as its bytes go
        return "".join(said) + decoder.decode(b"", True), ends

    def ends_of(self, ids: list[int], text: str) -> list[int]:
        """How many bytes of `text` are over at the end of each token that it was made into, as far as they spell it."""
        pieces, whole = [self.pieces[token] for token in ids], text.encode()
        if pieces and b"".join(pieces) == b" " + whole:  # SentencePiece begins a text with a blank of its own
            pieces[0] = pieces[0][1:]
        same, ends, size = len(os.path.commonprefix([b"".join(pieces), whole])), [], 0
        for piece in pieces:
            size += len(piece)
            if size > same:
                break
            ends.append(size)
        return ends


def reader_of(tokenizer: Any, field: str) -> Any:
    """A function from a token's name to its bytes. Raises ConfigError for tokenizers whose tokens have none."""
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{field}: {type(tokenizer).__name__} doesn't tell what bytes its tokens stand for (it is no fast one); set"
            " use_extended_uld and uld_use_hybrid_loss to false"
        )
    found = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    kinds = {each["type"] for each in kinds_of(found)}
    if "ByteLevel" in kinds:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        byte = {letter: number for number, letter in bytes_to_unicode().items()}
        return lambda name: bytes(byte[letter] for letter in name)
    if kinds & {"ByteFallback", "Metaspace"}:
        return of_sentencepiece
    if kinds <= {"Fuse"}:
        return str.encode
    raise ConfigError(
        f"{field}: a tokenizer that decodes by {', '.join(sorted(kinds))} doesn't keep text as it is, so that its"
        " tokens can't be aligned; set use_extended_uld and uld_use_hybrid_loss to false"
    )


def kinds_of(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a decoder of the tokenizers library."""
    if decoder is None:
        return []
    return (
        [step for each in decoder["decoders"] for step in kinds_of(each)]
        if decoder["type"] == "Sequence"
        else [decoder]
    )


def of_sentencepiece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()


# ---------------------------------------------------------------- two of them


@dataclass(frozen=True, eq=False)
class Meeting:
    """The student's tokens and the teacher's."""

    ours: Vocabulary
    theirs: Vocabulary

    def check(self, config: GOLDConfig) -> None:
        """Raise ConfigError, before a model is loaded, for what would be noticed with the first completion."""
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
    if config.use_extended_uld:
        text, ends = (met.ours if said is None else met.theirs).spelled(ids[:stop] if said is None else said)
        if said is None:
            said = met.theirs.encode(text)
            groups = groups_of(ends, met.theirs.ends_of(said, text))
        else:
            groups = groups_of(met.ours.ends_of(ids[:stop], text), ends)
    else:
        if said is None:
            said = met.theirs.encode(met.ours.tokenizer.decode(ids[:stop]))
        groups = [(1, 1)] * min(stop, len(said))
    over = stop < len(ids) and ids[stop] in (met.ours.end, met.ours.turn_end)  # and no other mark
    ended = [met.theirs.turn_end if chat else met.theirs.end] if over else []
    mask, units, spans, place, other = [False] * len(said) + [False] * len(ended), [], [], 0, 0

    def alone(count: int) -> None:
        units.extend([1, 0] for _ in range(count))
        spans.extend([0] * 4 for _ in range(count))

    def together(mine: list[int], others: list[int]) -> None:
        units.append([len(mine), len(others)])
        spans.append([*met.ours.span(mine), *met.theirs.span(others)] if config.merge_strategy == "text" else [0] * 4)

    for a, b in groups:
        if max(a, b) <= LONGEST and all(sampled[place : place + a]):
            together(ids[place : place + a], said[other : other + b])
            mask[other : other + b] = [True] * b
        else:
            alone(sum(sampled[place : place + a]))
        place, other = place + a, other + b
    alone(sum(sampled[place:stop]))
    compared = over and sampled[stop] and not config.uld_skip_student_eos
    if compared:
        mask[-1] = True
        together(ids[stop : stop + 1], ended)
    alone(sum(sampled[stop:]) - compared)
    return row | {"teacher_completion_ids": said + ended, "teacher_sampled": mask, "units": units, "unit_spans": spans}
