"""The forest of segments, micro-batches, and metrics as sums: against values counted by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from ft_host.batch import IGNORE, Segment, by_row, count_targets, flat_batch
from ft_host.data.micro_batches import split_micro_batches
from ft_host.metrics import (
    Accumulator,
    add_counts,
    combine,
    correlation,
    effective_share,
    explained,
    maximum,
    mean,
    minimum,
    std,
    total,
    variance,
)


def test_a_root_and_its_children():
    batch = flat_batch(
        [
            Segment(input_ids=[5, 6, 7], labels=[IGNORE, IGNORE, IGNORE], row=0),
            Segment(input_ids=[8, 9], labels=[8, 9], row=0, parent=0),
            Segment(input_ids=[3], labels=[3], row=1, parent=0),
            Segment(input_ids=[1, 2], labels=[1, 2], row=2),
        ],
        num_rows=3,
        counts={"tokens": 4},
    )
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 3, 1, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert batch.parents == [-1, 0, 0, -1]
    # both children's first tokens are predicted by the last token of the prompt; the first of a root by nothing
    assert batch.sources.tolist() == [2, 3, 2, 6]
    assert batch.targets.tolist() == [8, 9, 3, 2]
    assert batch.rows.tolist() == [0, 0, 1, 2]


def test_tokens_count_as_if_nothing_were_shared_and_rows_end_in_their_last_segment():
    def one(*segments: Segment, pad_token_id: int | None = None):
        return flat_batch(list(segments), num_rows=3, pad_token_id=pad_token_id)

    tree = [
        Segment(input_ids=[5, 6, 7], labels=[IGNORE] * 3, row=0),
        Segment(input_ids=[8, 9], labels=[8, 9], row=0, parent=0),
        Segment(input_ids=[3], labels=[3], row=1, parent=0),
        Segment(input_ids=[4, 0, 0], labels=[4, 0, 0], row=2),
    ]
    batch = one(*tree)
    assert batch.num_tokens == (3 + 2) + (3 + 1) + 3
    assert batch.ends.tolist() == [4, 5, 8]
    assert one(*tree, pad_token_id=0).ends.tolist() == [4, 5, 6]
    deeper = [*tree, Segment(input_ids=[2, 2], labels=[2, 2], row=1, parent=2)]
    assert one(*deeper).num_tokens == (3 + 2) + (3 + 1 + 2) + 3
    assert one(*deeper).ends.tolist() == [4, 10, 8]
    assert flat_batch([], num_rows=0).num_tokens == 0 and flat_batch([], num_rows=0).ends.shape == (0,)


def test_a_batch_without_rows_has_a_token_and_no_target():
    batch = flat_batch([], num_rows=0, counts={"tokens": 0})
    assert batch.input_ids.shape == (1,) and batch.targets.shape == (0,) and batch.num_rows == 0


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([Segment(input_ids=[1], labels=[1], row=0, parent=0)], "earlier segment"),
        ([Segment(input_ids=[1, 2], labels=[1], row=0)], "2 input_ids and 1 labels"),
        ([Segment(input_ids=[], labels=[], row=0)], "0 input_ids"),
    ],
)
def test_segments_that_make_no_sense_are_refused(segments, said):
    with pytest.raises(ValueError, match=said):
        flat_batch(segments, num_rows=1)


def test_the_first_token_of_a_root_is_no_target():
    assert count_targets([4, 5, IGNORE, 6]) == 2


def _units(*lengths: int):
    return [[{"length": length, "name": index}] for index, length in enumerate(lengths)]


def test_micro_batches_by_rows_keep_the_order():
    assert [[row["name"] for row in batch] for batch in split_micro_batches(_units(5, 1, 4, 2, 3), 2, None)] == [
        [0, 1],
        [2, 3],
        [4],
    ]


def test_micro_batches_by_tokens_fit_the_budget_and_lose_no_row():
    batches = split_micro_batches(_units(5, 1, 4, 2, 3, 12), 1, 8)
    sizes = [sum(row["length"] for row in batch) for batch in batches]
    assert sorted(row["name"] for batch in batches for row in batch) == [0, 1, 2, 3, 4, 5]
    assert sizes == [12, 8, 7]  # one that is over the budget stands alone


def test_counts_add_up_by_name():
    assert add_counts([{"tokens": 3}, {"tokens": 4, "pairs": 1}, {}]) == {"tokens": 7, "pairs": 1}


def test_metrics_are_means_over_items_not_over_micro_batches():
    one, two = Accumulator(), Accumulator()
    one.add({"accuracy": mean(torch.tensor(3.0), 3), "low": minimum(2.0), "high": maximum(2.0), "n": total(1)})
    one.add({"accuracy": mean(torch.tensor(0.0), 1), "low": minimum(1.0), "high": maximum(7.0), "n": total(1)})
    two.add({"accuracy": mean(0.0, 4), "only_here": mean(1.0, 2)})
    assert combine([one.local(), two.local()]) == {"accuracy": 3 / 8, "low": 1.0, "high": 7.0, "n": 2, "only_here": 0.5}


def test_rows_that_nothing_is_learnt_from():
    """They may have no segments at all: the one token that is there then doesn't count."""
    batch = flat_batch([], num_rows=2)
    assert (batch.num_rows, batch.num_tokens, len(batch.targets), batch.empty) == (2, 0, 0, True)
    assert not flat_batch([Segment(input_ids=[5], labels=[IGNORE], row=0)], num_rows=1).empty


