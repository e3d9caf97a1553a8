"""ft-host and TRL learning from a teacher, process by process in turn, and medians of their ratios.

    python benchmarks/distill.py                      all methods, both of TRL's settings, three pairs of runs each
    python benchmarks/distill.py --method gkd --against plain --repeats 5
    python benchmarks/distill.py --wait 60 --json figures.json

Needs Linux, and TRL beside ft-host, ft-distill and ft-sdft. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import work
from turns import (
    OTHERS,
    SETTINGS,
    Figures,
    Pair,
    check_same_work,
    common,
    noise,
    ratios,
    run_side,
    summary,
    table,
    undisturbed,
    wait_for_quiet,
)

Fields = dict[str, Any]

MEASURED = 3  # steps of a run
TOLERANCE = 0.05  # of completion tokens between two sides that sample, each its own
UNIT = "completion tokens/s"
UNITS = {
    UNIT: "",
    "s/step": "s",
    "generation": "s/step",
    "training": "s/step",
    "tokens/CPU second": "",
    "peak over start": "MiB",
    "peak": "MiB",
    "first step": "s",
    OTHERS: "",
}
GOALS = {"plain": {UNIT: 2.0, "peak over start": 1 / 3}}

# One turn of each: what TRL's GKD can read. The line break keeps the prompt's last token its own.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
# High enough that the losses of the second step already tell whether both sides learned the same from the first.
USUAL = {"learning_rate": 1e-4, "lr_scheduler_type": "linear", "warmup_steps": 0}


@dataclass(frozen=True)
class Comparison:
    """A method, what both sides learn from, and what each side is told."""

    method: str
    rows: str  # a key of ROWS
    student: str  # keys of work.MODELS
    teacher: str | None
    batch: int  # rows of a micro-batch, on both sides
    steps: int  # micro-batches of an optimizer step
    skip: int = 1  # steps that aren't counted
    apart: bool = False  # student and teacher have tokenizers of their own
    limit: float = 1e-4  # of the relative difference of losses
    both: Fields = field(default_factory=dict)
    ours: Fields = field(default_factory=dict)
    trl: Fields = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        return self.rows == "prompts"


GKD = {"lmbda": 0.0, "beta": 0.5, "temperature": 1.0}
# in the first two steps ft-host looks whether its sampler has the policy's weights
SAMPLED: dict[str, Any] = {"rows": "prompts", "batch": 4, "steps": 2, "skip": 2, "trl": {"shuffle_dataset": False}}
# Where TRL is right: its other way to merge tokens reads logits one place late, and ends have no partner.
GOLD = {
    "lmbda": 0.0,
    "beta": 0.5,
    "uld_token_merge_strategy": "bayesian",
    "uld_use_hybrid_loss": True,
    "uld_skip_student_eos": True,
    "uld_skip_teacher_eos": True,
}
IN_ORDER = {"train_sampling_strategy": "sequential"}
COMPARISONS = {
    "gkd": Comparison("gkd", "chats", "student-32k", "teacher-32k", batch=4, steps=1, both=GKD),
    "gkd-128k": Comparison("gkd", "chats", "student-128k", "teacher-128k", batch=2, steps=1, both=GKD),
    "gold": Comparison(
        "gold",
        "chats",
        "student-32k",
        "teacher-32k",
        batch=4,
        steps=1,
        both=GOLD,
        trl={"use_uld_loss": True},
        apart=True,
        limit=1e-3,  # TRL cuts probabilities off at 1e-8, and of several tokens merged many are below
    ),
    "distill": Comparison(
        "distill",
        student="student-32k",
        teacher="teacher-32k",
        both={"max_completion_length": 128},
        ours=IN_ORDER,
        **SAMPLED,
    ),
    # of a model that is sure of nothing, rounding changes which tokens are the likeliest
    "sdft": Comparison(
        "sdft",
        student="student-32k",
        teacher=None,
        both={"max_completion_length": 128, "num_generations": 1},
        ours=IN_ORDER,
        limit=1e-3,
        **SAMPLED,
    ),
}

# ---------------------------------------------------------------- rows and models


ROWS = {"chats": work.made_chats, "prompts": work.made_demonstrations}


def make_models(at: Path, comparison: Comparison, tokenizers: dict[str, Any]) -> dict[str, str]:
    """Folders of student and teacher. The teacher is surer than random weights are, so that there is something to
    learn."""
    from transformers import AutoModelForCausalLM

    kind = "-apart" if comparison.apart else ""
    student = at / f"{comparison.student}{kind}"
    found = {"model": str(student)}
    if not student.exists():
        work.make_model(student, comparison.student, tokenizers[f"student{kind}"])
    if comparison.teacher is not None:
        place = at / f"{comparison.teacher}{kind}"
        found["teacher"] = str(place)
        if not place.exists():
            work.make_model(place, comparison.teacher, tokenizers[f"teacher{kind}"], seed=1)
            model = AutoModelForCausalLM.from_pretrained(place)
            model.model.norm.weight.data.mul_(4)
            model.save_pretrained(place)
    return found


def make_tokenizers() -> dict[str, Any]:
    """One for both, and two that cut words in different places; of 32k tokens each they share about half."""
    texts = work.made_prompts(2000, 95)  # the words are the same in all rows
    same = work.make_tokenizer(texts)
    found = {
        "student": same,
        "teacher": same,
        "student-apart": work.filled(work.make_tokenizer(texts), 32_768, "mine"),
        "teacher-apart": work.filled(work.make_tokenizer(texts, 1500), 32_768, "other"),
    }
    for each in found.values():
        each.chat_template = TEMPLATE
    return found


def lengths_of(rows: list[work.Row], tokenizer: Any) -> list[int]:
    whole = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    return [len(ids) for ids in tokenizer(whole)["input_ids"]]


# ---------------------------------------------------------------- a pair


def spec_of(side: str, comparison: Comparison, models: dict[str, str], rows: Path, steps: int, more: Fields) -> Fields:
    both = (
        USUAL
        | comparison.both
        | {"per_device_train_batch_size": comparison.batch, "gradient_accumulation_steps": comparison.steps}
    )
    own = {"ours": comparison.ours, "trl": comparison.trl}[side]
    own = own | more.get(side, {})
    return {
        "method": comparison.method,
        "rows": str(rows),
        "steps": steps,
        "both": both | more.get("both", {}),
        side: own,
    } | models


# With one token to choose from, both sides say the same, so that their losses can be compared. What ft-host's sampler
# says of its choice is then another number than the policy's.
GREEDY = {"both": {"top_k": 1}, "ours": {"max_sampling_logp_difference": 1e3}}


def check_same_size(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises SystemExit where two sides that sampled their own had other prompts or learning rates, a gradient isn't
    finite, or their completion tokens are further apart than chance makes them."""
    for what in ("rows", "rates"):
        if ours[what] != theirs[what]:
            raise SystemExit(f"not the same work: {what} of each step are {ours[what]} here, {theirs[what]} in TRL")
    for who, seen in (("here", ours), ("in TRL", theirs)):
        if not all(map(math.isfinite, seen["grad_norms"])):
            raise SystemExit(f"a gradient isn't finite {who}: its norms are {seen['grad_norms']}")
    mine, other = sum(ours["supervised"]), sum(theirs["supervised"])
    if abs(mine - other) > TOLERANCE * other:
        raise SystemExit(f"not the same work: {mine} completion tokens here, {other} in TRL")


