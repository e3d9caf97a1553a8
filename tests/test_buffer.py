"""The row buffer: which rows of a rollout are in which optimizer step, on which rank, and after a resume.

Prompts are numbered rows of a file; what `ft_rollout` makes of prompt n is said by the test. A row is known by its
prompt and its place among the completions: (n, place).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from ft_host import data, hookimpl
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.data.micro_batches import size_of, split_micro_batches
from ft_host.data.stream import TrainStream
from ft_host.errors import FtHostError, HookError
from ft_host.hooks import NAME, generation, loss
from ft_host.metrics import mean
from ft_host.rollouts.buffer import Buffer, place_of, reshard_rows, units_of
from ft_host.rollouts.drawing import Drawing
from ft_host.rollouts.rollout import Rollout
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.testing.ranks import as_ranks
from ft_host.testing.rows import write_rows


@dataclass(kw_only=True)
class Config(RolloutConfig):
    """Without a plan of its own: the tests hand one to the buffer."""


class Method:
    """`size` completions of each prompt; none of prompts that `signal` says nothing of."""

    def __init__(self, size: int = 2, signal=lambda number: True):
        self.size, self.signal = size, signal
        self.rollouts: list[tuple[int, list[int]]] = []  # number of the rollout, prompts that it was called with
        self.annotated: list[int] = []  # rows at a time

    @hookimpl
    def ft_rollout(self, rows, rollout):
        self.rollouts.append((rollout, [row["number"] for row in rows]))
        kept = [row for row in rows if self.signal(row["number"])]
        made = [
            {"group": row["group"], "number": row["number"], "place": place, "length": 3, "completion_ids": [1, 2]}
            for row in kept
            for place in range(self.size)
        ]
        samples = [{"prompt": str(row["number"]), "completion": str(row["place"])} for row in made]
        return Rollout(rows=made, metrics={"reward": mean(len(kept), len(rows))}, samples=samples)

    @hookimpl
    def ft_annotate(self, rows, run):
        self.annotated.append(len(rows))
        return [row | {"advantage": row["number"] / 10} for row in rows]


@dataclass(kw_only=True)
class Rank(Run):
    """A rank of a run that has no model."""

    telling: Any = None

    def gather(self, value):
        return self.telling(value)


@pytest.fixture
def make(tmp_path):
    """A buffer over `prompts` numbered prompts, and the folder and method that it works for."""

    def made(plan, method=None, prompts=40, rank=0, world_size=1, gather=None, at=(None, None), **fields):
        file = tmp_path / f"prompts-{prompts}.jsonl"
        if not file.exists():
            write_rows(file, [{"number": number} for number in range(prompts)])
        given = {
            "model": "m",
            "dataset": str(file),
            "progress": "quiet",
            "train_sampling_strategy": "sequential",
            "logged_completions": 3,
            "num_train_epochs": 1.0,
            "max_rollout_draws": 2,
        }
        config = Config(**(given | fields))
        plugins = pluggy.PluginManager(NAME)
        plugins.add_hookspecs(generation)
        plugins.add_hookspecs(loss)
        method = method or Method(plan.generations)
        plugins.register(method)
        accelerator = SimpleNamespace(process_index=rank, num_processes=world_size, is_main_process=rank == 0)
        (tmp_path / "run").mkdir(exist_ok=True)
        run = Rank(
            config=config,
            folder=RunFolder(tmp_path / "run"),
            tokenizer=None,
            plugins=plugins,
            accelerator=accelerator,
            policy=None,
            model=None,
            rollouts=plan,
            telling=gather or (lambda value: [value]),
        )
        single = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        position, saved = at
        stream = TrainStream(
            data.open_train(config),
            lambda row: row | {"length": 1},
            single,
            position=place_of(position, saved)["position"],
        )
        began: list[list[int]] = []
        drawing = Drawing(
            run=run,
            prompts=stream,
            plan=plan,
            rollout_run=lambda number: NumberOnly(number),
            before=lambda rows: began.append([r["number"] for r in rows]),
            complete=run.rollout,
        )
        buffer = Buffer(run, plan, drawing, position, saved)
        buffer.began, buffer.method = began, method
        return buffer

    return made


class NumberOnly(int):
    """What the tests' `ft_rollout` needs of a RolloutRun: the number of the rollout. It took no time."""

    seconds: dict = {}
    tokens = 0


