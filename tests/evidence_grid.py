"""Made-up evidence for every rule of the host and the packages: what a run may tell, over a grid of shapes and sizes.

    for method, rule in rules_of("grpo"):              # the host's that can be about it, and its own
        for case in hits("grpo", rule):                # runs in which the rule's test is True
            rule.message(case.view), rule.remedies(case.view)
            findings([rule, other], case.told(), config_class("grpo"))      # the same run, before an engine
    both = beside(case, other_case)                    # one run that tells what both tell; the first counts more

A case makes up a fact or a metric when a rule first asks for it, so that it holds what the rule reads and nothing else:
`case.facts` and `case.series` are that, once the rule has been asked. Numbers that hang together in a run do so here: a
`start/` fact is the first value of its metric, margins are chosen less rejected, the reward of a rollout lies between
its least and its most. Everything follows from the rule's code and a count: no case changes from one run to the next.

A rule that no case of the grid makes True wants a hint: `HINTS`, by code or by family, says what some of its names are.
A new fact or metric has a domain by its ending (`_share`, `_mb`), or wants one: `FACTS`, `METRICS`.
"""

from __future__ import annotations

import fnmatch
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ft_host import registry
from ft_host.config import RunConfig
from ft_host.config.declared import declared_facts
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import own_diagnostics, suspects_of
from ft_host.diagnostics.collect import rules_of as rules_of_plugins
from ft_host.diagnostics.rule import Rule, is_fact
from ft_host.diagnostics.suspects import FACT, NOTES, Function, Suspects
from ft_host.diagnostics.view import View
from ft_host.rundir.series import Series
from ft_host.testing.rules import Told

METHODS = ("sft", "dpo", "kto", "reward", "grpo", "rloo", "ppo", "distill", "gkd", "gold", "sdft", "sdpo")
METHODS += ("orpo", "simpo", "online-dpo", "bon")
TRIES, HITS = 400, 10  # cases that are tried of a rule; how many that make it True are enough
LEVELS = (0.0, 1e-3, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)  # from the least that a number may be to the most

Shape = Callable[[float], float]  # of the share of the run that is done, to a level

# ---------------------------------------------------------------- shapes


def flat(level: float) -> Shape:
    return lambda done: level


def ramp(first: float, last: float) -> Shape:
    return lambda done: first + (last - first) * done


def jump(first: float, last: float, at: float = 0.5) -> Shape:
    return lambda done: first if done < at else last


def bump(first: float, middle: float) -> Shape:
    """Up and back, or down and back."""
    return lambda done: first + (middle - first) * (1 - abs(2 * done - 1))


def noisy(level: float, spread: float, of: random.Random) -> Shape:
    values = [min(1.0, max(0.0, level + spread * of.gauss(0, 1))) for _ in range(97)]
    return lambda done: values[int(done * 960) % 97]


def flicker(first: float, second: float) -> Shape:
    """One of two, by turns, so that the last value isn't like the mean."""
    return lambda done: first if int(done * 1000) % 3 else second


def some_shape(of: random.Random) -> Shape:
    first, second = of.choice(LEVELS), of.choice(LEVELS)
    kind = of.choice(("flat", "flat", "ramp", "ramp", "early", "jump", "late", "bump", "noisy", "flicker"))
    if kind == "flat":
        return flat(first)
    if kind == "noisy":
        return noisy(first, 0.05 + 0.3 * second, of)
    at = {"early": 0.15, "jump": 0.5, "late": 0.93}
    if kind in at:
        return jump(first, second, at[kind])
    return {"ramp": ramp, "bump": bump, "flicker": flicker}[kind](first, second)


# ---------------------------------------------------------------- what numbers may be


def between(least: float, most: float) -> Callable[[float], float]:
    return lambda level: least + (most - least) * level


def powers(least: float, most: float) -> Callable[[float], float]:
    """Of ten, and 0 at the lowest level."""
    return lambda level: 0.0 if level <= 0 else 10 ** (least + (most - least) * level)


