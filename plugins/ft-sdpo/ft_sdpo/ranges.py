"""The usual ranges of the fields of sdpo, each with its source. Imports no torch."""

from __future__ import annotations

from ft_host.api import Usual

MAX_REPROMPT_LEN = Usual(low=64, below=("no_signal",), why="solutions and feedback don't fit", source="own judgement")
TEACHER_UPDATE_RATE = Usual(
    high=0.5,
    above=("divergence", "forgetting", "no_signal"),
    why="the teacher is the student itself",
    source="SDPO, arXiv 2601.20802: 0.01 to 0.05",
    only={"teacher_model_kind": ("ema",)},
)
DISTILLATION_WEIGHT = Usual(
    low=0.01,
    below=("no_learning",),
    why="the teacher counts for next to nothing",
    source="SDPO, arXiv 2601.20802: 1",
    off=(0.0,),
)
DISTILLATION_TOPK = Usual(
    low=5,
    below=("no_learning", "forgetting"),
    why="the student is taught a handful of tokens at each place",
    source="SDPO, arXiv 2601.20802: 100",
    new=100,
)
DISTILLATION_IS_CLIP = Usual(
    low=0.5,
    high=20,
    below=("no_learning",),
    above=("divergence",),
    why=("weights of tokens are nearly all cut to the same", "weights of tokens have no bound"),
    source="SDPO, arXiv 2601.20802: 2",
)
EPSILON = Usual(
    low=0.02,
    high=1,
    below=("no_learning",),
    above=("divergence",),
    why=("nearly every update is clipped away", "nothing holds the policy to what sampled"),
    source="PPO, arXiv 1707.06347: 0.1 to 0.3",
    only={"importance_sampling_level": ("token",)},
)
