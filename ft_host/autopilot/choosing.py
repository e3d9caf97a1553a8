"""Which remedy an autopilot tries next. Imports no torch.

Of the open findings of the best attempt so far, the worst first, it takes the first remedies, then the second ones;
after these, of what was wrong for a while, and of settings beyond their usual range. An attempt that was no better and
has the same finding again is looked at before: by what it has measured, its field may have to go further, or half way
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ft_host.autopilot.lineage import Attempt, Change, compared
from ft_host.diagnostics.suspects import NOTES

# Fields that define the task or the machine: never part of a remedy. The number of steps is only ever lowered.
PROTECTED = (
    "model",
    "model_revision",
    "trust_remote_code",
    "dataset",
    "dataset_config",
    "dataset_train_split",
    "eval_dataset",
    "dataset_test_split",
    "dataset_columns",
    "eval_reward",
    "reward",
    "reward_weights",
    "reward_kwargs",
    "environment",
    "tools",
    "reward_model",
    "seed",
    "output_dir",
    "parent_run",
    "resume_from_checkpoint",
    "rules_select",
    "rules_ignore",
    "stop_on",
    "fail_on",
    "locked_fields",
    "num_processes",
    "backend",
)
FEWER = "max_steps"


def candidates(
    base: Attempt, attempts: Sequence[Attempt], config: dict[str, Any], locked: set[str]
) -> Iterator[tuple[dict[str, Any], Change]]:
    """Yield the fields of attempts that may follow, the likeliest to help first, with the change relative to `base`.

    `config`: all fields of the first attempt. What has been tried is left out.
    """
    tried = [compared(attempt.values) for attempt in attempts]
    failed = [each for each in attempts if each.base == base.number and each.verdict and not each.verdict.adopted]
    for finding, remedy, patch in [
        *_again(failed),
        *_in_turn(base.open_findings()),
        *_further(base, failed),
        *_in_turn(_passed(base)),
        *_in_turn(_notes(base)),
    ]:
        if not remedy.get("measured"):
            patch = {name: _beyond(finding["code"], name, value, base, attempts) for name, value in patch.items()}
        values = base.values | patch
        now = {name: base.values.get(name, config.get(name)) for name in patch}
        if set(patch) & locked or compared(values) in tried or not _is_less(patch, now):
            continue
        yield (
            values,
            Change(
                finding=finding["fingerprint"],
                message=finding["message"],
                remedy=remedy["why"],
                patch={name: [now[name], value] for name, value in patch.items()},
                checkpoint=None,
                safe=remedy["applicability"] == "safe",
            ),
        )


def first_step_of(base: Attempt, change: Change) -> int | None:
    """The step from which on the finding of a change was there, where its remedy works from a checkpoint on."""
    for finding in base.findings:
        for remedy in finding["remedies"]:
            names = [each["path"].removeprefix("/") for each in remedy["patch"]]
            if finding["fingerprint"] == change.finding and set(names) == set(change.patch):
                return None if remedy["from_start"] else finding["first_step"]
    return None


# ---------------------------------------------------------------- in which order

Choice = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # (finding, remedy, {field: new value})


def _passed(attempt: Attempt) -> list[dict[str, Any]]:
    """What was wrong for a while, and followed from nothing else."""
    return [
        finding
        for finding in attempt.findings
        if finding["state"] == "cleared" and finding["severity"] != "info" and finding["muted_by"] is None
    ]


def _notes(attempt: Attempt) -> list[dict[str, Any]]:
    """Settings beyond their usual range, which may be meant: what is left to try last."""
    return [each for each in attempt.findings if each["code"] == NOTES and each["state"] == "open"]


def _in_turn(findings: list[dict[str, Any]]) -> list[Choice]:
    """The first patch of each finding, then the second ones."""
    found = []
    for place, finding in enumerate(findings):
        for rank, (remedy, patch) in enumerate(_patches(finding)):
            found.append((rank, place, finding, remedy, patch))
    return [(finding, remedy, patch) for _, _, finding, remedy, patch in sorted(found, key=lambda each: each[:2])]


def _patches(finding: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    patches = [
        (remedy, {change["path"].removeprefix("/"): change["value"] for change in remedy["patch"]})
        for remedy in finding["remedies"]
    ]
    return [(remedy, patch) for remedy, patch in patches if patch]


def _again(failed: list[Attempt]) -> list[Choice]:
    """What attempts that were no better ask for of the very fields that they changed."""
    return [
        (finding, remedy, patch)
        for attempt in failed
        for finding, remedy, patch in _in_turn(attempt.open_findings())
        if attempt.change is not None and set(patch) <= set(attempt.change.patch)
    ]


def _further(base: Attempt, failed: list[Attempt]) -> list[Choice]:
    """A number that didn't help enough, once more by as much: where the finding came again."""
    found: list[Choice] = []
    for finding in base.open_findings():
        for remedy, patch in _patches(finding):
            again = [
                each.change.patch
                for each in failed
                if each.change is not None
                and each.change.code == finding["code"]
                and each.has_open(finding["code"])
                and set(each.change.patch) == set(patch)
            ]
            if again and all(_is_rate(number) for change in again for pair in change.values() for number in pair):
                found.append((finding, remedy, {name: _power(again, name) for name in patch}))
    return found


def _power(changes: list[dict[str, list[Any]]], name: str) -> float:
    old, new = changes[0][name]
    return float(f"{old * (new / old) ** (len(changes) + 1):.2g}")


def _beyond(code: str, name: str, value: Any, base: Attempt, attempts: Sequence[Attempt]) -> Any:
    """The new value of a field. A number that the same rule has changed on the way to this attempt, not by enough, goes
    further each time: a rate divided by 5 is next divided by 25."""
    way: list[Attempt] = []
    at: Attempt | None = base
    while at is not None:
        way.append(at)
        at = next((each for each in attempts if at.base is not None and each.number == at.base), None)
    before = sum(each.change is not None and each.change.code == code and name in each.change.patch for each in way)
    old = base.values.get(name)
    if not before or not _is_rate(old) or not _is_rate(value):
        return value
    return float(f"{old * (value / old) ** (before + 1):.2g}")


def _is_rate(number: Any) -> bool:
    return isinstance(number, float) and number > 0


def _is_less(patch: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the number of steps stays or becomes less."""
    return FEWER not in patch or (patch[FEWER] > 0 and (now[FEWER] is None or not 0 < now[FEWER] < patch[FEWER]))