SHARE = between(0.0, 1.0)
# Metrics by name, the first that fits: from a level to a value.
METRICS: dict[str, Callable[[float], float]] = {
    "*fraction": SHARE,
    "moe/router_entropy": SHARE,
    "*loss*": powers(-3, 1.3),
    "grad_norm": powers(-7, 3),
    "update_ratio": powers(-7, 0),
    "learning_rate": powers(-6, -1),
    "update_skipped": lambda level: float(level > 0.5),
    "epoch": between(0.0, 3.0),
    "kl": powers(-4, 1),
    "objective/kl": powers(-3, 3),
    "*entropy*": powers(-3, 1),
    "moe/max_violation": between(0.0, 7.0),
    "rewards/accuracies": SHARE,
    "rewards/*/std": between(0.0, 1.0),
    "rewards/chosen": between(-20.0, 20.0),
    "rewards/rejected": between(-20.0, 20.0),
    "rewards/margins": between(-20.0, 20.0),
    "*correlation": between(-1.0, 1.0),
    "*length*": between(1.0, 200.0),
    "mean_reward": between(-30.0, 30.0),
    "margin": between(-3.0, 3.0),
    "*reward_std": powers(-6, 0),
    "*reward": between(-1.0, 2.0),
    "objective/scores": between(-1.0, 2.0),
    "val/explained_variance": between(-3.0, 1.0),
    "val/ratio": between(0.9, 1.1),
    "val/ratio_var": powers(-6, 0),
    "*divergence": powers(-3, 1),
    "*difference*": powers(-6, 1),
    "rollouts/mismatch*": powers(-6, 1),
    "rollouts/staleness*": between(0.0, 8.0),
    "rollouts/failed_*": between(0.0, 16.0),
    "policy/approxkl_avg": powers(-4, 1),
    "*tokens_per_second": powers(0, 5),
    "perf/alloc_retries": lambda level: float(round(8 * level)),
    "perf/*share": SHARE,
    "*_mb": powers(1, 5),
    "perf/slowest_rank": lambda level: float(round(7 * level)),
    "perf/*_tokens": powers(0, 5),
    "perf/*": powers(-3, 3),
    "*": SHARE,
}
# Facts by name, the first that fits: values, or a level's.
FACTS: dict[str, Any] = {
    "data/rows": (4, 40, 500, 20_000),
    "data/measured": (8, 64, 256),
    "data/end_mark": (None, "<|im_end|>"),
    "data/length_p50": (3, 100, 700),
    "data/length_p95": (120, 800, 3000),
    "data/length_max": (200, 900, 9000),
    "data/length_ratio": (0.2, 0.6, 1.0, 1.6, 8.0),
    "data/desirable": (0, 1, 20, 200),
    "data/undesirable": (0, 1, 20, 200),
    "data/reward/*/said": (None, "KeyError: 'answer'"),
    "data/reward/*/whole": (True, False),
    "data/reward/*/value": (0.0, 1.0),
    "data/reward/*/spread": (0.0, 0.5),
    "data/misjoined/*": (0.1, 0.9),
    "data/room_for/*": (3, 100, 700),
    "data/misjoined_by/*": ("3 % of the completions end with the row's answer, and 98 % of the held-out ones",),
    "data/said/*": (None, "'what is 3?' (train.jsonl:7)"),
    "data/exchanged_by": ("completions end in what asks for an answer, prompts don't",),
    "data/exchanged_surely": (True, False),
    "data/exchanged_columns": (True, False),
    "data/contradicted_by/*": ("the row's answer", "a margin below 0"),
    "data/cut_size/*": ("500 characters", "20 words"),
    "data/same_size/*": (3, 90),
    "data/script_usual/*": ("Latin",),
    "data/left_out/*": SHARE,
    "plan/total_steps": (60, 120, 2000),
    "plan/rows_per_step": (1, 4, 64),
    "plan/device": ("cuda", "xpu", "cpu"),
    "plan/kernel": ("none", "sdpa"),
    "plan/kernel_refused": ("flex: there is no C compiler",),
    "plan/companions_refused": ({"reference": "flex: log-probs differ by 0.7 from those of single rows"},),
    "plan/rows_kernel": ("varlen", "sdpa"),
    "plan/processes": (1, 4),
    "plan/generations": (1, 2, 3, 8),
    "plan/rows_per_prompt": (1, 2, 8),
    "plan/prompts": (1, 8),
    "plan/updates": (1, 4),
    "plan/scored_rows": (4, 16, 200),
    "model/parameters": (600_000, 600_000_000),
    "model/vocab_size": (16, 50_000),
    "model/experts": (4, 64),
    "model/experts_per_token": (1, 2),
    "model/router_aux_loss_coef": (0.0, 1e-3, 0.01, 0.3),
    "model/lora_missing": ("c_attn",),
    "model/settings": ({}, {"attention_dropout": 0.9, "rms_norm_eps": 1.0}),
    "model/adapter": ("runs/first/adapter",),
    "model/adapter_rslora": (False,),
    "model/adapter_ranks": ({"": [8, 16]}, {"": [8, 800], "mlp": [8, 16]}),
    "plan/rate_most": (1.0,),
    "plan/rate_idle_share": (0.0, 0.9),
    "model/reference": ("the policy as the run found it",),
    "model/row_limit": (64, 2000),
    "probe/trainable": (0, 12_000, 592_960),
    "probe/zero_grad_example": ("model.embed_tokens.weight",),
    "probe/*difference*": powers(-6, 1),
    "probe/packing_leak": powers(-6, 0),
    "system/disk_free_mb": (10, 1000, 100_000),
    "system/checkpoint_mb": (7, 2000),
    "watch/not_finite": ("loss", "gradient norm", "weight"),
    "watch/not_finite_of": ("weight", "gradient"),
    "watch/not_finite_value": ("nan", "inf"),
    "watch/not_finite_step": (1, 2, 60),
    "watch/not_finite_parameter": (None, "model.layers.1.mlp.up_proj.weight"),
    "watch/out_of_memory": ("the forward pass", "the backward pass", "the optimizer's step", "generation"),
    "watch/out_of_memory_step": (0, 7),
    "watch/failed": ("data", "config", "hook", "plugin", "disk", "process", "library", "rollouts", "run"),
    "watch/failed_step": (0, 7),
    "watch/failed_text": ("row 7 of train.jsonl has no completion.",),
    "watch/failed_place": ("train.jsonl:7",),
    "watch/failed_hook": ("ft_loss",),
    "watch/stalled_during": ("a step", "an evaluation"),
    "watch/stalled_place": ("ft_loss of ft-sft",),
    "watch/silent_during": ("a step", "an evaluation", "a checkpoint"),
    "watch/silent_place": ("ft_loss of ft-sft",),
    "watch/silent_over": (False, True),
    "plan/places": ("node-a, cuda:0; node-b, cuda:1",),
    "watch/silent_seconds": (60.0, 1900.0),
    "watch/silent_after_step": (0, 12),
    "watch/stalls": (1, 3),
    "watch/stalled_seconds": (60.0, 1900.0),
    "watch/stalled_after_step": (0, 12),
    "watch/unrewarded": ("exact_match",),
    "watch/bottleneck": ("generation", "rewards", "training", "waiting"),
    "watch/bottleneck_*": powers(-1, 2),
    "watch/rollout_restarts": (0, 1, 3),
    "watch/rollout_restart_cause": ("signal 9",),
    "watch/set_aside": ("prompt 4 (reward: KeyError)",),
    "watch/set_aside_count": (0, 1, 3),
    "*_mb": powers(1, 5),
    "*_seconds": powers(-1, 4),
    "*_step": (1, 20),
    "*": SHARE,
}
# What only runs with rollouts tell.
OF_ROLLOUTS = ("rollouts/*", "completions/*", "perf/rollout*", "perf/generation*", "perf/reward*", "plan/scored_rows")
OF_ROLLOUTS += ("sampling/*", "eval_completions/*", "perf/weight_sync_time", "perf/train_time", "plan/generations")
DECLARED = ("plan/reward_metric", "plan/no_signal_metric")  # by the method's config: not made up
# What a star may stand for, and which other names come with it.
CAUSES: dict[str, tuple[str, ...]] = {
    "data/dropped/*": ("too short",),
    "data/blank/*": ("prompt", "chosen", "rejected", "completion", "answer"),
    "data/copied/*": ("completion", "chosen", "answer"),
    "data/given_away/*": ("completion", "answer"),
    "data/contradicted/*": ("rejected", "label"),
    "data/same/*": ("prompt", "completion", "rejected", "answer"),
    "data/void/*": ("completion", "answer"),
    "data/broken/*": ("replaced", "misread", "control"),
    "data/left_over/*": ("marks", "foreign_marks", "slots", "turns", "html"),
    "data/cut/*": ("completion",),
    "data/script/*": ("completion",),
    "data/sorted/*": ("label", "completion"),
    "data/loops/*": ("completion",),
    "data/mid_word/*": ("completion",),
    "data/misjoined/*": ("completion", "answer"),
    "data/spaced/*": ("answer",),
    "data/longer_than_room/*": ("completion", "answer"),
    "data/left_out/*": ("parts", "thoughts", "tools", "names", "beside"),
    "rollouts/failed_*": ("engine", "environment", "reward", "timeout", "other"),
    "rollouts/server_*/tokens_per_second": ("0",),
    "*": ("exact_match",),
}
WITH = {  # facts that are told in one go
    "watch/not_finite": ("watch/not_finite_value", "watch/not_finite_step", "watch/not_finite_parameter"),
    "watch/bottleneck": tuple(f"watch/bottleneck_{each}" for each in ("step", "more_servers", "larger_bound")),
    "data/length_ratio": ("data/chosen_longer",),
    "data/reward/exact_match/failed": tuple(f"data/reward/exact_match/{each}" for each in ("whole", "value", "spread")),
}
BESIDE = {
    "rollouts/server_*/tokens_per_second": (
        "rollouts/server_1/tokens_per_second",
        "rollouts/server_2/tokens_per_second",
    ),
    "reward_std": ("rewards/exact_match/std", "rewards/format/std"),
    "update_ratio": ("loss", "grad_norm"),
}
# Fields that a case may set, where the method has them.
FIELDS: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-6, 1e-5, 5e-5, 1e-3, 0.3),
    "warmup_steps": (0, 0.05, 10),
    "max_grad_norm": (1.0, 1e-6, 5.0, 0.0),
    "use_peft": (False, True),
    "lora_target_modules": (["q_proj", "v_proj"], ["all-linear"]),
    "lora_dropout": (0.0, 0.1),
    "weight_decay": (0.0, 0.1),
    "optim": ("adamw", "sgd"),
    "dtype": ("float32", "bfloat16"),
    "fp16": (False, True),
    "beta": (0.01, 0.1, 100.0),
    "temperature": (1.0, 0.01, 0.6, 2.0),
    "top_p": (1.0, 0.9),
    "num_generations": (2, 3, 8),
    "num_iterations": (1, 4),
    "num_ppo_epochs": (1, 4),
    "entropy_coef": (0.0, 0.5),
    "epsilon_high": (None, 0.28),
    "dynamic_sampling": (False, True),
    "mask_truncated_completions": (False, True),
    "importance_sampling_correction": ("none", "token_truncate"),
    "per_device_train_batch_size": (1, 8),
    "gradient_accumulation_steps": (1, 4),
    "gradient_checkpointing": (False, True),
    "max_length": (64, 1024),
    "max_tokens_per_micro_batch": (None, 4096),
    "max_completion_length": (16, 256),
    "max_steps": (-1, 120),
    "eval_dataset": (None, "test.jsonl"),
    "eval_steps": (None, 10),
    "save_steps": (0, 10),
    "save_total_limit": (None, 1),
    "packing": (False, True),
    "packing_strategy": ("bfd", "wrapped"),
    "truncation_mode": ("keep_start", "keep_end"),
    "segment_attention": ("auto", "none"),
    "disable_dropout": (False, True),
    "ref_model": (None, "other"),
    "rollouts": ("sync", "overlap", "async"),
    "max_staleness": (None, 0, 4),
    "rollout_order": ("as_ready", "in_order"),
    "backend": ("transformers", "vllm"),
    "reward_workers": (1, 4),
    "router_aux_loss_coef": (None, 0.0, 0.01, 0.3),
    "lmbda": (0.0, 0.5, 1.0),
    "loss_top_k": (0, 16),
    "teacher_model_kind": ("base", "ema", "live"),
    "include_environment_feedback": (False, True),
    "use_successful_as_teacher": (True, False),
    "desirable_weight": (1.0, 4.0),
    "num_loss_tokens_to_skip": (0, 8),
    "uld_use_hybrid_loss": (False, True),
    "uld_crossentropy_weight": (0.0, 0.5),
    "num_processes": (1, 4),
    "dataloader_num_workers": (0, 2),
}
# Fields without which a run doesn't tell a metric.
IMPLIED: dict[str, dict[str, Any]] = {"distillation/teacher_top_k_mass": {"loss_top_k": 16}}
# What makes rules True that chance finds too seldom, by code or family: for every second case, by turns.
HINTS: dict[str, tuple[dict[str, Any], ...]] = {
    "DATA029": ({"config": {"train_sampling_strategy": "sequential"}},),
    "OPT009": ({"metrics": {"loss": ramp(2.0, 0.1), "eval_loss": bump(2.0, 0.5)}, "count": 120},),
    "OPT012": ({"metrics": {"loss": ramp(0.9, 0.0)}, "count": 120},),
    "KTO004": ({"metrics": {"rewards/chosen": ramp(0.5, 0.6), "rewards/rejected": ramp(0.5, 0.4)}, "count": 60},),
    "preferences-02": tuple(
        {
            "metrics": {
                "rewards/chosen": noisy(0.5, size, random.Random(1)),
                "rewards/rejected": noisy(0.5, size, random.Random(2)),
            },
            "count": 60,
        }
        for size in (1e-5, 0.01, 0.1)
    ),
}

