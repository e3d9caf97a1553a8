"""The usual ranges of the fields of distill and gkd, each with its source. Imports no torch."""

from __future__ import annotations

from ft_host.api import Usual

LOSS_TOP_K = Usual(
    low=4,
    below=("no_learning", "forgetting"),
    why="the student is taught a handful of tokens at each place",
    source="own judgement: below it 10 % of a teacher's probability is often missing",
    new=20,
)
TEMPERATURE = Usual(
    far=4,
    low=0.3,
    high=4,
    below=("no_variety", "no_learning"),
    above=("divergence", "no_learning", "cut"),
    why=("only the likeliest token is taught", "what is taught is nearly even over all tokens"),
    source="arXiv 1503.02531: 1 to 4; 1 in GKD, arXiv 2306.13649",
)
