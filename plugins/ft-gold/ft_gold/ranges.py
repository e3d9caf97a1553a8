"""The usual ranges of the fields of gold, each with its source. Imports no torch."""

from __future__ import annotations

from ft_host.api import Usual

TEMPERATURE = Usual(
    far=4,
    low=0.3,
    high=4,
    below=("no_variety", "no_learning"),
    above=("divergence", "no_learning", "cut"),
    why=("only the likeliest token is taught", "what is taught is nearly even over all tokens"),
    source="arXiv 1503.02531: 1 to 4",
)
ULD_HYBRID_MATCHED_WEIGHT = Usual(
    high=10, above=("divergence",), why="one part drowns the other", source="TRL's documentation: 0 to 1"
)
ULD_CROSSENTROPY_WEIGHT = Usual(
    high=10,
    above=("no_learning", "divergence"),
    why="the text counts for more than the teacher",
    source="ULD, arXiv 2402.12030",
)
ULD_DISTILLATION_WEIGHT = Usual(
    low=0.01,
    high=10,
    below=("no_learning",),
    above=("divergence",),
    why=("the teacher counts for next to nothing", "updates outgrow the learning rate"),
    source="ULD, arXiv 2402.12030: 1.5",
)
ULD_STUDENT_TEMPERATURE = Usual(
    low=0.3,
    high=10,
    below=("no_learning", "divergence"),
    above=("no_learning",),
    why=("only the likeliest token is taught", "what is taught is nearly even over all tokens"),
    source="arXiv 1503.02531: 1 to 4",
)
