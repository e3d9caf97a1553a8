"""What a backend samples: by which probabilities, and with which noise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError
from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.sampling import ABS, asked, furthest, log_probs, of_run, prompt, requests, tokens
from ft_host.types import Request

if TYPE_CHECKING:
    from ft_host.run import Run

CUTS: dict[str, Any] = {"top_p": 0.5, "top_k": 3, "min_p": 0.2, "repetition_penalty": 1.5}
DRAWS, TEMPERATURE = 200, 0.7  # of the single tokens that are drawn
APART = 0.157  # the largest difference of two cumulative shares: Kolmogorov-Smirnov, 2.22 / sqrt(DRAWS)


def exact(run: Run) -> Figures:
    worst = 0.0
    for temperature in (1.0, 0.6):
        wanted = requests(6)
        found = asked(run, wanted, temperature=temperature)
        apart, where = furthest(run, wanted, found, temperature=temperature)
        if not apart <= ABS:
            raise NotMet(f"at temperature {temperature} {where}; log-probs may be off by {ABS}")
        worst = max(worst, apart)
    return {"off_by": worst}


def distribution(run: Run) -> Figures:
    """How far the share of tokens up to each is from what it should be, in two orders: of ids, and of likelihood. (The
    first finds noise that isn't uniform, the second a temperature that isn't the one asked for.)"""
    import torch

    wanted = [Request(prompt_ids=prompt(1), number=number) for number in range(DRAWS)]
    drawn = asked(run, wanted, temperature=TEMPERATURE, max_new_tokens=1)
    expected = log_probs(run, prompt(1), [8], temperature=TEMPERATURE)[0].exp()
    found = torch.bincount(torch.tensor([each.token_ids[0] for each in drawn]), minlength=len(expected)) / DRAWS
    orders = {"ids": torch.arange(len(expected)), "likelihood": expected.argsort(descending=True)}
    apart = {name: float((found[at].cumsum(0) - expected[at].cumsum(0)).abs().max()) for name, at in orders.items()}
    name = max(apart, key=lambda each: apart[each])
    if apart[name] > APART:
        raise NotMet(
            f"of {DRAWS} tokens after one prompt at temperature {TEMPERATURE} the share up to some token, in the order"
            f" of {name}, is {apart[name]:.3g} from the model's; chance makes {APART} once in ten thousand"
        )
    return apart


def greedy(run: Run) -> Figures:
    wanted = requests(4)
    found = asked(run, wanted, temperature=0.0)
    for request, each in zip(wanted, found, strict=True):
        logp = log_probs(run, request.prompt_ids, each.token_ids)
        for at, token in enumerate(each.token_ids):
            if float(logp[at].max() - logp[at, token]) > ABS:
                raise NotMet(f"at temperature 0 token {at} of request {request.number} isn't the likeliest")
    apart, where = furthest(run, wanted, found)
    if not apart <= ABS:
        raise NotMet(f"at temperature 0 {where} (at temperature 1); log-probs may be off by {ABS}")
    if tokens(asked(run, wanted, temperature=0.0, seed=4)) != tokens(found):
        raise NotMet("at temperature 0 another seed gives other tokens")
    return {"off_by": apart}


def cuts(run: Run) -> Figures:
    """Each is kept to, or refused by name."""
    kept, refused = [], []
    for name, value in CUTS.items():
        wanted = requests(4)
        try:
            found = asked(run, wanted, **{name: value})
        except ConfigError as error:
            if name not in str(error):
                raise NotMet(f"{name} = {value} is refused, and the refusal doesn't name it: {error}") from error
            refused.append(name)
            continue
        apart, where = furthest(run, wanted, found, **{name: value})
        if not apart <= ABS:
            raise NotMet(f"with {name} = {value} {where}; log-probs may be off by {ABS}")
        kept.append(name)
    return {"kept": kept, "refused": refused}


def noise(run: Run) -> None:
    same = [Request(prompt_ids=prompt(1), number=number) for number in range(4)]
    other = [Request(prompt_ids=prompt(7, 17), number=number) for number in (4, 5)]
    found = tokens(asked(run, same))
    if len({tuple(each) for each in found}) < len(found):
        raise NotMet(f"{len(same)} requests with one prompt and the numbers 0 to 3 are given the same tokens: {found}")
    ways = {
        "in reverse order": tokens(asked(run, same[::-1]))[::-1],
        "beside others": tokens(asked(run, [other[0], *same, other[1]]))[1:-1],
        "one at a time": [tokens(asked(run, [each]))[0] for each in same],
        "without numbers": tokens(asked(run, [replace(each, number=None) for each in same])),
    }
    for way, again in ways.items():
        if again != found:
            at = next(at for at, each in enumerate(again) if each != found[at])
            raise NotMet(f"request {at} is given {found[at]}, and {again[at]} {way}, with one seed")
    if tokens(asked(run, same, seed=4)) == found:
        raise NotMet("the seeds 3 and 4 give the same tokens")
    by_state = [_after(seed, run, same) for seed in (1, 1, 2)]
    if by_state[0] != by_state[1] or by_state[0] == by_state[2]:
        raise NotMet("without a seed the tokens don't follow from torch's random state, which checkpoints keep")


def _after(seed: int, run: Run, wanted: list[Request]) -> list[list[int]]:
    import torch

    torch.manual_seed(seed)
    return tokens(asked(run, wanted, seed=None))


CHECKS: list[Check] = [
    Check(
        id="backend-log-probs",
        title="Log-probs of sampled tokens are those by which they were drawn",
        about="backend",
        why="Ratios, KL and old log-probs are made of them: a method learns from their error.",
        looks_at="Six completions at the temperatures 1 and 0.6, and a forward of the model over them.",
        mend="Give the log-softmax of the logits over the temperature, in float32, of the token that was drawn.",
        test=of_run(exact),
    ),
    Check(
        id="backend-distribution",
        title="Tokens are drawn from the model's distribution",
        about="backend",
        why="Exact log-probs of tokens that are drawn in another way make every estimate of a policy gradient wrong, "
        "and nothing else shows it.",
        looks_at=f"{DRAWS} single tokens after one prompt: cumulative shares beside the model's own.",
        mend="Draw by the whole cumulative distribution at the temperature asked for; look at how noise becomes a "
        "token.",
        test=of_run(distribution),
    ),
    Check(
        id="backend-greedy",
        title="At temperature 0 the likeliest tokens are given, whatever the seed",
        about="backend",
        why="Evaluations are greedy where they say so, and compare from step to step and run to run.",
        looks_at="Four completions at temperature 0 with two seeds: their tokens, and their log-probs at "
        "temperature 1.",
        mend="Take the largest logit, and its log-prob without any temperature.",
        test=of_run(greedy),
    ),
    Check(
        id="backend-cuts",
        title="top_p, top_k, min_p and repetition_penalty are kept to, or refused by name",
        about="backend",
        why="A field that is accepted and ignored makes another run than its file says.",
        looks_at="Four completions with each, and what their tokens cost in the distribution that it leaves.",
        mend="Apply repetition penalty, temperature, top_k, top_p and min_p in this order, or raise ConfigError that "
        "names the field.",
        test=of_run(cuts),
    ),
    Check(
        id="backend-noise",
        title="What a request is given depends on the seed and its number alone",
        about="backend",
        why="Else a run's numbers change with the batch size, the order of requests and the number of processes, and "
        "no run can be repeated.",
        looks_at="Four requests of one prompt: together, in reverse, beside others, one at a time, without numbers; "
        "another seed; no seed, with torch's random state set.",
        mend="Seed the noise of each request with (seed, number). Without a number it is place x world size + rank; "
        "without a seed draw one by torch.randint.",
        test=of_run(noise),
    ),
]
