"""What hooks get and return: plain values, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ft_host.util.moved import old_keywords
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ft_host.metrics import Metric


Row = dict[str, Any]  # of data, of what ft_prepare gives, or of a rollout: columns by name
NO_SCORES = "backend: {} has no ft_score, so it can't score tokens with another model"


class Drop(str):
    """Returned by `ft_prepare` to leave a row out; the text is the reason it is counted under."""


@dataclass(kw_only=True)
class LossOutput:
    """The loss of one micro-batch in one of two forms, and `metrics`: sums, see `ft_host.metrics`.

    `terms`: by the name of a count, a sum over the rows of the batch, of shape () and with gradient. The host divides
    each by `run.totals[name]`, the count of the whole step over micro-batches and ranks, and adds them up. Several
    terms are logged as `loss/NAME`, each its share of the loss.

    `loss`: for what isn't such a sum, of shape () and with gradient, divided by the step's totals by the method. Before
    the first update the host tries a few rows, once, twice and cut in two, and refuses a loss that isn't so divided.
    `depends_on_split` says why a loss must depend on how a step is split into micro-batches; it is then not tried.
    """

    loss: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    depends_on_split: str | None = None

    def shares(self, totals: dict[str, float]) -> dict[str, torch.Tensor]:
        """Each term divided by its total. A term whose total is 0 has nothing to be a sum of: it must be 0, and its
        share is 0. Raises ValueError where it isn't, and for a name that is no count."""
        found = {}
        for name, term in (self.terms or {}).items():
            if name not in totals:
                known = ", ".join(sorted(totals)) or "none"
                raise ValueError(
                    f"the term {name!r}, which is no count of ft_collate{nearest(name, totals)}; the counts of this "
                    f"step: {known}"
                )
            if not totals[name] and not bool(term == 0):
                raise ValueError(
                    f"the term {name!r} as {float(term.detach()):g} in a step whose count of {name!r} is 0; expected 0"
                )
            found[name] = term / (totals[name] or 1)
        return found

    def divide(self, totals: dict[str, float]) -> torch.Tensor:
        """The loss of shape () that enters the step's sum: `loss`, or the terms divided by `totals` and added up.
        Raises what `shares` does."""
        if self.terms is None:
            assert self.loss is not None  # one of the two is given
            return self.loss
        return sum(self.shares(totals).values(), start=0.0)  # type: ignore[return-value]  # no empty terms


