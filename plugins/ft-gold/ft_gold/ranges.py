"""The usual ranges of the fields of gold, each with its source. Imports no torch."""

from __future__ import annotations

from typing import Any

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

# TRL's defaults that change a run and are others here, why, and the field without which they have no effect.
TRL: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-7, "usual for all weights of a pretrained model"),
    "temperature": (0.9, "what is sampled is what is compared"),
    "top_p": (0.95, "what is sampled is what is compared"),
    "max_completion_length": (128, "answers with thoughts don't fit"),
    "use_uld_loss": (False, "by text if the two tokenizers differ"),
    "uld_token_merge_strategy": ("observed", "that teaches to begin with the teacher's token", "use_uld_loss"),
    "uld_use_hybrid_loss": (False, "sorted probabilities say how sure a teacher is, not of what", "use_uld_loss"),
    "uld_student_temperature": (1.0, "as temperature", "use_uld_loss"),
    "uld_teacher_temperature": (1.0, "as temperature", "use_uld_loss"),
    "uld_skip_student_eos": (True, "the student should learn to end", "use_uld_loss"),
    "uld_skip_teacher_eos": (True, "the student should learn to end", "use_uld_loss"),
}
