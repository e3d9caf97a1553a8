"""Packages of methods hold their maths themselves. Where two hold the same formula on purpose, a comment above each
names the other: `# Same as ft_x.module.name` says that the two have the same text, `# Same values as` that they are
written another way. This test keeps both so."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PLUGINS = Path(__file__).parent.parent / "plugins"
MARK = re.compile(r"^# (Same as|Same values as) (.+)$")


def marks(how: str) -> list[tuple[str, str]]:
    """(a place, the other one that it names) of each mark of that kind."""
    found = []
    for path in sorted(PLUGINS.glob("ft-*/ft_*/*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.parse("\n".join(lines)).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            at = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 2
            while at >= 0 and (mark := MARK.match(lines[at])):
                if mark[1] == how:
                    place = f"{path.parent.name}.{path.stem}.{node.name}"
                    found += [(place, other) for other in mark[2].split(", ")]
                at -= 1
    return found


def text_of(place: str) -> str:
    """A function or class as it computes: without docstrings, and without annotations, which name a config."""
    package, module, name = place.split(".")
    path = PLUGINS / package.replace("_", "-") / package / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(each for each in tree.body if getattr(each, "name", None) == name)
    if isinstance(node.body[0], ast.Expr):
        del node.body[0]
    if isinstance(node, ast.FunctionDef):
        for argument in node.args.args:
            argument.annotation = None
    return ast.unparse(node)


def test_each_mark_is_answered_by_the_other_place():
    for how in ("Same as", "Same values as"):
        found = marks(how)
        assert found and {(other, place) for place, other in found} == set(found)


@pytest.mark.parametrize("place,other", [pair for pair in marks("Same as") if pair[0] < pair[1]])
def test_the_same_text(place, other):
    assert text_of(place) == text_of(other)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ratios(grpo: Callable, sdpo: Callable) -> None:
    rows = torch.tensor([0, 0, 0, 2, 2, 3])
    for level in ("token", "sequence"):
        given = normal(6, seed=1), rows, torch.tensor([3, 0, 2, 1]), level
        torch.testing.assert_close(grpo(*given), sdpo(*given))


def advantages(grpo: Callable, sdpo: Callable) -> None:
    """With completions without a reward, a group of one, and one whose rewards are equal."""
    rewards, groups = normal(9, seed=2), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    rewards[1], rewards[3], rewards[6:] = torch.nan, torch.nan, 0.5
    for scale in ("group", "batch", "none"):
        config = SimpleNamespace(multi_objective_aggregation="sum_then_normalize", scale_rewards=scale)
        ours = grpo(rewards[:, None], torch.ones(1, dtype=torch.float64), groups, config)
        if scale == "none":  # of a group of one the distance from its mean is 0 both ways
            assert ours[4] == 0
        torch.testing.assert_close(ours, sdpo(rewards, groups, scale))


def clipped(one: Callable, other: Callable) -> None:
    """PPO's objective: as a function of ratios, of log-probs, or of what GRPO's losses see."""

    def called(function: Callable) -> torch.Tensor:
        logps, old, gains = normal(64, seed=3), normal(64, seed=4), normal(64, seed=5)
        q = torch.exp(logps - old)
        if function.__module__ == "ft_sdpo.losses":
            return function(q, gains, (0.8, 1.2))
        if function.__module__ == "ft_rloo.method":
            return function(logps, old, gains, (0.8, 1.2))
        if function.__module__ == "ft_ppo.method":
            return function(logps, old, gains, 0.2)[0]
        tokens = SimpleNamespace(ratios=q, advantages=gains)
        return function(tokens, SimpleNamespace(epsilon=0.2, clip_high=1.2, delta=None))

    torch.testing.assert_close(called(one), called(other))


def divergence(jsd: Callable, other: Callable) -> None:
    student, teacher = normal(5, 7, seed=6).log_softmax(-1), normal(5, 7, seed=7).log_softmax(-1)
    for beta in (0.0, 0.3, 0.5, 1.0):
        torch.testing.assert_close(jsd(student, teacher, beta), other(student, teacher, beta))


def of_samplers(tokens: Callable, rectangle: Callable) -> None:
    """Weights of three rows of two, four and one tokens: as a list, and as a rectangle."""
    sizes = torch.tensor([2, 4, 1])
    mask, rows = torch.arange(4) < sizes[:, None], torch.repeat_interleave(torch.arange(3), sizes)
    old, sampler = normal(3, 4, seed=8), normal(3, 4, seed=9)
    for how in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        for least, most in ((None, 3.0), (0.5, 1.5), (None, None)):
            config = SimpleNamespace(
                correction=how, importance_sampling_clip_min=least, importance_sampling_clip_max=most
            )
            found = rectangle(old, sampler, mask, config)[mask]
            torch.testing.assert_close(tokens(old[mask], sampler[mask], rows, sizes, config), found)


CHECKS = {"ratios": ratios, "advantages": advantages, "clipped": clipped, "generalised_jsd": divergence}
CHECKS |= {"corrections": of_samplers, "clipped_losses": clipped, "policy_losses": clipped}


@pytest.mark.parametrize("place,other", [pair for pair in marks("Same values as") if pair[0] < pair[1]])
def test_the_same_values(place, other):
    import importlib

    functions = []
    for each in (place, other):
        module, _, name = each.rpartition(".")
        functions.append(vars(importlib.import_module(module))[name])
    CHECKS[place.rpartition(".")[2]](*functions)