@old_keywords
@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of a run, as `ft_models` returns it. `ModelSpec()` is the policy as it was before training, frozen.

    The host holds no copy of it that it can do without: with LoRA it is the policy with its adapter off (or with a
    frozen copy of the adapter that training started from).
    """

    source: str | None = None  # folder or hub id; None: the policy as it was before training
    field: str | None = None  # the config field that `source` is from, which a refusal names
    revision: str | None = None  # of a hub id
    # Whether the sizes of the two vocabularies may differ, by rows of the embedding that are no token of the tokenizer.
    allow_padded_vocab: bool = False
    own_tokenizer: bool = False  # it reads tokens of its own, which the method makes: vocabularies aren't compared
    hint: str = ""  # what the refusal of another vocabulary adds: what to use instead
    head: str | None = None  # None: a language model; "reward": one score a row; "value": one before each target
    # What `ft_annotate` computes with this model is computed before the first step and kept on disk, and no copy is
    # held. "rows": it depends on the row alone, "steps": on the rows that share its step. None: the model is held.
    precompute: str | None = None
    sync_steps: int | None = None  # mix the policy in after every so many steps
    sync_alpha: float = 1.0  # the policy's share of the mixture
    current_policy: bool = False  # no model of its own: the policy itself, as it is at each call, without gradient
    # Trained beside the policy, inside it: `model(batch, want=("value",))` gives its values. Head "value" alone.
    trained: bool = False
    shares_policy: bool = False  # no model of its own, but a layer on the policy's hidden states


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # for the whole call; None draws one from torch's random state
    role: str = "policy"  # the model that generates: the policy, or an auxiliary model such as "teacher"
    # Stop tokens, in addition to those of the model's generation config. None: the EOS of the run's tokenizer.
    stop_token_ids: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt as token ids. Requests with equal prompts may share the prefill.

    `number` identifies a request across all ranks. With the seed of the call it decides the sampling noise, independent
    of batches and ranks. None: numbered as if the requests of all ranks had been dealt out in turn.
    """

    prompt_ids: list[int]
    number: int | None = None
    max_new_tokens: int | None = None  # fewer than in `Sampling` where earlier turns used some of them
    # Tokens of the completion that was begun before, at the end of `prompt_ids`: the noise goes on after theirs.
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Token ids; those from `start` on are scored, each given all tokens before it."""

    token_ids: list[int]
    start: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """For each scored token of a sequence, the likeliest tokens at its position, likeliest first, and their
    log-probs.
    """

    token_ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The result for a prompt: token ids (with the stop token), log-probs, and the reason why it ended.

    The log-prob of each token is under the distribution that sampled it, which `Sampling` describes (the model's own,
    if greedy). The reason is "stop" (an end token) or "length".

    A conversation with tools is one completion with all its turns. `sampled` is then True for tokens that the model
    sampled, and False for tool results, whose log-probs are 0. Empty: everything was sampled. `versions` is the weight
    version of each token, as passed to `ft_sync_weights`; empty: all are of the weights when generation began.
    """

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    turns: int = 1
    prompt_ids: list[int] = field(default_factory=list)  # where it isn't the request's: an environment extended it
    messages: list[dict] = field(default_factory=list)  # the turns of a conversation with tools


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What an `Engine` has sampled for a request since the last piece: token ids with their log-probs, and why it
    ended, None while it goes on. `versions`, the weight version of each token, is empty where all are of the weights
    that the engine has; longer than `token_ids`, it is of the last so many tokens, some of them given before: servers
    tell the versions of a request that lived through an update when it ends. `problem`: why the request failed; it then
    goes on nowhere. `server`: which of several servers has sampled it, from 0, in how many `seconds`."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None = None
    versions: list[int] = field(default_factory=list)
    problem: str = ""
    server: int | None = None
    seconds: float = 0.0


class Engine(Protocol):
    """A sampler that takes requests while others are under way, as `ft_engine` returns it. All methods are called from
    one thread, and none but `poll` waits."""

    def submit(self, key: int, request: Request, sampling: Sampling) -> None:
        """Begin a request. `key` names it in what `poll` returns, and isn't used twice. Raises DataError for a prompt
        that is empty or leaves no room."""

    def poll(self, patience: float) -> list[tuple[int, Piece]]:
        """Sample, or wait for what is sampled elsewhere, for about `patience` seconds at most, and return what there is
        since the last call. The last piece of a request has a `finish_reason` or a `problem`. Raises FtHostError where
        the whole engine has failed."""

    def withdraw(self, key: int) -> None:
        """Forget a request: no more pieces of it come."""

    def interrupt(self) -> None:
        """Stop all requests. The next `poll` returns their last pieces, without a reason: they can be submitted again
        with the tokens that they have."""

    def update(self, version: int, weights: Any) -> None:
        """From here on the engine has the weights of that optimizer step. `weights`: what was sent with them, see
        `EnginePlace`. Requests that weren't interrupted go on with the keys and values that they have."""

    def close(self) -> None:
        """End what the engine has started."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """Servers that `ft_serve` has started. `backend_config`: the fields by which a run finds them; `environment`:
    variables that it needs, such as a key. `look` returns what has happened to them, in sentences, and raises
    FtHostError where they can't go on; it is called every second or so."""

    urls: list[str]
    backend_config: dict[str, Any]
    look: Callable[[], list[str]]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Rollout:
    """What `ft_rollout` returns. `rows`: dicts that JSON can hold, those of a `group` next to each other, as
    `completion_row` makes them. `samples`: none, or one for each row, for samples.jsonl."""

    rows: list[dict[str, Any]]
    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What `ft_host.train` returns: the folder of the run and the last value of each metric."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    findings: list[dict[str, Any]] = field(default_factory=list)  # as they ended; as in findings.jsonl
    failed: bool = False  # whether one is open that `fail_on` is about