# ---------------------------------------------------------------- a case


def domain(name: str, table: dict[str, Any]) -> Any:
    """What a fact or metric may be; of an evaluation's, what it may be in training."""
    plain = name.removeprefix("eval_")
    return next(each for pattern, each in table.items() if fnmatch.fnmatchcase(plain, pattern))


class Facts(dict):
    """Facts that are made up once they are asked for."""

    def __init__(self, case: Case, given: dict[str, Any]):
        super().__init__(given)
        self.case = case

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and is_fact(name) and (super().__contains__(name) or self.case.make_fact(name))

    def __getitem__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


class Curves(dict):
    """Metrics over the run's steps, in the same way."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case

    def __contains__(self, name: object) -> bool:
        known = isinstance(name, str) and not is_fact(name)
        return known and (super().__contains__(name) or self.case.make_series(name))

    def __getitem__(self, name: str) -> Series:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


class Entry:
    """The line of metrics that the view stands at."""

    def __init__(self, case: Case):
        self.case = case

    def __contains__(self, name: str) -> bool:
        evaluation = self.case.rule.of_evaluations
        return name.startswith("eval_") == evaluation and name in self.case.series

    def __getitem__(self, name: str) -> float:
        return self.case.series[name].last

    def items(self) -> list[tuple[str, float]]:
        return [(name, series.last) for name, series in self.case.series.items() if name in self]


@dataclass
class Case:
    """A run that may make a rule True. `number`: which of the rule's; all that it tells follows from that."""

    method: str
    rule: Rule
    number: int
    cause: str | None = None
    config: dict[str, Any] = field(init=False)
    facts: Facts = field(init=False)
    series: Curves = field(init=False)
    view: View = field(init=False)
    fields: dict[str, Any] = field(init=False)  # of the config, that aren't at their defaults

    def __post_init__(self) -> None:
        of = self.random("case")
        self.absent: set[str] = set()
        hints = HINTS.get(self.rule.code) or HINTS.get(self.rule.family) or ({},)
        self.hint = hints[self.number // 2 % len(hints)] if self.number % 2 else {}
        self.count = of.choice((12, 60, 60, 120))
        if "count" in self.hint:
            self.count = self.hint["count"]
        default = defaults(self.method)
        chosen = {name: of.choice(values) for name, values in FIELDS.items() if name in default and of.random() < 0.5}
        chosen |= {name: value for name, value in self.hint.get("config", {}).items() if name in default}
        chosen |= {name: value for need in self.rule.needs for name, value in IMPLIED.get(need, {}).items()}
        self.fields = {name: value for name, value in chosen.items() if default[name] != value}
        self.config = default | self.fields
        self.facts = Facts(self, declared_facts(config_class(self.method)) | self.hint.get("facts", {}))
        self.series = Curves(self)
        needs = [name if self.cause is None else name.replace("*", self.cause) for name in self.rule.needs]
        beside = [other for name in self.rule.needs for other in BESIDE.get(name, ()) if of.random() < 0.8]
        needs = [name for name in needs if not name.startswith(FACT)]
        for name in [*needs, *self.hint.get("metrics", {}), *beside]:
            made = self.make_fact(name, needed=True) if is_fact(name) else self.make_series(name, needed=True)
            assert made or name in self.facts or name in self.series, name
        self.view = view = View(self.config)
        view.facts, view.series, view.entry = self.facts, self.series, Entry(self)  # type: ignore[assignment]
        view.step = 0 if self.before else self.count
        if self.rule.code == NOTES:
            view.suspects = Suspects(asked(self.method), strict=True).of(view)
            self.cause = next((each.field for each in view.suspects if each.noted), "none")
        view.cause = self.cause
        view.window = 1 if self.rule.of_facts else min(self.rule.window, max(self.rule.least, self.count))
        view.share = 1.0 if self.rule.of_facts else of.choice((self.rule.share, (1 + self.rule.share) / 2, 1.0))

    def random(self, what: str) -> random.Random:
        return random.Random(f"{self.rule.code} {self.number} {what}")

    @property
    def before(self) -> bool:
        return self.rule.of_facts

    # -- making up

    def possible(self, name: str) -> bool:
        return name not in DECLARED and (with_rollouts(self.method) or not of_rollouts(name.removeprefix("start/")))

    def make_fact(self, name: str, needed: bool = False) -> bool:
        if dict.__contains__(self.facts, name):
            return True
        of = self.random(name)
        metric = name.removeprefix("start/")
        unlikely = metric == name and of.random() < 0.25
        if not needed and (name in self.absent or not self.possible(name) or unlikely):
            self.absent.add(name)
            return False
        if metric != name:
            if needed or metric in self.series:
                self.make_series(metric, needed=needed)
                dict.__setitem__(self.facts, name, self.series[metric].first)
                return True
            self.absent.add(name)
            return False
        values = domain(name, FACTS)
        value = values(of.choice(LEVELS)) if callable(values) else of.choice(values)
        if name == "watch/not_finite_parameter" and self.facts.get("watch/not_finite") == "weight":
            value = values[-1]
        if name == "plan/total_steps":
            value = max(value, self.count)
        if name == "plan/generations":
            value = self.config.get("num_generations", value)
        dict.__setitem__(self.facts, name, value)
        for other in WITH.get(name, ()):
            self.make_fact(other, needed=True)
        return True

    def make_series(self, name: str, needed: bool = False) -> bool:
        if dict.__contains__(self.series, name):
            return True
        of = self.random(name)
        unlikely = name != "loss" and of.random() < 0.3
        if not needed and (name in self.absent or not self.possible(name) or unlikely):
            self.absent.add(name)
            return False
        steps, values = self.values(name, of)
        series = Series()
        for step, value in zip(steps, values, strict=True):
            series.put(step, value)
        dict.__setitem__(self.series, name, series)
        return True

    def values(self, name: str, of: random.Random) -> tuple[list[int], list[float]]:
        steps = list(range(1, self.count + 1))
        if name.startswith("eval_"):
            steps = list(range(0, self.count + 1, max(1, self.count // of.choice((2, 4, 6, 12)))))
            steps = sorted({*steps, self.count})
        elif name == "update_ratio":
            steps = [step for step in steps if step % 10 == 0] or [self.count]
        reward = self.facts.get("plan/reward_metric", "reward")
        if name == "rewards/margins":
            pairs = self.series_of("rewards/chosen"), self.series_of("rewards/rejected")
            return steps, [good - bad for good, bad in zip(*pairs, strict=True)]
        if name in ("completions/reward_min", "completions/reward_max") and name not in self.hint.get("metrics", {}):
            apart = 0.0 if self.random("rewards").random() < 0.15 else self.random("rewards").choice((0.5, 1.0, 2.0))
            sign = -1 if name.endswith("min") else 1
            return steps, [value + sign * apart for value in self.series_of(reward)]
        if name == "learning_rate" and name not in self.hint.get("metrics", {}):
            shape = of.choice((flat(1.0), flat(1.0), ramp(1.0, 0.02), ramp(0.02, 1.0)))
            return steps, [self.config["learning_rate"] * shape(step / self.count) for step in steps]
        if name == "epoch":
            return steps, [of.choice((0.5, 1.0, 4.0)) * step / self.count for step in steps]
        shape = self.hint.get("metrics", {}).get(name) or some_shape(of)
        unit = domain(name, METRICS)
        last = max(len(steps) - 1, 1)
        return steps, [unit(shape(index / last)) for index in range(len(steps))]

    def series_of(self, name: str) -> list[float]:
        self.make_series(name, needed=True)
        return list(self.series[name].values)

    # -- for an engine

    def told(self) -> Told:
        """The run as `ft_host.testing.rules.findings` takes it: what has been asked for so far."""
        lines: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, series in self.series.items():
            for step, value in zip(series.steps, series.values, strict=True):
                evaluation = name.startswith("eval_")
                line = lines.setdefault(
                    (int(step), evaluation), {"kind": "eval" if evaluation else "train", "step": step}
                )
                line[name] = value
        plain = {name: value for name, value in self.facts.items() if not name.startswith("start/")}
        plain |= {name: value for name, value in self.facts.items() if name.removeprefix("start/") not in self.series}
        return Told(config=dict(self.fields), facts=plain, lines=[lines[at] for at in sorted(lines)])


def beside(first: Case, second: Case) -> Told:
    """One run that tells what both tell. Where both have a field, a fact or a metric, it is the first's."""
    one, two = first.told(), second.told()
    lines = {(line["step"], line["kind"]): dict(line) for line in two.lines}
    known = set(first.series)
    for line in lines.values():
        for name in known & line.keys():
            del line[name]
    for line in one.lines:
        lines.setdefault((line["step"], line["kind"]), {}).update(line)
    ordered = [lines[at] for at in sorted(lines, key=lambda at: (at[0], at[1] == "eval"))]
    return Told(config=two.config | one.config, facts=two.facts | one.facts, lines=ordered)


# ---------------------------------------------------------------- of which rules


def of_rollouts(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OF_ROLLOUTS)


@functools.cache
def with_rollouts(method: str) -> bool:
    return issubclass(config_class(method), RolloutConfig)


@functools.cache
def config_class(method: str) -> type[RunConfig]:
    return registry.config_class(registry.find("method", method))


@functools.cache
def asked(method: str) -> list[Function]:
    return suspects_of(config_class(method), own_diagnostics(registry.find("method", method)), "transformers")


@functools.cache
def defaults(method: str) -> dict[str, Any]:
    return asdict(config_class(method)())


@functools.cache
def rules_of(method: str) -> tuple[Rule, ...]:
    """The rules of a method's runs: the host's that its fields allow, and its own."""
    owned, problems = rules_of_plugins(own_diagnostics(registry.find("method", method)))
    assert not problems
    return tuple(rule for rule, _ in owned if all(name in defaults(method) for name in rule.fields))


def every_rule() -> Iterator[tuple[str, Rule]]:
    """Each rule once, with a method whose runs it is about; of rules that several methods share, each form of it."""
    seen = set()
    for method in METHODS:
        for rule in rules_of(method):
            if not with_rollouts(method) and any(map(of_rollouts, rule.needs)):
                continue  # the host's, about rollouts
            key = (rule.family, method in ("ppo",)) if rule.family.startswith("rollouts") else rule.code
            if key not in seen:
                seen.add(key)
                yield method, rule


def cases(method: str, rule: Rule, count: int = TRIES) -> Iterator[Case]:
    """Cases of a rule, whether they make it True or not."""
    star = next((name for name in rule.needs if "*" in name), None)
    causes = [None] if star is None else CAUSES.get(star, CAUSES["*"])
    for number in range(count):
        yield Case(method, rule, number, causes[number % len(causes)])


@functools.cache
def hits(method: str, rule: Rule, enough: int = HITS) -> tuple[Case, ...]:
    """The first cases in which the rule's test is True. An error of a rule is raised."""
    found = []
    for case in cases(method, rule):
        if rule.test(case.view):
            found.append(case)
            if len(found) == enough:
                break
    return tuple(found)
