"""Runs that learn: that they do, in the right direction, and that nothing is said against them."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from statistics import correlation
from typing import TYPE_CHECKING, Any

from ft_host.config import RolloutConfig
from ft_host.rundir.folder import RunFolder
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.invariants import fixed_completions_of, lines, run_in

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

LONGER: dict[str, Any] = {"max_steps": 24, "learning_rate": 3e-3}
LEARNT = 0.1  # of the first loss
PAID = 0.3  # the correlation of rewards and log-probs gained; a wrong sign gives it below 0
MACHINE = ["PERF", "SYS"]  # rules about speed and memory: the machine's, not the method's


def longer(subject: Subject) -> Path:
    """A healthy run: of a model that knows the words of the rows, on eight of them, over and over."""

    def make() -> Path:
        fields: dict[str, Any] = LONGER | {"model": subject.materials["taught"], "rules_ignore": MACHINE}
        if subject.samples:
            fields |= {"max_steps": 12, "per_device_train_batch_size": 32}
        return run_in(subject.config(subject.rows(count=8), **fields), "longer")

    return subject.once("longer run", make)


def learns(subject: Subject) -> Figures:
    kind = subject.config_class
    if issubclass(kind, RolloutConfig) and kind.needs_reward:
        return learns_what_is_paid(subject)
    found = lines(longer(subject))
    first, last = found[0]["loss"], found[-1]["loss"]
    if not last < first - LEARNT * math.fabs(first):
        raise NotMet(
            f"the loss of eight rows is {first:.5g} at step 1 and {last:.5g} at step {len(found)}; expected it to fall"
            f" by {LEARNT:.0%} at least"
        )
    return {"first": first, "last": last}


def learns_what_is_paid(subject: Subject) -> Figures:
    """Rewards of a few rollouts say little; what became likelier among the same completions, a great deal."""
    from ft_host.testing.fixed import listening

    fields = {"model": subject.materials["taught"], "max_steps": 12, "per_device_train_batch_size": 32}
    with fixed_completions_of(subject.config(subject.rows(count=8), **LONGER | fields)) as config, listening() as told:
        run_in(config, "paid")
    if not told:
        raise DoesNotApply("completions come from a backend, tools or an environment that the suite can't replace")
    letters = runpy.run_path(f"{subject.materials['rewards']}/rewards.py")["letters"]
    first: dict[tuple[str, str], float] = {}
    groups: dict[str, list[tuple[float, float]]] = {}
    for prompt, text, logp in told:
        first.setdefault((prompt, text), logp)
    for (prompt, text), logp in {(prompt, text): logp for prompt, text, logp in told}.items():  # the last of each
        [paid] = letters([text])
        groups.setdefault(prompt, []).append((paid, logp - first[prompt, text]))
    # completions are compared with others of their prompt, or all together where a prompt has one
    alone = [pairs[0] for pairs in groups.values() if len(pairs) == 1]
    compared = [pairs for pairs in [*groups.values(), alone] if len(pairs) > 1]
    paid, likelier = (
        [pair[of] - sum(each[of] for each in pairs) / len(pairs) for pairs in compared for pair in pairs]
        for of in (0, 1)
    )
    found = correlation(paid, likelier) if any(likelier) else 0.0
    if found < PAID:
        raise NotMet(
            f"of {len(paid)} completions, what they were paid and how much likelier they became correlate with"
            f" {found:.2f}; expected {PAID} at least"
        )
    return {"correlation": found}


def quiet(subject: Subject) -> Figures:
    folder = longer(subject)
    said: dict[str, dict[str, Any]] = {}
    for finding in RunFolder(folder).read("findings.jsonl"):
        if finding["plugin"].startswith("ft-host "):
            said.setdefault(finding["code"], finding)
    if said:
        texts = [f"{code} ({each['severity']}): {each['message']}" for code, each in said.items()]
        raise NotMet(f"a healthy run is told: {' '.join(texts)}")
    manifest = RunFolder.open(folder).manifest
    return {"rules": manifest["diagnostics"]["rules"]}


CHECKS: list[Check] = [
    Check(
        id="learning-rows",
        title="It learns eight rows by heart; with rewards, what is paid for becomes likelier",
        about="method",
        why="A wrong sign or mask trains without an error, in the wrong direction.",
        looks_at=f"{LONGER['max_steps']} steps of the same eight rows, from a model that knows their words: the loss "
        f"must fall by {LEARNT:.0%}. Of a method with rewards, twelve steps of the same completions of eight prompts: "
        "rewards (the share of letters), less the mean of the prompt, and what log-probs of a token gained must "
        f"correlate with {PAID} at least.",
        mend="Look at signs, masks, detached tensors, and advantages that belong to other rows.",
        test=learns,
    ),
    Check(
        id="learning-quiet",
        title="A healthy run raises no rule of the host",
        about="method",
        why="Users follow what they are told, and `ft-host autopilot` acts on it. A rule that isn't about a method "
        "sends them the wrong way, in every run.",
        looks_at="Findings of the host's rules in a run on eight rows, of a model that knows their words. Those about "
        f"speed and memory ({' and '.join(MACHINE)}) are about the machine and aren't asked.",
        mend="Where the rule is right, mend what it names. Where it isn't about the method, say so in the module of "
        'its rules, with the reason: NOT_ABOUT = {"PRB005": "the loss isn\'t that of a token"}.',
        test=quiet,
    ),
]
