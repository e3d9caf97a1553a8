"""A loss of two models' distributions, in tiles: against the same written out on whole logits."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from ft_host.batch import Segment, flat_batch
from ft_host.models import Policy
from ft_host.models import tiled_divergence as module
from ft_host.models.attention import install
from ft_host.models.logit_scaling import LogitScaling
from ft_host.models.tiled_divergence import Head, TiledDivergence, shaped, tiled_divergence
from ft_host.testing import models


def jsd(weights: torch.Tensor):
    """A Jensen-Shannon divergence with a weight for each target, and its values."""

    def function(ours, theirs, units):
        s, t = ours.log_softmax(-1), theirs.log_softmax(-1)
        m = torch.logsumexp(torch.stack([s, t]), 0) - torch.tensor(2.0, dtype=s.dtype).log()
        values = 0.5 * ((t.exp() * (t - m)).sum(-1) + (s.exp() * (s - m)).sum(-1))
        return (weights[units] * values).sum(), {"divergence": values}

    return function


@pytest.fixture
def small_tiles(monkeypatch):
    """Three targets a tile, which the function is asked about one or two at a time."""
    monkeypatch.setattr(module, "tile_rows", lambda *_: 3)
    monkeypatch.setitem(module.PART_BYTES, "cpu", 2 * 4 * 11)


def states(count: int = 10, width: int = 6, vocabulary: int = 11, other_width: int = 4, other: int | None = None):
    torch.manual_seed(0)
    return (
        torch.randn(count, width, dtype=torch.float64, requires_grad=True),
        torch.randn(vocabulary, width, dtype=torch.float64, requires_grad=True),
        torch.randn(other or count, other_width, dtype=torch.float64),
        torch.randn(vocabulary, other_width, dtype=torch.float64),
    )


SHAPES = [
    LogitScaling(),
    LogitScaling(scale=0.5, temperature=2.0),
    LogitScaling(scale=2.0, softcap=3.0, temperature=0.7),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["matrix", "later", "module"])
def test_loss_values_and_gradient_are_those_of_whole_logits(small_tiles, shape, kind):
    hidden, matrix, other, theirs = states()
    function = jsd(torch.rand(10, dtype=torch.float64))
    expected, values = function(
        shaped(hidden @ matrix.t(), shape), shaped(other @ theirs.t(), LogitScaling()), slice(0, 10)
    )
    wanted = torch.autograd.grad(3 * expected, (hidden, matrix))
    linear = nn.Linear(6, 11, bias=False, dtype=torch.float64)
    linear.weight = nn.Parameter(matrix.detach().clone())
    head = Head(None, linear, shape, 11) if kind == "module" else Head(matrix, None, shape, 11)
    found, parts = tiled_divergence(
        hidden,
        head,
        TiledDivergence(other, Head(theirs, None, LogitScaling(), 11), function),
        made_ahead=kind == "matrix",
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)  # a module's logits are summed in float32
    torch.testing.assert_close(parts["divergence"], values["divergence"].detach())
    weight = linear.weight if kind == "module" else matrix
    got = torch.autograd.grad(3 * found, (hidden, weight))
    for ours, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-8)


def test_values_that_are_views_of_logits_stay_what_they_were(small_tiles):
    """Logits are made where those of the tile before were."""
    hidden, matrix, other, theirs = states()

    def function(ours, others, units):
        return ours.sum(), {"ours": ours[:, 0], "others": others[:, 0]}

    heads = Head(matrix, None, LogitScaling(), 11), Head(theirs, None, LogitScaling(), 11)
    _, found = tiled_divergence(hidden, heads[0], TiledDivergence(other, heads[1], function), True)
    torch.testing.assert_close(found["ours"], (hidden @ matrix.t())[:, 0].detach())
    torch.testing.assert_close(found["others"], (other @ theirs.t())[:, 0])


@pytest.mark.parametrize("most", [3, 8])
def test_tiles_and_their_parts_hold_each_unit_once(monkeypatch, most):
    monkeypatch.setattr(module, "tile_rows", lambda *_: most)
    monkeypatch.setitem(module.PART_BYTES, "cpu", 2 * 4 * 11)
    units = [(1, 2), (2, 1), (1, 1), (3, 2), (2, 2)]
    given = TiledDivergence(
        torch.zeros(8, 4), Head(torch.zeros(11, 4), None, LogitScaling(), 11), jsd(torch.ones(9)), units
    )
    tiles = module.tiles_of_units(9, given, 11, torch.device("cpu"))
    for many in (tiles, [part for tile in tiles for part in tile.parts]):
        for each, count in ((lambda tile: tile.units, 5), (lambda tile: tile.ours, 9), (lambda tile: tile.theirs, 8)):
            assert [index for tile in many for index in range(count)[each(tile)]] == list(range(count))
    for tile in tiles:
        for part in tile.parts:
            ours, theirs = tile.within(part)
            assert (
                range(9)[tile.ours][ours] == range(9)[part.ours]
                and range(8)[tile.theirs][theirs] == range(8)[part.theirs]
            )
    assert len(tiles) == {3: 4, 8: 2}[most]
    assert max(len(tile.parts) for tile in tiles) == {3: 2, 8: 4}[most]


def test_cutting_takes_no_longer_for_what_is_not_there():
    """The tiles of a thousand million targets were once counted out to learn how large one is."""
    given = TiledDivergence(torch.zeros(5, 4), Head(torch.zeros(11, 4), None, LogitScaling(), 11), jsd(torch.ones(5)))
    started = time.process_time()
    for _ in range(20):
        module.tiles_of_units(5, given, 11, torch.device("cpu"))
    assert time.process_time() - started < 0.5


def test_units_of_several_targets_stay_together(small_tiles):
    """Sums of log-probs of one and two of our tokens against two and one of the other's."""
    hidden, matrix, other, theirs = states(count=9, other=8)
    units = [(1, 2), (2, 1), (1, 1), (3, 2), (2, 2)]

    def function(ours, others, which):
        left, right, parts = ours.log_softmax(-1).amax(-1), others.log_softmax(-1).amax(-1), []
        for a, b in units[which]:
            parts.append((left[:a].sum() - right[:b].sum()).abs())
            left, right = left[a:], right[b:]
        assert not len(left) and not len(right)
        return torch.stack(parts).sum(), {"apart": torch.stack(parts)}

    head, theirs = Head(matrix, None, LogitScaling(), 11), Head(theirs, None, LogitScaling(), 11)
    whole, values = function(hidden @ matrix.t(), theirs.logits(other), slice(0, 5))
    found, parts = tiled_divergence(hidden, head, TiledDivergence(other, theirs, function, units), True)
    assert float(found) == pytest.approx(float(whole))
    torch.testing.assert_close(parts["apart"], values["apart"].detach())
    torch.testing.assert_close(torch.autograd.grad(found, hidden)[0], torch.autograd.grad(whole, hidden)[0])


