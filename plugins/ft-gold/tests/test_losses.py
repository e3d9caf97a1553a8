"""Merging, sorting and the divergence of parts against values worked out by hand, and all of it against TRL's function
on the same logits, with its gradient."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from ft_gold.config import GOLDConfig
from ft_gold.losses import (
    Aligned,
    Plain,
    Text,
    Weights,
    by_text,
    generalised_jsd,
    jsd_of_parts,
    scaled,
    shared_of,
    sorted_distance,
)
from ft_gold.tokens import Meeting, as_teacher_reads
from ft_gold.vocabulary import Vocabulary

from ft_host.testing import other_tokenizer, tiny_tokenizer

TEXTS = [
    "brown and small",
    "42 plus 30 is how many?",
    "a lazy dog\n",
]  # up to three of the student's and five of the teacher's
SHORT = ["over 42", "a quick task"]  # two of the teacher's, once: no probability is below 1e-8, where TRL cuts them off


def logs(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


# ---------------------------------------------------------------- by hand


def test_several_tokens_as_one():
    """Three tokens of which the last two are a unit: the text's own probability is the same by both strategies."""
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.7, 0.2, 0.1]], dtype=torch.float64)
    chosen = torch.tensor([0.5, 0.6, 0.1], dtype=torch.float64).log()  # tokens 0, 1, 2
    starts, sizes = torch.tensor([0, 1]), torch.tensor([1, 2])
    observed = scaled(probs.log(), chosen, starts, sizes, starts).exp()
    bayesian = scaled(probs.log(), chosen, starts, sizes, starts + sizes - 1).exp()
    torch.testing.assert_close(observed[1], probs[1] * 0.1)
    torch.testing.assert_close(bayesian[1], probs[2] * 0.6)
    assert float(observed[1, 1]) == pytest.approx(0.06) == float(bayesian[1, 2])
    for found in (observed, bayesian):
        torch.testing.assert_close(found[0], probs[0])


def test_units_with_tokens_between_them_that_are_in_none():
    probs = torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    chosen = probs.log()[:, 0]
    starts = torch.tensor([1, 3])
    found = scaled(probs.log(), chosen, starts, torch.tensor([1, 2]), starts).exp()
    torch.testing.assert_close(found, torch.stack([probs[1], probs[3] * probs[4, 0]]))


def test_that_the_text_of_a_unit_comes_is_one_event():
    """Tokens a, b, ab, abc, c; the unit is a and b. That ab comes has 0.5 · 0.6, and what ab and abc have; a keeps 0.5
    · 0.4."""
    probs = torch.tensor([[0.5, 0.15, 0.1, 0.05, 0.2], [0.1, 0.6, 0.1, 0.1, 0.1]], dtype=torch.float64)
    chosen = torch.tensor([0.5, 0.6], dtype=torch.float64).log()
    ranks = torch.tensor([0, 3, 1, 2, 4])  # a, ab, abc, b, c
    both = torch.tensor([0]), torch.tensor([2])
    found = by_text(probs.log(), chosen, *both, torch.tensor([0]), Text(ranks, torch.tensor([[1, 3]]))).exp()
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.15, 0.0, 0.0, 0.2, 0.45]], dtype=torch.float64))
    without = by_text(
        probs.log(), chosen, *both, torch.tensor([0]), Text(ranks, torch.tensor([[3, 3]]))
    ).exp()  # no such token
    torch.testing.assert_close(without, torch.tensor([[0.2, 0.15, 0.1, 0.05, 0.2, 0.3]], dtype=torch.float64))
    spans = torch.tensor([[0, 3], [3, 4]])  # a by itself: ab and abc begin with it; b
    alone = by_text(
        probs.log(), chosen, torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0, 1]), Text(ranks, spans)
    )
    torch.testing.assert_close(
        alone.exp(), torch.tensor([[0, 0.15, 0, 0, 0.2, 0.65], [0.1, 0, 0.1, 0.1, 0.1, 0.6]]).double()
    )
    assert torch.allclose(torch.cat([found, without, alone.exp()]).sum(-1), torch.ones(4, dtype=torch.float64))


