"""A loss that isn't divided by the step's totals is refused by name before the first update."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ft_host.errors import HookError
from ft_host.rundir.folder import RunFolder
from ft_host.testing.invariants import assert_same, lines, run_in
from ft_host.testing.processes import train_apart
from ft_host.training.launch import train
from ft_host.training.normalisation import groups, halves, sample, verdict

LOSS = """
@hookimpl
def ft_loss(model, batch, run):
    nll = -model(batch, want=("logp",))["logp"].sum()
    return LossOutput({given})
"""


def loss(given: str) -> str:
    return LOSS.replace("{given}", given)


@pytest.mark.parametrize(
    ("once", "twice", "cut", "wrong"),
    [
        (1.44, 1.44, 1.44, False),
        (392.0, 784.0, 392.0, True),
        (1.44, 1.44, 2.87, True),
        (1.44, 1.445, 1.439, False),  # round-off
        (-0.7, -0.7, -1.4, True),
        (0.0, 0.0, 0.0, False),
        (2e-9, -1e-9, 4e-9, False),  # a policy's loss on the rows that it sampled itself
        (math.nan, 1.0, 2.0, False),  # the step itself says so
    ],
)
def test_what_the_three_losses_say(once, twice, cut, wrong):
    assert (verdict(once, twice, cut, "float32") is not None) is wrong


def test_a_difference_of_large_numbers_says_nothing_in_low_precision():
    assert verdict(0.01, 0.03, 0.02, "low") is None
    assert verdict(0.01, 0.03, 0.02, "float32") is not None


def test_a_few_rows_are_tried_and_groups_stay_whole():
    rows = [{"n": n} for n in range(6)]
    assert sample(rows) == rows[:4] and halves(rows[:4]) == [rows[:2], rows[2:4]]
    of_groups = [{"group": n // 3} for n in range(9)]
    assert sample(of_groups) == of_groups[:6] and halves(of_groups[:6]) == [of_groups[:3], of_groups[3:6]]
    assert groups(of_groups[:4]) == [of_groups[:3], of_groups[3:4]]
    assert halves(of_groups[:3]) == [of_groups[:3]] * 2 and halves([]) == [[], []]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("loss=nll", r"4 rows of the first step give (\d+)[\d.]*, given twice .* it is a sum that nothing divides"),
        ("loss=nll / batch.counts['tokens']", r"it is divided by counts of the micro-batch in place of run\.totals"),
        ("loss=nll / batch.num_rows", r"divided by counts of the micro-batch"),
        ("loss=nll / run.totals['tokens'] + 0.1 * nll", r"it isn't a sum over rows divided by run\.totals"),
    ],
)
@pytest.mark.parametrize("rows", [8, 1])
def test_a_loss_that_is_not_divided_by_the_totals_is_refused_by_name(config, sft_with, given, told, rows):
    config.per_device_train_batch_size = rows
    config = sft_with(loss(given))(**vars(config))
    with pytest.raises(HookError, match=told.replace("4 rows", f"{min(rows, 4)} rows?")) as error:
        run_in(config, "run")
    assert str(error.value).startswith("ft_loss of the method ")
    assert "LossOutput(terms={count: sum over the rows})" in str(error.value)
    folder = RunFolder.open(f"{config.output_dir}/run")
    assert folder.manifest["status"] == "refused" and lines(folder.path) == []


@pytest.mark.parametrize(
    "given",
    [
        "loss=nll / run.totals['tokens']",
        "terms={'tokens': nll}",
        "loss=nll / batch.counts['tokens'], depends_on_split='to compare with another framework'",
    ],
)
def test_what_is_divided_or_says_why_not_trains(config, sft_with, given):
    folder = run_in(sft_with(loss(given))(**vars(config)), "run", max_steps=2)
    assert len(lines(folder)) == 2


def test_the_check_leaves_no_trace(config, sft_with):
    """With and without it, a run with noise in its loss logs the same numbers, bit for bit."""
    noisy = LOSS.replace(
        "nll = -", "run.state['n'] = run.state.get('n', 0) + 1\n    nll = -(1 + 0 * torch.rand(())) * "
    )
    checked = noisy.replace("{given}", "loss=nll / run.totals['tokens'], metrics={'n': total(run.state['n'])}")
    unchecked = checked.replace("metrics=", "depends_on_split='no check', metrics=")
    folders = [run_in(sft_with(each)(**vars(config)), f"run{i}") for i, each in enumerate((checked, unchecked))]
    assert_same(lines(folders[0]), lines(folders[1]), rel=0)


def test_a_run_that_goes_on_is_not_checked_again(config, sft_with, monkeypatch):
    from ft_host.training import loop

    config = sft_with(loss("loss=nll / run.totals['tokens']"))(**vars(config))
    folder = run_in(config, "run")
    monkeypatch.setattr(loop, "check_normalised", lambda *args: pytest.fail("checked again"))
    longer = dataclasses.replace(config, output_dir=str(folder), max_steps=7)
    assert train(longer, resume=folder).steps == 7


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_refuse_it_and_one_may_have_fewer_rows(config, sft_with, strategy):
    changes = {"per_device_train_batch_size": 1, "distributed_strategy": strategy, "progress": "quiet"}
    good = sft_with(loss("loss=nll / run.totals['tokens']"))(**{**vars(config), **changes})
    good.output_dir += "/good"
    train_apart(good, 2)
    assert len(lines(good.output_dir)) == 5
    bad = sft_with(loss("loss=nll"))(**{**vars(config), **changes})
    bad.output_dir += "/bad"
    with pytest.raises(AssertionError, match="HookError: ft_loss of .* it is a sum that nothing divides"):
        train_apart(bad, 2)