def test_what_does_not_belong_together_is_refused():
    hidden, matrix, other, theirs = states(count=9, other=8)
    heads = Head(matrix, None, LogitScaling(), 11), Head(theirs, None, LogitScaling(), 11)
    with pytest.raises(ValueError, match="9 targets against 8 states"):
        tiled_divergence(hidden, heads[0], TiledDivergence(other, heads[1], jsd(torch.ones(9))), True)
    with pytest.raises(ValueError, match="units of 2 and 2 states for 9 and 8"):
        tiled_divergence(hidden, heads[0], TiledDivergence(other, heads[1], jsd(torch.ones(9)), [(1, 1), (1, 1)]), True)


def test_no_targets_give_a_loss_of_nothing_with_a_gradient():
    hidden, matrix, other, theirs = states(count=0)
    heads = Head(matrix, None, LogitScaling(), 11), Head(theirs, None, LogitScaling(), 11)
    found, values = tiled_divergence(hidden, heads[0], TiledDivergence(other, heads[1], jsd(torch.ones(0))), True)
    assert float(found) == 0 and values == {}
    assert torch.autograd.grad(found, hidden)[0].shape == (0, 6)


def test_the_whole_of_both_logits_is_never_held(monkeypatch):
    """Of 4,096 targets over 2,048 tokens no tensor larger than a few tiles is made."""
    largest = 0
    plain = torch.Tensor.log_softmax

    def watched(self, *arguments):
        nonlocal largest
        largest = max(largest, self.numel())
        return plain(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    torch.manual_seed(0)
    hidden, matrix = torch.randn(4096, 8, requires_grad=True), torch.randn(2048, 8)
    function = jsd(torch.ones(4096))
    found, _ = tiled_divergence(
        hidden,
        Head(matrix, None, LogitScaling(), 2048),
        TiledDivergence(hidden.detach(), Head(matrix, None, LogitScaling(), 2048), function),
        True,
    )
    found.backward()
    assert 0 < largest <= 8 * 2**20 // 4


@pytest.mark.parametrize("kind", ["matrix", "later", "module"])
def test_a_model_that_is_not_here(small_tiles, kind):
    """The function knows what it said: it is given no logits, and which units are asked about."""
    hidden, matrix, other, theirs = states()
    logits = other @ theirs.t()
    divergence = jsd(torch.ones(10, dtype=torch.float64))
    expected, values = divergence(hidden @ matrix.t(), logits, slice(0, 10))
    wanted = torch.autograd.grad(expected, (hidden, matrix))
    linear = nn.Linear(6, 11, bias=False, dtype=torch.float64)
    linear.weight = nn.Parameter(matrix.detach().clone())
    head = Head(None, linear, LogitScaling(), 11) if kind == "module" else Head(matrix, None, LogitScaling(), 11)

    def function(ours, nothing, units):
        assert nothing is None and units.stop - units.start <= 3
        return divergence(ours, logits[units], units)

    found, parts = tiled_divergence(hidden, head, TiledDivergence(None, None, function), made_ahead=kind == "matrix")
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(parts["divergence"], values["divergence"].detach())
    gradient = torch.autograd.grad(found, (hidden, linear.weight if kind == "module" else matrix))
    for mine, other_one in zip(gradient, wanted, strict=True):
        torch.testing.assert_close(mine, other_one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["matrix", "module"])
def test_without_targets_everything_has_a_gradient_of_nothing(kind):
    """A rank that has none left takes part in the others' sum of gradients."""
    hidden, matrix, other, theirs = states(count=0)
    linear = nn.Linear(6, 11, bias=False, dtype=torch.float64)
    head = Head(None, linear, LogitScaling(), 11) if kind == "module" else Head(matrix, None, LogitScaling(), 11)
    found, values = tiled_divergence(
        hidden, head, TiledDivergence(other, Head(theirs, None, LogitScaling(), 11), jsd(hidden)), True
    )
    weight = linear.weight if kind == "module" else matrix
    found.backward()
    assert float(found.detach()) == 0 and not values
    assert hidden.grad is not None and torch.equal(weight.grad, torch.zeros_like(weight))


def test_the_names_of_04(small_tiles):
    """`ft_host.models.against`, `Against`, `loss_against`, and `against=` of a policy, which gives `against`."""
    with pytest.warns(FutureWarning):
        from ft_host.models.against import Against, loss_against
    assert Against is TiledDivergence and loss_against is tiled_divergence
    model = models.tiny_llama()
    install(model)
    policy = Policy(model)
    row = list(range(5, 15))
    batch = flat_batch([Segment(input_ids=row, labels=row, row=0)], num_rows=1)
    states = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    theirs = Head(torch.ones(256, 6), None, LogitScaling(), 256)
    divergence = TiledDivergence(states, theirs, jsd(torch.ones(9)))
    with pytest.raises(ValueError, match="divergence: its function names a value divergence, which the model gives"):
        policy(batch, want=(), divergence=divergence)
    with pytest.warns(FutureWarning, match=r"model\(..., against=\) is divergence= since ft-host 0.5"):
        found = policy(batch, want=(), against=divergence)
    assert found.keys() == {"against", "divergence"}, "the values of the function keep the name that it gives them"
    assert float(found["against"].detach()) == pytest.approx(float(found["divergence"].sum()), rel=1e-6)


def test_a_value_may_have_a_name_that_the_model_is_not_asked_for(small_tiles):
    model = models.tiny_llama()
    install(model)
    row = list(range(5, 15))
    batch = flat_batch([Segment(input_ids=row, labels=row, row=0)], num_rows=1)

    def entropy(ours, nothing, units):
        logs = ours.log_softmax(-1)
        found = -(logs.exp() * logs).sum(-1)
        return found.sum(), {"entropy": found}

    policy, divergence = Policy(model), TiledDivergence(None, None, entropy)
    found = policy(batch, want=(), divergence=divergence)
    torch.testing.assert_close(found["entropy"], policy(batch, want=("entropy",))["entropy"].detach())
    with pytest.raises(ValueError, match="its function names a value entropy, which the model gives itself"):
        policy(batch, want=("entropy",), divergence=divergence)