def names(step) -> list[tuple[int, int]]:
    """The rows of a step."""
    return [(row["number"], row["place"]) for unit in step.units for row in unit]


def taken(buffer, count: int | None = None) -> list[list[tuple[int, int]]]:
    """The rows of the next `count` steps, or of all."""
    found = []
    for step in buffer:
        found.append(names(step))
        if len(found) == count:
            break
    return found


def both(*numbers: int, places=(0, 1)) -> list[tuple[int, int]]:
    return [(number, place) for number in numbers for place in places]


# ---------------------------------------------------------------- steps of a rollout


def test_a_rollout_of_one_step(make):
    buffer = make(RolloutPlan(prompts=2, generations=2, steps=1, passes=1))
    assert taken(buffer, 3) == [both(0, 1), both(2, 3), both(4, 5)]
    assert buffer.method.rollouts == [(0, [0, 1]), (1, [2, 3]), (2, [4, 5])]
    assert buffer.began == [[0, 1], [2, 3], [4, 5]]


def test_steps_and_passes(make):
    buffer = make(RolloutPlan(prompts=4, generations=2, steps=2, passes=2))
    assert taken(buffer, 6) == [both(0, 1), both(2, 3), both(0, 1), both(2, 3), both(4, 5), both(6, 7)]
    assert buffer.method.annotated == [8, 8]  # once a rollout


def test_a_step_may_end_in_the_middle_of_a_group(make):
    buffer = make(RolloutPlan(prompts=3, generations=4, steps=2, passes=1))
    four = (0, 1, 2, 3)
    assert taken(buffer, 2) == [
        both(0, places=four) + both(1, places=(0, 1)),
        both(1, places=(2, 3)) + both(2, places=four),
    ]


def test_shuffled_passes_go_through_all_rows_once_each_in_an_order_of_their_own(make):
    plan = RolloutPlan(prompts=12, generations=1, steps=3, passes=2, shuffled=True)
    steps = taken(make(plan), 12)
    assert [len(step) for step in steps] == [4] * 12
    passes = [sum(steps[first : first + 3], []) for first in range(0, 12, 3)]
    for index, rows in enumerate(passes):
        numbers = range(12) if index < 2 else range(12, 24)
        assert sorted(rows) == both(*numbers, places=(0,)) and rows != sorted(rows)
    assert passes[0] != passes[1]
    places = [[number % 12 for number, _ in rows] for rows in passes]
    assert places[0] != places[2], "each rollout is shuffled like the one before"
    assert steps == taken(make(plan), 12) != taken(make(plan, seed=7), 12)


@pytest.mark.parametrize(
    "plan",
    [
        RolloutPlan(prompts=4, generations=2, steps=2, passes=2),
        RolloutPlan(prompts=3, generations=4, steps=2, passes=1),
        RolloutPlan(prompts=9, generations=1, steps=3, passes=2, shuffled=True),
    ],
)
def test_a_step_has_the_same_rows_whatever_the_number_of_ranks(make, plan):
    alone = taken(make(plan, prompts=10))

    def work(rank, gather):
        return taken(make(plan, prompts=10, rank=rank, world_size=2, gather=gather))

    make(plan, prompts=10)  # writes the file
    ranks = as_ranks(2, work)
    assert len(alone) == len(ranks[0]) == len(ranks[1]) > 3
    for step, *shares in zip(alone, *ranks, strict=True):
        assert sorted(step) == sorted(sum(shares, []))
    groups = [{number for step in rank for number, _ in step} for rank in ranks]
    assert groups[0] and groups[1] and not groups[0] & groups[1], "completions of a prompt are of one rank"


