"""What a backend keeps to beside its probabilities: ends, limits, order, weights, the policy that it is given."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from ft_host.errors import DataError
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.sampling import ABS, asked, furthest, of_run, prompt, requests, tokens
from ft_host.types import Request, Sampling

if TYPE_CHECKING:
    from ft_host.run import Run

PATIENCE = 60.0  # seconds that an engine has for a few tokens


def stops(run: Run) -> None:
    import torch

    model, tokenizer = run.policy.causal_lm, run.tokenizer
    [request] = requests(1)
    [whole] = asked(run, [request])
    if whole.finish_reason != "length" or len(whole.token_ids) != 8:
        raise NotMet(
            f"8 tokens were asked for, of which none ends a completion; found {len(whole.token_ids)}, with the reason"
            f" {whole.finish_reason!r}"
        )
    # some ids of a tiny model are no token of its tokenizer
    end = next(token for token in whole.token_ids[1:] if token < len(tokenizer))
    expected = whole.token_ids[: whole.token_ids.index(end) + 1]
    ended = {"stop_token_ids": asked(run, [request], stop_token_ids=[end])}
    usual, mark = model.generation_config.eos_token_id, tokenizer.eos_token
    with torch.random.fork_rng(devices=[]):
        model.generation_config.eos_token_id = [2, end]
        ended["the model's generation config"] = asked(run, [request], stop_token_ids=None)
        model.generation_config.eos_token_id = usual
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        ended["the tokenizer's end token, without stop_token_ids"] = asked(run, [request], stop_token_ids=None)
        tokenizer.eos_token = mark
    for how, [found] in ended.items():
        if (found.token_ids, found.finish_reason) != (expected, "stop"):
            raise NotMet(
                f"token {end} ends a completion by {how}: expected {expected} and 'stop', found {found.token_ids} and"
                f" {found.finish_reason!r}"
            )


def limits(run: Run) -> None:
    [whole] = asked(run, requests(1))
    positions = run.policy.causal_lm.config.max_position_embeddings
    asked_for: dict[str, tuple[Request, dict[str, int], int]] = {
        "max_new_tokens 5": (requests(1)[0], {"max_new_tokens": 5}, 5),
        "max_new_tokens 2 of the request": (requests(1, max_new_tokens=2)[0], {}, 2),
        "max_new_tokens 8, and 20 of the request": (requests(1, max_new_tokens=20)[0], {}, 8),
        f"a prompt of {positions - 2} tokens": (Request(prompt_ids=prompt(1, positions - 2), number=0), {}, 2),
    }
    for what, (request, fields, expected) in asked_for.items():
        [found] = asked(run, [request], **fields)
        if (len(found.token_ids), found.finish_reason) != (expected, "length"):
            raise NotMet(
                f"with {what}, and the model's {positions} positions: expected {expected} tokens and 'length', found"
                f" {len(found.token_ids)} and {found.finish_reason!r}"
            )
        if len(request.prompt_ids) < 10 and found.token_ids != whole.token_ids[:expected]:
            raise NotMet(f"with {what}: {found.token_ids}, which isn't the beginning of {whole.token_ids}")


def refusals(run: Run) -> None:
    positions = run.policy.causal_lm.config.max_position_embeddings
    for what, ids in {"no tokens": [], f"{positions} tokens, all positions of the model": prompt(1, positions)}.items():
        try:
            asked(run, [*requests(1), Request(prompt_ids=ids, number=1)])
        except DataError:
            continue
        except Exception as error:
            raise NotMet(f"a prompt of {what} ends in {type(error).__name__}: {error}; expected DataError") from error
        raise NotMet(f"a prompt of {what} is completed; expected DataError")


def order(run: Run) -> None:
    if asked(run, []) != []:
        raise NotMet("no requests are answered by completions; expected an empty list")
    wanted = requests(5)
    alone = [tokens(asked(run, [each], temperature=0.0))[0] for each in wanted]
    together = tokens(asked(run, wanted, temperature=0.0))
    if together != alone:
        raise NotMet(f"requests one by one are given {alone}, at once {together}")


def weights(run: Run) -> Figures:
    from ft_host.testing.models import disturb

    wanted, worst = requests(4), 0.0
    before = asked(run, wanted, temperature=0.0)
    for step in (1, 2):
        disturb(run.policy)
        run.step = step
        run.sync_weights()
        found = asked(run, wanted, temperature=0.0)
        apart, where = furthest(run, wanted, found)
        if not apart <= ABS:
            raise NotMet(f"after update {step} {where}: log-probs aren't those of the weights that it made")
        worst = max(worst, apart)
    moved, _ = furthest(run, wanted, before)
    if moved <= ABS:  # the suite's own: an update that nobody could see
        raise NotMet(f"two updates changed no log-prob by more than {moved}")
    return {"off_by": worst, "moved_by": moved}


def untouched(run: Run) -> None:
    import numpy as np
    import torch

    policy = run.policy
    policy.train()
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    flags = {name: (each.requires_grad, each.grad) for name, each in policy.named_parameters()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    asked(run, requests(3))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    names = ("torch's", "NumPy's", "Python's")
    told = [
        "left the policy in evaluation mode" if not policy.training else "",
        *(
            f"changed the weight {name}"
            for name, value in policy.state_dict().items()
            if not value.equal(weights[name])
        ),
        *(
            f"changed requires_grad or the gradient of {name}"
            for name, each in policy.named_parameters()
            if flags[name][0] != each.requires_grad or flags[name][1] is not each.grad
        ),
        "" if torch.equal(states[0], after[0]) else f"changed {names[0]} random state, with a seed given",
        *(f"changed {names[at]} random state, with a seed given" for at in (1, 2) if states[at] != after[at]),
    ]
    found = [each for each in told if each]
    if found:
        raise NotMet(f"sampling {'; '.join(found[:3])}")


def engine(run: Run) -> None:
    """Requests that come one after the other are given what they are given at once."""
    from ft_host.run import EnginePlace

    if not run.plugins.hook.ft_engine.get_hookimpls():
        raise DoesNotApply("the backend has no ft_engine: it samples for `rollouts: sync` alone")
    wanted, sampling = requests(5), Sampling(max_new_tokens=8, seed=3, stop_token_ids=[])
    expected = tokens(run.generate(wanted, sampling))
    place = EnginePlace(
        config=run.config, tokenizer=run.tokenizer, backend_config=run.backend_config, say=run.say, run=run
    )
    made = run.plugins.hook.ft_engine(place=place)
    try:
        found = _sampled(made, wanted, sampling)
    finally:
        made.close()
    if found != expected:
        at = next(at for at, each in enumerate(found) if each != expected[at])
        raise NotMet(f"request {at} is given {found[at]} by ft_engine, and {expected[at]} by ft_generate")


def _sampled(made: Any, wanted: list[Request], sampling: Sampling) -> list[list[int]]:
    """Two requests first, the others once something has come; one more, which is withdrawn."""
    until = time.monotonic() + PATIENCE
    found: dict[int, list[int]] = {key: [] for key in range(len(wanted))}
    gone = len(wanted)
    ended: set[int] = set()
    for key in (0, 1):
        made.submit(key, wanted[key], sampling)
    late = [(key, wanted[key]) for key in range(2, len(wanted))] + [(gone, Request(prompt_ids=prompt(9), number=9))]
    while len(ended) < len(wanted):
        if time.monotonic() > until:
            raise NotMet(f"after {PATIENCE:.0f} s requests {sorted(found.keys() - ended)} haven't ended")
        for key, piece in made.poll(0.05):
            if key == gone:
                raise NotMet("a request that was withdrawn goes on")
            if piece.problem:
                raise NotMet(f"request {key} failed: {piece.problem}")
            found[key] += piece.token_ids
            ended |= {key} if piece.finish_reason else set()
        for key, request in late:
            made.submit(key, request, sampling)
        if late:
            made.withdraw(gone)
        late = []
    return [found[key] for key in range(len(wanted))]


CHECKS: list[Check] = [
    Check(
        id="backend-stop",
        title="A stop token ends a completion and stands at its end",
        about="backend",
        why="A completion that goes on is trained on to its limit; one without its last token never learns to end.",
        looks_at="A token of a completion made to end it: by `stop_token_ids`, by the model's generation config, by "
        "the tokenizer.",
        mend='End at `ft_host.api.end_tokens(model, tokenizer, sampling)`, keep the token, and say "stop".',
        test=of_run(stops),
    ),
    Check(
        id="backend-limits",
        title="A limit of tokens is kept to: the call's, the request's, the model's positions",
        about="backend",
        why="Turns of a conversation share one limit, and a model past its positions speaks nonsense or fails.",
        looks_at="Lengths with each limit, and that a shorter completion is the beginning of a longer one.",
        mend="Stop at the least of the call's limit, the request's and the positions left; say \"length\".",
        test=of_run(limits),
    ),
    Check(
        id="backend-prompts",
        title="A prompt that is empty, or leaves no room, is refused",
        about="backend",
        why="An engine's own error names no prompt, and ends a run of hours with a traceback.",
        looks_at="A prompt without tokens, and one as long as the model has positions, beside a usual one.",
        mend="Raise ft_host.api.DataError that says which prompt it is.",
        test=of_run(refusals),
    ),
    Check(
        id="backend-order",
        title="Completions stand in the order of their requests, and no requests give none",
        about="backend",
        why="Rewards would be paid to other prompts; and a process without a share of the rows asks with none.",
        looks_at="Five greedy completions together and one by one, and an empty list.",
        mend="Return one completion for each request, at its place.",
        test=of_run(order),
    ),
    Check(
        id="backend-weights",
        title="After an update it samples with the new weights",
        about="backend",
        why="A sampler of old weights makes each run one from stale data.",
        looks_at="Greedy completions after each of two changes of all weights, and a forward of the changed model.",
        mend="Read the policy at each call, or take its weights over in ft_sync_weights; forget caches of keys and "
        "values.",
        test=of_run(weights),
    ),
    Check(
        id="backend-policy",
        title="Sampling leaves the policy, its mode and the random state as they were",
        about="backend",
        why="Training would go on without dropout, or otherwise than a run that samples elsewhere.",
        looks_at="Weights, gradients and mode of a policy in training mode, and three random states, around three "
        "completions with a seed.",
        mend="Put the model's mode back in a `finally`; use generators of your own for noise.",
        test=of_run(untouched),
    ),
    Check(
        id="backend-engine",
        title="ft_engine gives a request what ft_generate gives it",
        about="backend",
        why="`rollouts: overlap` would learn from other completions than `sync`.",
        looks_at="Five requests that come one after the other, and one that is withdrawn; tokens, beside those of "
        "ft_generate.",
        mend="Sample both in one way, with the noise of (seed, number) and the offset of what was sampled before.",
        test=of_run(engine),
    ),
]
