"""What a prompt on its way has got so far."""

from __future__ import annotations

from ft_host.scheduling.unit import Begun
from ft_host.types import Piece


def test_versions_that_are_told_at_the_end_replace_what_was_taken_for_them():
    begun = Begun(token_ids=[5], logprobs=[-1.0], versions=[2])
    begun.add(Piece(token_ids=[6, 7], logprobs=[-1.0, -2.0], versions=[2, 2]))
    begun.add(Piece(token_ids=[8], logprobs=[-1.5], versions=[2, 3, 3], finish_reason="stop"))
    assert begun.token_ids == [5, 6, 7, 8] and begun.logprobs == [-1.0, -1.0, -2.0, -1.5]
    assert begun.versions == [2, 2, 3, 3] and begun.finish_reason == "stop"
    begun = Begun()
    begun.add(Piece(token_ids=[], logprobs=[]))
    assert begun == Begun()