class Uneven(Method):
    """Leaves out some of the completions of a prompt."""

    @hookimpl
    def ft_rollout(self, rows, rollout):
        found = super().ft_rollout(rows, rollout)
        kept = [row["place"] <= row["number"] % 3 for row in found.rows]
        pairs = [pair for pair, keep in zip(zip(found.rows, found.samples, strict=True), kept, strict=True) if keep]
        return Rollout(rows=[row for row, _ in pairs], samples=[sample for _, sample in pairs])


def test_groups_of_differing_size_and_samples_are_in_the_order_of_the_prompts(make):
    plan = RolloutPlan(prompts=4, generations=3, steps=2, passes=1)
    buffer = make(plan, Uneven(3), logged_completions=5)
    # one completion of prompts 0 and 3, two of 1, three of 2; groups are whole within a step
    alone = [[(0, 0), (1, 0), (1, 1)], [(2, 0), (2, 1), (2, 2), (3, 0)]]
    assert taken(buffer, 2) == alone
    samples = buffer.run.folder.read("samples.jsonl")
    assert [each["prompt"] for each in samples] == ["0", "1", "1", "2", "2"]
    (buffer.run.folder.path / "samples.jsonl").unlink()

    def work(rank, gather):
        return taken(make(plan, Uneven(3), rank=rank, world_size=2, gather=gather, logged_completions=5), 2)

    ranks = as_ranks(2, work)
    assert [sorted(sum(shares, [])) for shares in zip(*ranks, strict=True)] == alone
    assert buffer.run.folder.read("samples.jsonl") == samples
    # where a step may end within a group, rows are what counts: seven in eight steps
    plan = RolloutPlan(prompts=4, generations=3, steps=8, passes=1)
    assert taken(make(plan, Uneven(3)), 8) == [[row] for row in sum(alone, [])] + [[]]


def test_the_first_step_of_a_rollout_tells_of_it(make):
    buffer = make(RolloutPlan(prompts=4, generations=2, steps=2, passes=1), Method(2, lambda number: number != 3))
    first, second, third = (next(buffer) for _ in range(3))
    assert first.metrics["reward"] == 4 / 5 and first.metrics["perf/rollout_time"] > 0  # five prompts, one without
    assert second.metrics == {} and third.metrics["reward"] == 1
    assert [step.rows_consumed for step in (first, second, third)] == [5, 5, 9]
    samples = buffer.run.folder.read("samples.jsonl")
    assert [(each["rollout"], each["group"], each["prompt"], each["completion"]) for each in samples] == [
        (0, 0, "0", "0"),
        (0, 0, "0", "1"),
        (0, 1, "1", "0"),
        (1, 0, "5", "0"),
        (1, 0, "5", "1"),
        (1, 1, "6", "0"),
    ]
    assert samples[2] | {"advantage": 0.1, "tokens": 2, "kind": "rollout", "step": 1} == samples[2]


def test_samples_are_none_or_one_a_row(make):
    class Odd(Method):
        @hookimpl
        def ft_rollout(self, rows, rollout):
            found = super().ft_rollout(rows, rollout)
            return dataclasses.replace(found, samples=found.samples[:1])

    with pytest.raises(HookError, match="ft_rollout of .* gave 1 samples for 4 rows"):
        next(make(RolloutPlan(prompts=2, generations=2, steps=1, passes=1), Odd()))


# ---------------------------------------------------------------- where the prompts end