def test_no_gradient_is_lost_or_made():
    """Of the distribution of a unit, by differences."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    text = Text(torch.tensor([0, 3, 1, 2, 4]), torch.tensor([[1, 3], [3, 3]]))
    direction = torch.randn(2, 6, dtype=torch.float64)

    def value(given):
        logps = given.log_softmax(-1)
        chosen = logps.gather(1, torch.tensor([[0], [1], [4]]))[:, 0]
        units = torch.tensor([0, 2]), torch.tensor([2, 1])
        return (by_text(logps, chosen, *units, torch.tensor([0, 4]), text).exp() * direction).sum()

    assert torch.autograd.gradcheck(value, logits)


def test_a_teacher_of_smaller_pieces_doesnt_break_the_students_up():
    """The student is sure of `ab`, a token of its own; the teacher of `a`, then `b`. They agree, and the gradient is
    nothing. TRL's strategies teach it to say `a` (observed) or `b` (bayesian) there."""
    student = torch.tensor([[0.0, 0.0, 20.0, 0.0]], dtype=torch.float64, requires_grad=True)  # a, b, ab, c
    teacher = torch.tensor([[20.0, 0, 0], [0, 20.0, 0]], dtype=torch.float64)  # a, b, c
    ids = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
    slopes = {}
    for strategy in ("text", "observed", "bayesian"):
        function = Aligned(
            units=torch.tensor([[1, 2]]),
            weights=torch.ones(1),
            targets=torch.tensor([2]),
            their_targets=torch.tensor([0, 1]),
            spans=torch.tensor([[1, 2, 1, 1]]),
            ranks=(torch.tensor([0, 2, 1, 3]), torch.tensor([0, 1, 2])),
            supervised=None,
            temperature=1.0,
            shared=shared_of(ids, (4, 3), torch.device("cpu"), strategy),
            loss="hybrid",
            strategy=strategy,
            parts=Weights(matched=1.0, unmatched=0.0, beta=0.5),
        )
        loss, values = function(student, teacher, slice(0, 1))
        (slope,) = torch.autograd.grad(loss, student)
        slopes[strategy] = slope[0].tolist()
        assert values["agree"].tolist() == [float(strategy == "text")]
        print(strategy, float(loss), slopes[strategy])
    assert max(map(abs, slopes["text"])) < 1e-7
    pushed = {name: min(range(4), key=lambda token: slopes[name][token]) for name in ("observed", "bayesian")}
    assert pushed == {"observed": 0, "bayesian": 1}


def test_sorted_distance():
    """|0.6 - 0.7| + |0.3 - 0.2| + |0.1 - 0.06| + |0 - 0.04|, whatever the order of either."""
    student = torch.tensor([[0.1, 0.6, 0.3]])
    teacher = torch.tensor([[0.04, 0.2, 0.7, 0.06]])
    assert float(sorted_distance(student, teacher)) == pytest.approx(0.1 + 0.1 + 0.04 + 0.04)
    assert float(sorted_distance(student, student[:, [2, 0, 1]])) == 0


