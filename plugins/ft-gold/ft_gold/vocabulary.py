"""One tokenizer: the bytes of each token, and encoding text."""

from __future__ import annotations

import bisect
import codecs
import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import torch

from ft_host.api import ConfigError, turn_marks


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