def test_the_last_rollout_is_cut_into_as_many_smaller_steps(make):
    plan = RolloutPlan(prompts=4, generations=2, steps=2, passes=1)
    buffer = make(plan, prompts=6)
    assert buffer.planned_steps() == 4
    assert taken(buffer) == [both(0, 1), both(2, 3), both(4), both(5)]
    buffer = make(plan, prompts=7)
    assert taken(buffer)[2:] == [both(4, 5), both(6)]
    assert taken(make(plan, prompts=5))[2:] == [both(4), []]
    middle = make(RolloutPlan(prompts=3, generations=4, steps=2, passes=1), prompts=4)  # steps that cut groups
    assert taken(middle)[2:] == [both(3, places=(0, 1)), both(3, places=(2, 3))]


def test_a_rollout_may_be_of_two_epochs(make):
    buffer = make(RolloutPlan(prompts=4, generations=1, steps=1, passes=1), prompts=5, num_train_epochs=2.0)
    assert buffer.planned_steps() == 3
    steps = list(buffer)
    assert [[number for number, _ in names(step)] for step in steps] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]
    assert [step.epoch for step in steps] == [0.8, 1.6, 2.0]


# ---------------------------------------------------------------- groups that are left out


def test_groups_that_are_left_out_are_replaced(make):
    method = Method(2, lambda number: number % 2 == 0)
    buffer = make(RolloutPlan(prompts=2, generations=2, steps=2, passes=1), method, max_rollout_draws=5)
    steps = [next(buffer) for _ in range(4)]
    assert [names(step) for step in steps] == [both(0), both(2), both(4), both(6)]
    assert method.rollouts == [(0, [0, 1]), (0, [2]), (1, [3, 4]), (1, [5]), (1, [6])]
    assert buffer.began == [[0, 1], [3, 4]], "once a rollout"
    assert [step.metrics.get("rollout/prompts_drawn") for step in steps] == [3, None, 4, None]
    assert [step.metrics.get("reward") for step in steps] == [2 / 3, None, 2 / 4, None]


def test_after_the_last_draw_it_goes_on_with_what_there_is(make):
    buffer = make(
        RolloutPlan(prompts=4, generations=2, steps=2, passes=1),
        Method(2, lambda n: n in (0, 1, 2, 8, 9)),
        max_rollout_draws=1,
    )
    assert taken(buffer, 2) == [both(0, 1), both(2)]
    with pytest.raises(FtHostError, match="rollout 2: none of 4 prompts"):
        next(buffer)
    (said,) = [event["text"] for event in buffer.run.folder.read("events.jsonl")]
    assert said == "rollout 1: 3 of 4 groups had a signal after 1 draws (max_rollout_draws)"


def test_nothing_to_learn_from_ends_the_run_and_the_prompts_stay(make):
    plan = RolloutPlan(prompts=2, generations=2, steps=1, passes=1)
    buffer = make(plan, Method(2, lambda number: number < 4))
    first, second = next(buffer), next(buffer)
    assert names(first) + names(second) == both(0, 1, 2, 3)
    with pytest.raises(FtHostError) as caught:
        next(buffer)
    assert str(caught.value) == (
        "rollout 3: none of 4 prompts had a signal to learn from in 2 draws (max_rollout_draws): the method left out"
        " every group, at a mean reward of 0"
    )
    again = make(plan, Method(2), at=(second.position, through_json(buffer.state())))
    assert taken(again, 2) == [both(4, 5), both(6, 7)]
    assert again.method.rollouts[0] == (2, [4, 5])


# ---------------------------------------------------------------- checkpoints


def through_json(value):
    return json.loads(json.dumps(value))