def test_batches_beside_it_move_with_it():
    """A teacher's of the same rows: other segments, the same targets."""
    batch = flat_batch([Segment(input_ids=[5, 6], labels=[IGNORE, 6], row=0)], num_rows=1)
    other = [Segment(input_ids=[5, 4, 6], labels=[IGNORE, IGNORE, 6], row=0)]
    batch.linked["teacher"] = flat_batch(other, num_rows=1, columns={"a": torch.ones(1)})
    moved = batch.to("meta")
    assert moved.targets.is_meta and moved.linked["teacher"].targets.is_meta
    assert moved.linked["teacher"].columns["a"].is_meta and not batch.linked["teacher"].targets.is_meta


def test_a_standard_deviation_from_sums():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    accumulator = Accumulator()
    for part in values.split(2):
        sums = (part.sum(), (part * part).sum(), len(part))
        accumulator.add({"spread": std(*sums), "squared": variance(*sums)})
    found = combine([accumulator.local()])
    assert math.isclose(found["spread"], float(values.std()), rel_tol=1e-6)
    assert math.isclose(found["squared"], float(values.var()), rel_tol=1e-6)


def test_the_effective_share_of_weights():
    """Half of them weigh nothing: half a sample each. It is one of the whole, not a mean of parts."""
    accumulator = Accumulator()
    for part in (torch.ones(2), torch.zeros(2), torch.tensor([3.0, 3.0]), torch.zeros(2)):
        accumulator.add({"share": effective_share(part.sum(), part.square().sum(), len(part))})
    assert math.isclose(combine([accumulator.local()])["share"], 8**2 / (8 * 20))
    nothing = Accumulator()
    nothing.add({"share": effective_share(0.0, 0.0, 4)})
    assert combine([nothing.local()]) == {}


def test_a_metric_without_items_is_absent_and_a_tensor_is_refused():
    accumulator = Accumulator()
    accumulator.add({"nothing": mean(0.0, 0)})
    assert combine([accumulator.local()]) == {}
    with pytest.raises(ValueError, match="expected a scalar"):
        accumulator.add({"vector": total(torch.ones(2))})
    with pytest.raises(ValueError, match="was a mean"):
        accumulator.add({"nothing": total(1.0)})


def test_correlation_and_explained_variance_are_of_all_ranks_together():
    x, y = [1.0, 2.0, 4.0, 7.0], [3.0, 1.0, 5.0, 6.0]
    ranks = []
    for part in (slice(0, 1), slice(1, 4)):
        a, b = x[part], y[part]
        accumulator = Accumulator()
        accumulator.add(
            {
                "together": correlation(
                    sum(a),
                    sum(b),
                    sum(v * v for v in a),
                    sum(v * v for v in b),
                    sum(v * w for v, w in zip(a, b, strict=True)),
                    len(a),
                ),
                "explained": explained(
                    sum((v - w) ** 2 for v, w in zip(a, b, strict=True)), sum(b), sum(v * v for v in b), len(b)
                ),
            }
        )
        ranks.append(accumulator.local())
    found = combine(ranks)
    assert found["together"] == pytest.approx(statistics.correlation(x, y))
    errors = sum((v - w) ** 2 for v, w in zip(x, y, strict=True))
    assert found["explained"] == pytest.approx(1 - errors / (3 * statistics.variance(y)))


def test_a_kind_that_is_not_declared_is_refused():
    segments = [Segment(input_ids=[1, 2], labels=[1, 2], row=0, kind="prompt")]
    with pytest.raises(ValueError, match="segment 0: kind 'prompt', expected one of flat_batch's kinds"):
        flat_batch(segments, num_rows=1)
    assert flat_batch(segments, num_rows=1, kinds=("prompt",)).kinds["prompt"].tolist() == [True]


def test_sizes_of_rows_and_what_stays_on_the_host():
    """Row 1 has nothing to predict; a root's first token nothing predicts it."""
    segments = [
        Segment(input_ids=[5, 6, 7], labels=[5, 6, 7], row=0),
        Segment(input_ids=[8, 9], labels=[IGNORE, IGNORE], row=1),
        Segment(input_ids=[4, 3], labels=[IGNORE, 3], row=2),
    ]
    batch = flat_batch(segments, num_rows=3)
    assert batch.row_sizes == [2, 0, 1]
    batch.host["units"] = [(1, 2)]
    batch.linked["other"] = flat_batch(segments[:1], num_rows=3)
    moved = batch.to("meta")  # whose values can't be asked for
    assert moved.row_sizes == [2, 0, 1] and moved.host == {"units": [(1, 2)]}
    assert moved.linked["other"].row_sizes == [2, 0, 0]
    assert [len(part) for part in by_row(torch.ones(3, device="meta"), moved)] == [2, 0, 1]


def test_metrics_of_numbers_and_tensors_keep_their_order_and_precision():
    accumulator = Accumulator()
    accumulator.add({"b": mean(torch.tensor(3.0), 4), "a": total(1e-9), "c": maximum(torch.tensor(2))})
    accumulator.add({"b": mean(5, torch.tensor(4)), "a": total(1.0), "c": maximum(7.5)})
    read = accumulator.local()
    assert read == {
        "a": ("total", [("sum", 1 + 1e-9)]),
        "b": ("mean", [("sum", 8.0), ("sum", 8.0)]),
        "c": ("maximum", [("max", 7.5)]),
    }
    assert Accumulator().local() == {}


def test_annotated_values_come_back_in_their_shapes():
    from ft_host.models.annotate import _read

    assert _read(torch.tensor([1.5, 2.0])) == [1.5, 2.0]
    assert _read([torch.tensor([1.5, 2.0]), torch.tensor([]), torch.tensor([3.0])]) == [[1.5, 2.0], [], [3.0]]
    assert _read([torch.tensor([[1, 2], [3, 4]]), torch.tensor(5)]) == [[[1, 2], [3, 4]], 5]
    assert _read([]) == []