def test_divergences():
    student, teacher = logs(0.5, 0.5), logs(0.8, 0.2)
    forward = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert float(generalised_jsd(student, teacher, 0.0)) == pytest.approx(forward)
    assert float(generalised_jsd(student, teacher, 1.0)) == pytest.approx(reverse)
    middle = [0.75 * 0.5 + 0.25 * 0.8, 0.75 * 0.5 + 0.25 * 0.2]
    jsd = 0.25 * sum(t * math.log(t / m) for t, m in zip((0.8, 0.2), middle, strict=True))
    jsd += 0.75 * sum(0.5 * math.log(0.5 / m) for m in middle)
    assert float(generalised_jsd(student, teacher, 0.25)) == pytest.approx(jsd)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_parts_are_least_where_they_are_equal(beta):
    """0.4 and 0.1 of what can happen: no other student has less. Without the difference of what both hold, a student of
    0.4 / e and 0.1 / e would be better at a beta of 1, with a loss below 0."""
    teacher = logs(0.4, 0.1)
    best = jsd_of_parts(teacher, teacher, beta)
    assert float(best) == pytest.approx(0, abs=1e-12)
    for factor in (0.5, 1 / math.e, 0.9, 1.2, 2.0):
        assert float(jsd_of_parts(teacher + math.log(factor), teacher, beta)) > 0
    shrunk = generalised_jsd(teacher - 1, teacher, 1.0)
    print("TRL's form at 1/e of the teacher", float(shrunk), "ours", float(jsd_of_parts(teacher - 1, teacher, 1.0)))
    assert float(shrunk) == pytest.approx(-0.5 / math.e)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_same_tokens_are_compared_plainly(beta):
    """The loss of ft-distill, over the rows that both embeddings have."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    loss, values = Plain(targets=torch.arange(5), beta=beta)(student, teacher, slice(0, 5))
    expected = generalised_jsd(student.log_softmax(-1), teacher[:, :9].log_softmax(-1), beta)
    assert float(loss) == pytest.approx(float(expected.sum()))
    torch.testing.assert_close(values["losses"], expected)
    torch.testing.assert_close(values["logps"], student.log_softmax(-1).diagonal())


# ---------------------------------------------------------------- beside TRL's


def fields(**given):
    usual = {
        "use_extended_uld": True,
        "uld_token_merge_strategy": "bayesian",
        "uld_use_hybrid_loss": True,
        "beta": 0.5,
        "uld_hybrid_matched_weight": None,
        "uld_hybrid_unmatched_weight": None,
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
    }
    return usual | given


class Case:
    """Completions behind prompts of three and five tokens, and random logits of both models."""

    def __init__(self, texts=tuple(TEXTS), **given):
        self.given = fields(**given)
        self.config = GOLDConfig(use_uld_loss=True, **self.given)
        self.met = Meeting(Vocabulary(tiny_tokenizer(), "model"), Vocabulary(other_tokenizer(), "teacher"))
        self.rows = []
        for text in texts:
            ids = self.met.ours.encode(text)
            row = {"completion_ids": ids, "sampled": [True] * len(ids)}
            self.rows.append(as_teacher_reads(row, self.met, self.config, chat=False))
        self.student = Side(self.rows, "", 3, 256, self.met.ours, texts)
        self.teacher = Side(self.rows, "teacher_", 5, 200, self.met.theirs, texts)

    def ours(self):
        config, weight = self.config, self.given["uld_crossentropy_weight"]
        units = [tuple(unit) for row in self.rows for unit in row["units"]]
        compared = [sum(b > 0 for _, b in row["units"]) for row in self.rows]
        hybrid = config.uld_use_hybrid_loss
        share = len(self.met.shared[0]) / 200
        parts = config.uld_hybrid_matched_weight, config.uld_hybrid_unmatched_weight
        matched, unmatched = parts if parts[0] is not None else (share, 1 - share)
        targets = self.student.targets()
        student, teacher = self.student.rows(), self.teacher.rows()
        function = Aligned(
            units=torch.tensor(units),
            weights=torch.tensor(
                [
                    1 / (count * len(self.rows))
                    for count, row in zip(compared, self.rows, strict=True)
                    for _ in row["units"]
                ]
            ),
            targets=targets,
            their_targets=self.teacher.targets(),
            supervised=torch.full((len(targets),), weight / len(targets)) if weight else None,
            temperature=config.student_temperature,
            spans=torch.tensor([span for row in self.rows for span in row["unit_spans"]]),
            ranks=(torch.zeros(0), torch.zeros(0)),
            shared=(
                shared_of(self.met.shared, (256, 200), torch.device("cpu"), config.merge_strategy) if hybrid else None
            ),
            parts=Weights(matched=matched, unmatched=unmatched, beta=config.beta),
            loss="hybrid" if hybrid else "uld",
            strategy=config.merge_strategy,
        )
        loss, values = function(
            student / config.student_temperature, teacher / config.teacher_temperature, slice(0, len(units))
        )
        (slope,) = torch.autograd.grad(loss, self.student.logits)
        return float(loss), slope, values

    def theirs(self, late: bool = False):
        """By TRL's ULDLoss. `late`: the logits are moved such that each is at the place of the token that it predicts,
        which is where "observed" reads them."""
        from trl.experimental.gold.gold_trainer import ULDLoss

        function = ULDLoss(SimpleNamespace(**self.given), self.met.ours.tokenizer, self.met.theirs.tokenizer)
        loss = function(
            *(side.logits.roll(1, 1) if late else side.logits for side in (self.student, self.teacher)),
            self.student.labels,
            self.teacher.labels,
            self.student.ids,
            self.teacher.ids,
            student_byte_offsets=self.student.offsets,
            teacher_byte_offsets=self.teacher.offsets,
        )
        (slope,) = torch.autograd.grad(loss, self.student.logits)
        return float(loss), slope, function


class Side:
    def __init__(self, rows, which: str, prompt: int, size: int, vocabulary, texts):
        completions = [row[f"{which}completion_ids"] for row in rows]
        width = prompt + max(map(len, completions)) + 1
        self.ids = torch.zeros(len(rows), width, dtype=torch.long)
        self.labels = torch.full_like(self.ids, -100)
        self.offsets = torch.zeros(len(rows), width, 2, dtype=torch.long)
        self.places, self.said = [], []
        for index, (row, ids, text) in enumerate(zip(rows, completions, texts, strict=True)):
            place = slice(prompt, prompt + len(ids))
            self.ids[index, place] = self.labels[index, place] = torch.tensor(ids)
            self.offsets[index, place, 1] = torch.tensor(vocabulary.ends_of(ids, text))
            kept = [each for each, own in enumerate(row[f"{which}sampled"]) if own]
            self.places += [(index, prompt + each - 1) for each in kept]
            self.said += [ids[each] for each in kept]
        generator = torch.Generator().manual_seed(size)
        self.logits = (0.7 * torch.randn(len(rows), width, size, generator=generator)).requires_grad_()

    def rows(self) -> torch.Tensor:
        """(N, V) of the state before each target."""
        return torch.stack([self.logits[index, place] for index, place in self.places])

    def targets(self) -> torch.Tensor:
        return torch.tensor(self.said)


CASES = {
    "hybrid": {},
    "forward-ish": {"beta": 0.1},
    "weights": {"uld_hybrid_matched_weight": 0.7, "uld_hybrid_unmatched_weight": 1.5},
    "sorted": {"uld_use_hybrid_loss": False},
    "temperatures": {"uld_student_temperature": 0.6, "uld_teacher_temperature": 1.4},
    "cross-entropy": {"uld_crossentropy_weight": 0.3, "uld_distillation_weight": 1.0, "uld_student_temperature": 0.6},
    "by position": {"use_extended_uld": False},
}


@pytest.mark.parametrize("name", CASES)
def test_beside_trl(name):
    case = Case(**CASES[name])
    assert any(max(unit) > 1 for row in case.rows for unit in row["units"]) == (name != "by position")
    loss, slope, values = case.ours()
    expected, their_slope, function = case.theirs()
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(slope, their_slope, rtol=1e-4, atol=2e-7)  # where sorted values all but tie
    if case.config.uld_use_hybrid_loss:
        last = sum(b > 0 for _, b in case.rows[-1]["units"])  # TRL keeps the parts of the last row alone
        # 1e-4: of five tokens as one, TRL cuts what is below 1e-8 off
        assert float(values["matched"][-last:].mean()) == pytest.approx(float(function.last_matched_loss), rel=1e-4)
        assert float(values["unmatched"][-last:].mean()) == pytest.approx(float(function.last_unmatched_loss), rel=1e-5)


def test_observed_reads_the_logits_of_its_own_tokens():
    """TRL's default reads those of the token after: what is compared, and where the gradient goes, is one place late.
    On logits that are moved by one its loss is ours."""
    case = Case(uld_token_merge_strategy="observed")
    loss, slope, _ = case.ours()
    late, late_slope, _ = case.theirs()
    moved, moved_slope, _ = case.theirs(late=True)
    assert loss == pytest.approx(moved, rel=1e-5)
    torch.testing.assert_close(slope, moved_slope, rtol=1e-4, atol=2e-7)
    reached = [each.abs().sum(-1)[0].nonzero()[:, 0].tolist() for each in (slope, late_slope)]
    print("ours", loss, "TRL", late, "answer tokens from 3 on; gradient at", reached[0][0], "and", reached[1][0])
    assert late != pytest.approx(loss, rel=1e-3) and (reached[0][0], reached[1][0]) == (2, 3)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_parts_at_the_ends_of_beta(beta):
    """TRL leaves out what the two hold together: ours is its loss and that difference, as `jsd_of_parts` says why."""
    case = Case(SHORT, beta=beta, uld_hybrid_matched_weight=1.0, uld_hybrid_unmatched_weight=0.0)
    loss, _, _ = case.ours()
    theirs, _, _ = case.theirs()
    ids = case.met.shared
    units = torch.tensor([unit for row in case.rows for unit in row["units"]])
    held = []
    for side, which, column in ((case.student, ids[0], 0), (case.teacher, ids[1], 1)):
        logps = side.rows().detach().log_softmax(-1)
        chosen = logps.gather(1, side.targets()[:, None])[:, 0]
        starts = units.cumsum(0)[:, column] - units[:, column]
        last = starts + units[:, column] - 1
        held.append(scaled(logps, chosen, starts, units[:, column], last)[:, which].exp().sum(-1))
    more = (held[0] - held[1]) if beta == 0 else (held[1] - held[0])
    by_row = torch.stack([each.mean() for each in more.split([len(row["units"]) for row in case.rows])]).mean()
    print("ours", loss, "TRL", theirs)
    assert loss == pytest.approx(theirs + float(by_row), rel=1e-5) and abs(float(by_row)) > 1e-3


def test_unlikely_tokens_keep_their_gradient():
    """TRL takes the logarithm of probabilities of 1e-8 at least: below, what a sure teacher says of it has no
    gradient."""
    case = Case(beta=0.0, uld_hybrid_matched_weight=1.0, uld_hybrid_unmatched_weight=0.0)
    token = int(case.met.shared[0][50])
    other = int(case.met.shared[1][50])
    with torch.no_grad():
        case.student.logits[0, 2, token] = -30.0
        case.teacher.logits[0, 4, other] = 30.0
    _, slope, _ = case.ours()
    _, their_slope, _ = case.theirs()
    print("ours", float(slope[0, 2, token]), "TRL", float(their_slope[0, 2, token]))
    assert float(slope[0, 2, token]) < -1e-2 and abs(float(their_slope[0, 2, token])) < 1e-6
