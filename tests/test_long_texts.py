"""A row of megabytes: tokenised once for all the times that it is prepared, and named."""

import logging

from ft_host.data import long_texts
from ft_host.data.prepare import prepared
from ft_host.data.tokens import encode
from ft_host.testing.models import tiny_tokenizer


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self):
        self.inner, self.calls = tiny_tokenizer(), 0
        self.bos_token_id = self.inner.bos_token_id
        self.eos_token_id, self.eos_token = self.inner.eos_token_id, self.inner.eos_token

    def __call__(self, text, **arguments):
        self.calls += 1
        return self.inner(text, **arguments)


def test_a_long_text_is_tokenised_once_and_its_row_is_named(monkeypatch, caplog):
    monkeypatch.setattr(long_texts, "LONG", 100)
    tokenizer, text = Counting(), "red fox " * 40
    row = {"messages": [{"role": "user", "content": text}]}

    def prepare(raw):
        return {"length": len(encode(tokenizer, raw["messages"][0]["content"]))}

    with caplog.at_level(logging.WARNING):
        lengths = [prepared(prepare, "rows.jsonl, line 7", row)[0]["length"] for _ in range(3)]
    assert tokenizer.calls == 1 and len(set(lengths)) == 1
    said = [record.getMessage() for record in caplog.records]
    assert [each for each in said if each.startswith("rows.jsonl, line 7: a text of 320 characters")] == said[:1]
    ids = encode(tokenizer, text)
    ids.clear()
    assert len(encode(tokenizer, text)) == lengths[0], "a caller's list is its own"
    encode(tokenizer, "red fox")
    encode(tokenizer, "red fox")
    assert tokenizer.calls == 3, "short texts aren't kept"
