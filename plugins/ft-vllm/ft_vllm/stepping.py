"""The engine of `rollouts: overlap` with vLLM in the trainer's process: it samples while the trainer waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ft_host.api import Completion, ConfigError, FtHostError, Piece, Request, Sampling
from ft_vllm.completions import completion_of, joined
from ft_vllm.inprocess import as_they_were
from ft_vllm.sampling import Job, drawn, job_of, versions_of
from ft_vllm.serving import no_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


class StepEngine:
    """`llm` is a `vllm.LLM` whose engine nobody else steps. `salted`: requests that are under way keep their keys and
    values over an update, which those of other weights must not read. `adapter` and `version` are those of the last
    update."""

    def __init__(
        self,
        llm: Any,
        ends: Callable[[Sampling], list[int]],
        positions: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        salted: bool,
    ):
        self.llm, self.ends, self.positions, self.tokenizer, self.salted = llm, ends, positions, tokenizer, salted
        self.adapter: Any = None
        self.version: int | None = None
        self.keys: dict[str, int] = {}  # by vLLM's name of a request
        self.got: list[tuple[int, Piece]] = []
        self.number = 0  # of names

    def submit(self, key: int, request: Request, sampling: Sampling) -> None:
        if sampling.role != "policy":
            raise ConfigError(no_model(sampling.role))
        seed = drawn() if sampling.seed is None else sampling.seed
        number = key if request.number is None else request.number
        where = f"the prompt of request {number}"
        ends = self.ends(sampling)
        self._add(key, job_of(request, sampling, ends, seed, number, self.positions, where, self.tokenizer))

    def poll(self, patience: float) -> list[tuple[int, Piece]]:
        end = time.monotonic() + patience
        while self.keys and not self.got:
            self._step()
            if time.monotonic() >= end:
                break
        found, self.got = self.got, []
        return found

    def withdraw(self, key: int) -> None:
        self._abort([name for name, each in self.keys.items() if each == key])

    def interrupt(self) -> None:
        """All tokens have been handed on after each step, so nothing is left to tell."""
        self._abort(list(self.keys))

    def update(self, version: int, weights: Any) -> None:
        """vLLM has been given them by the trainer."""

    def close(self) -> None:
        """The engine is the trainer's, and ends with the run."""

    def complete(self, jobs: list[Job]) -> list[Completion]:
        """Complete jobs of another caller, while what is under way goes on."""
        kept, self.got = self.got, []
        mine = {-1 - place: Piece(token_ids=[], logprobs=[]) for place in range(len(jobs))}  # keys that nobody else has
        for place, job in enumerate(jobs):
            self._add(-1 - place, job)
        while any(piece.finish_reason is None for piece in mine.values()):
            self._step()
            for key, piece in self.got:
                if key in mine:
                    mine[key] = joined(mine[key], piece)
                else:
                    kept.append((key, piece))
            self.got = []
        self.got = kept
        return [completion_of(piece) for piece in mine.values()]

    # ------------------------------------------------------------ vLLM's engine

    def _add(self, key: int, job: Job) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**job.params, output_kind=RequestOutputKind.DELTA)
        prompt: dict[str, Any] = {"prompt_token_ids": job.prompt_ids}
        if self.salted and self.version is not None:
            prompt["cache_salt"] = str(self.version)
        self.number += 1
        name = f"ft-{self.number}"
        try:
            self.llm.llm_engine.add_request(name, prompt, params, lora_request=self.adapter)
        except ValueError as error:
            raise FtHostError(f"vLLM can't complete this prompt: {error}") from error
        self.keys[name] = key

    def _step(self) -> None:
        try:
            with as_they_were():
                answers = self.llm.llm_engine.step()
        except (ValueError, RuntimeError) as error:
            raise FtHostError(f"vLLM can't go on: {error}") from error
        for answer in answers:
            key = self.keys.get(answer.request_id)
            if key is None:  # withdrawn
                continue
            said = answer.outputs[0]
            tokens = list(said.token_ids)
            if answer.finished:
                del self.keys[answer.request_id]
                if said.finish_reason not in ("stop", "length"):
                    raise FtHostError(f"vLLM ended a completion with {said.finish_reason!r}; expected stop or length")
            versions = [] if self.version is None else [self.version] * len(tokens)
            if said.weight_versions:
                spans = versions_of([(span.version, span.start, span.end) for span in said.weight_versions])
                versions = spans or versions
            logprobs = [entry[token].logprob for token, entry in zip(tokens, said.logprobs or [], strict=True)]
            reason = said.finish_reason if answer.finished else None
            self.got.append((key, Piece(token_ids=tokens, logprobs=logprobs, finish_reason=reason, versions=versions)))

    def _abort(self, names: list[str]) -> None:
        if names:
            self.llm.llm_engine.abort_request(names)
        for name in names:
            del self.keys[name]