def numbers(seen: dict[str, Any], skip: int) -> Figures:
    seconds = seen["seconds"][skip:]
    generation = [parts.get("generation", 0.0) for parts in seen["parts"][skip:]]
    return common(seen, skip) | {
        UNIT: sum(seen["supervised"][skip:]) / sum(seconds),
        "generation": statistics.median(generation),
        "training": statistics.median(a - b for a, b in zip(seconds, generation, strict=True)),
    }


def compare(
    name: str, setting: str, rows: list[work.Row], tokenizers: Fields, args: argparse.Namespace, at: Path
) -> Fields:
    """Pairs of one comparison, printed; and the same as a JSON-able result."""
    comparison = COMPARISONS[name]
    models = make_models(at, comparison, tokenizers)
    size, skip = comparison.batch * comparison.steps, comparison.skip
    by_length = setting == "best" and not comparison.samples
    lengths = lengths_of(rows, tokenizers["student"]) if by_length else None

    def train(side: str, number: int, steps: int, more: Fields) -> dict[str, Any]:
        """What a side saw, on the rows of this pair."""
        file = at / f"{name}-{setting}-{number}.jsonl"
        work.write_rows(file, work.in_order(rows, lengths, number)[: steps * size])
        wait_for_quiet(args.wait)
        environment = SETTINGS[setting] if side == "trl" else {}
        return run_side(side, environment, spec_of(side, comparison, models, file, steps, more))

    def pair_number(number: int) -> Pair:
        order = ("ours", "trl") if number % 2 == 0 else ("trl", "ours")
        seen = {side: train(side, number, skip + args.steps, {}) for side in order}
        if comparison.samples:
            check_same_size(seen["ours"], seen["trl"])
            difference = None
        else:
            difference = check_same_work(seen["ours"], seen["trl"], comparison.limit)
            if seen["ours"]["supervised"] != seen["trl"]["supervised"]:
                raise SystemExit("not the same work: other tokens have a loss")
        ours, theirs = (numbers(seen[side], skip) for side in ("ours", "trl"))
        print(
            f"{name}, {setting}, pair {number + 1}: {ours[UNIT]:.0f} and {theirs[UNIT]:.0f} {UNIT}, "
            f"{ours['peak over start']:.0f} and {theirs['peak over start']:.0f} MiB; "
            f"others: {ours[OTHERS]:.1f} and {theirs[OTHERS]:.1f} cores",
            file=sys.stderr,
            flush=True,
        )
        return ours | {"difference": difference}, theirs

    checked = None
    if comparison.samples:  # once, unmeasured: what each side makes of the same completions
        seen = [train(side, 0, 2, GREEDY) for side in ("ours", "trl")]
        checked = check_same_work(*seen, comparison.limit)
    pairs, made = undisturbed(pair_number, lambda pair: noise(*pair), args.repeats, args.wait)
    goals = GOALS.get(setting, {})
    print(f"\n## {name}, against TRL {setting}\n")
    print(
        f"{len(pairs)} of {made} pairs, {args.steps} steps of {size} rows measured after {skip}; micro-batches of "
        f"{comparison.batch}.\n"
    )
    units = (
        UNITS
        if comparison.samples
        else {key: unit for key, unit in UNITS.items() if key not in ("generation", "training")}
    )
    print(table(units, goals, pairs))
    difference = checked if comparison.samples else max(ours["difference"] for ours, _ in pairs)
    where = "two steps of greedy completions" if comparison.samples else "all steps"
    print(f"\nLosses of the same step differ by at most {difference:.1e} (relative), in {where}.", flush=True)
    middle = {key: statistics.median(ratios(key, pairs)) for key in (UNIT, "peak over start", "peak")}
    return {
        "comparison": name,
        "setting": setting,
        "unit": UNIT,
        "goals": goals,
        "ratios": middle,
        "skipped": skip,
        "measured": args.steps,
        "difference": difference,
        "pairs": pairs,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--against", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="TRL's settings")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=MEASURED, help="measured steps of a run (default: %(default)s)")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help=(
            "wait so long at most for a quiet "
            "machine before each process; run disturbed pairs again, and keep the least disturbed"
        ),
    )
    parser.add_argument("--json", type=Path, help="write what came out to this file")
    args = parser.parse_args(argv)

    results: list[Fields] = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        tokenizers = make_tokenizers()
        rows = {kind: make(1000) for kind, make in ROWS.items()}
        fits = zip(rows["chats"], lengths_of(rows["chats"], tokenizers["student"]), strict=True)
        rows["chats"] = [row for row, length in fits if length <= work.MAX_LENGTH]
        for name in args.method:
            for setting in args.against:
                results.append(compare(name, setting, rows[COMPARISONS[name].rows], tokenizers, args, at))
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n## All ratios: ft-host to TRL\n")
    print(summary(results, {"comparison": "method", "setting": "TRL"}))


if __name__ == "__main__":
    main()