PLANS = [
    RolloutPlan(prompts=4, generations=2, steps=2, passes=2),
    RolloutPlan(prompts=3, generations=4, steps=2, passes=1),
    RolloutPlan(prompts=4, generations=1, steps=2, passes=2, shuffled=True),
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("done", range(1, 6))
def test_it_goes_on_after_any_step(make, plan, done):
    buffer = make(plan)
    for _ in range(done):
        step = next(buffer)
    at = (step.position, through_json(buffer.state()))
    again = make(plan, at=at)
    assert taken(again, 6) == taken(buffer, 6)
    of = {step // plan.updates for step in range(done, done + 6)}  # the rollouts of those six steps
    assert [number for number, _ in again.method.rollouts] == sorted(of - {(done - 1) // plan.updates})


def test_a_rollout_that_no_step_was_done_of_is_not_made_again(make):
    """The run was stopped after the rollout, before its first step: the checkpoint's position is of the step before."""
    plan = RolloutPlan(prompts=4, generations=2, steps=2, passes=1)
    buffer = make(plan)
    last = [next(buffer) for _ in range(2)][-1]
    waiting = next(buffer)
    again = make(plan, at=(last.position, through_json(buffer.state())))
    found = next(again)
    assert names(found) == names(waiting) == both(4, 5)
    assert found.metrics == waiting.metrics and found.metrics["reward"] == 1
    assert again.method.rollouts == []
    assert taken(again, 2) == [both(6, 7), both(8, 9)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (2, 2)])
def test_it_goes_on_with_another_number_of_ranks(make, plan, before, after):
    whole = taken(make(plan), 5)

    def begin(rank, gather):
        buffer = make(plan, rank=rank, world_size=before, gather=gather)
        step = next(buffer)
        return step.position, through_json(buffer.state())

    saved = as_ranks(before, begin)
    (position,) = {json.dumps(position) for position, _ in saved}

    def go_on(rank, gather):
        mine = reshard_rows([state for _, state in saved], rank, after)
        return taken(make(plan, rank=rank, world_size=after, gather=gather, at=(json.loads(position), mine)), 4)

    ranks = as_ranks(after, go_on)
    for step, *shares in zip(whole[1:], *ranks, strict=True):
        assert sorted(step) == sorted(sum(shares, []))


def test_groups_stay_whole_where_they_are_dealt():
    def state(*groups):
        return {"number": 3, "rows": [{"group": group, "place": place} for group in groups for place in range(2)]}

    assert reshard_rows([], 0, 2) is None
    saved = [state(0, 2, 4), state(1, 3)]
    assert reshard_rows(saved, 1, 2) is saved[1]
    assert reshard_rows(saved, 0, 1)["rows"] == state(0, 1, 2, 3, 4)["rows"]
    assert [reshard_rows(saved, rank, 3)["rows"] for rank in range(3)] == [
        state(0, 3)["rows"],
        state(1, 4)["rows"],
        state(2)["rows"],
    ]
    assert reshard_rows(saved, 2, 3)["number"] == 3


# ---------------------------------------------------------------- units and the budget of tokens


def row(group: int, length: int, shared: int = 3) -> dict[str, int]:
    return {"group": group, "length": length, "shared": shared}


def test_rows_of_a_group_are_one_unit_as_far_as_the_budget_goes():
    rows = [row(0, 5), row(0, 6), row(0, 4), row(1, 12), row(1, 5), row(1, 5), row(2, 4)]
    units = units_of(rows, 10)
    assert units == [rows[:3], rows[3:4], rows[4:6], rows[6:]]
    # 5 + (6 - 3) + (4 - 3); 12; 5 + (5 - 3); 4
    assert [size_of(unit) for unit in units] == [9, 12, 7, 4]
    # longest first, where they fit first: 12 + 7, then 9 + 4
    assert split_micro_batches(units, 1, 19) == [rows[3:4] + rows[4:6], rows[:3] + rows[6:]]
    assert units_of([], 10) == []
    assert size_of([row(0, 5), row(1, 5)]) == 10 and size_of([{"length": 5}, {"length": 6}]) == 11


def test_a_budget_makes_units_of_a_step(make):
    plan = RolloutPlan(prompts=2, generations=4, steps=1, passes=1)

    class Shared(Method):
        @hookimpl
        def ft_annotate(self, rows, run):
            return [row | {"shared": 2} for row in rows]

    plain = next(make(plan, Shared(4)))
    assert [len(unit) for unit in plain.units] == [1] * 8
    # rows of 3 tokens, 2 of them the prompt's: 3 + 1 + 1 in 5 tokens
    budget = next(make(plan, Shared(4), max_tokens_per_micro_batch=5))
    assert [len(unit) for unit in budget.units] == [3, 1, 3, 1]
    assert names(budget) == names(plain)


# ---------------------------------------------------------------- groups


def events(buffer) -> list[str]:
    return [event["text"] for event in buffer.run.folder.read("events.jsonl")]


def cut(buffer, step) -> list[list[tuple[int, int]]]:
    """The micro-batches of a step, as the loop splits it."""
    config = buffer.run.config
    micro, budget = config.per_device_train_batch_size, config.max_tokens_per_micro_batch
    batches = split_micro_batches(step.units, micro, budget, step.whole_units)
    return [[(row["number"], row["place"]) for row in rows] for rows in batches]


def test_whole_groups_stand_in_one_micro_batch(make):
    """Of 5 rows a micro-batch one group of 3 has room; with a budget of tokens groups stay whole too."""
    plan = RolloutPlan(prompts=4, generations=3, steps=2, passes=1, whole_groups=True)
    three = (0, 1, 2)
    buffer = make(plan, per_device_train_batch_size=5)
    assert cut(buffer, next(buffer)) == [both(0, places=three), both(1, places=three)]
    buffer = make(plan, per_device_train_batch_size=6)
    assert cut(buffer, next(buffer)) == [both(0, 1, places=three)]

    class Shared(Method):
        @hookimpl
        def ft_annotate(self, rows, run):
            return [row | {"shared": 2} for row in rows]

    buffer = make(plan, Shared(3), max_tokens_per_micro_batch=6)  # a group of 3 + 1 + 1 tokens, and another
    assert sorted(map(len, cut(buffer, next(buffer)))) == [3, 3]
    assert events(buffer) == []


def test_whole_groups_are_in_one_optimizer_step(make):
    """Three groups in two steps: by rows they would be cut in the middle of the second."""
    plan = RolloutPlan(prompts=3, generations=4, steps=2, passes=1, whole_groups=True)
    four = (0, 1, 2, 3)
    assert taken(make(plan), 2) == [both(0, 1, places=four), both(2, places=four)]
    assert plan.step_sizes == [8, 4]


@pytest.mark.parametrize(
    "fields,why",
    [({"per_device_train_batch_size": 3}, "per_device_train_batch_size 3"), ({"max_tokens_per_micro_batch": 5}, "5")],
)
def test_groups_that_are_cut_are_said_once(make, fields, why):
    class Apart(Method):
        @hookimpl
        def ft_annotate(self, rows, run):
            return [row | {"shared": 0} for row in rows]

    plan = RolloutPlan(prompts=4, generations=2, steps=2, passes=2)
    buffer = make(plan, Apart(2), **fields)
    taken(buffer, 6)
    [said] = events(buffer)
    assert said.startswith("the 2 rows of a prompt don't all stand in one micro-batch") and why in said
    buffer.run.folder.path.joinpath("events.jsonl").unlink()
    quiet = make(dataclasses.replace(plan, whole_groups=False), Apart(2), **fields)
    taken(quiet, 2)
    assert events(quiet) == []


def test_groups_that_fit_are_not_spoken_of(make):
    buffer = make(RolloutPlan(prompts=4, generations=2, steps=2, passes=1), per_device_train_batch_size=2)
    taken(buffer, 2)
    assert events(buffer) == []


def test_a_plan_of_pairs_is_cut_by_its_rows(make):
    """Two completions a prompt, and one row: eight rows in three steps."""
    plan = RolloutPlan(prompts=8, generations=2, rows=8, steps=3, passes=1)
    assert taken(make(plan, Method(1)), 3) == [
        both(0, 1, 2, places=(0,)),
        both(3, 4, 5, places=(0,)),
        both(6, 7, places=(0,)),
    ]
    assert plan.step_sizes == [3, 3, 2]
