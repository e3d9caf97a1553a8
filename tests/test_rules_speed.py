"""The rules about memory and time, and about the machine. Numbers of a GPU's memory are made up: what a run on one
tells."""

from __future__ import annotations

import pytest

from ft_host.diagnostics.rules import gpu_memory, machine, speed
from ft_host.testing.rules import Told, codes, findings, steps

FIXED = {
    "plan/memory_mb": 20000.0,
    "plan/memory_activations_mb": 8000.0,
    "plan/memory_logits_mb": 2000.0,
    "plan/processes": 1,
}
SMALL = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
GPU = {"perf__alloc_retries": 0.0}
CALM = {"perf__step_time": 0.03, "perf__evaluation_time": 0.0, "perf__save_time": 0.0}


def every(step: int, seconds: float, of: int = 2) -> float:
    return seconds if step % of == 0 else 0.0


CASES = {
    "PERF001": (
        Told(config=SMALL, facts=FIXED, lines=steps(40, perf__memory_share=0.34, **GPU)),
        Told(config=SMALL, facts=FIXED, lines=steps(40, perf__memory_share=0.82, **GPU)),
    ),
    "PERF002": (
        Told(lines=steps(40, perf__memory_share=0.93, perf__alloc_retries=lambda step: step // 10)),
        Told(lines=steps(40, perf__memory_share=0.93, perf__alloc_retries=2.0)),
    ),
    "PERF003": (
        Told(lines=steps(60, perf__memory_mb=lambda step: 700 + 4.0 * step + step % 3)),
        Told(lines=steps(60, perf__memory_mb=lambda step: 700 + min(step, 12) * 10 + step % 7)),
    ),
    "PERF004": (
        Told(lines=steps(40, perf__data_time=0.035, perf__step_time=0.07)),
        Told(lines=steps(40, perf__data_time=0.013, perf__step_time=0.038)),  # a tiny model: tokenising takes a third
    ),
    "PERF006": (
        Told(lines=steps(90, perf__tokens_per_second=lambda step: 9000 if step <= 60 else 2500, perf__step_time=0.05)),
        Told(lines=steps(90, perf__tokens_per_second=lambda step: 9000 if step % 9 else 3000, perf__step_time=0.05)),
    ),
    "PERF009": (
        Told(config={"save_steps": 2}, lines=steps(60, **CALM | {"perf__save_time": lambda step: every(step, 0.09)})),
        Told(lines=steps(60, **CALM | {"perf__evaluation_time": lambda step: every(step, 0.1, 20)})),
    ),
    "PERF010": (
        Told(config={"gradient_checkpointing": True}, lines=steps(40, perf__memory_share=0.2)),
        Told(config={"gradient_checkpointing": True}, lines=steps(40, perf__memory_share=0.6)),
    ),
    "SYS001": (
        Told(facts={"watch/silent_seconds": 1900.0, "watch/silent_after_step": 40}),
        Told(lines=steps(40, perf__step_time=0.03)),
    ),
    "SYS008": (
        Told(facts={"watch/stalls": 2, "watch/stalled_seconds": 75.0, "watch/stalled_after_step": 40}),
        Told(lines=steps(40, perf__step_time=0.03)),
    ),
    "SYS003": (
        Told(facts={"system/disk_free_mb": 3000.0, "system/checkpoint_mb": 4000.0}),
        Told(facts={"system/disk_free_mb": 90000.0, "system/checkpoint_mb": 4000.0}),
    ),
    "SYS005": (
        Told(
            facts={
                "watch/failed": "hook",
                "watch/failed_place": "mine.py, line 7",
                "watch/failed_hook": "ft_loss",
                "watch/failed_step": 12,
                "watch/failed_text": "ft_loss of mine failed: KeyError: 'logp'",
            }
        ),
        Told(lines=steps(40, perf__step_time=0.03)),
    ),
}
RULES = [*gpu_memory.RULES, *speed.RULES, *machine.RULES]


def test_every_rule_has_its_cases():
    assert set(CASES) == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_the_faulty_case_is_found_and_the_healthy_one_is_not(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty)
    assert codes(RULES, healthy) == set()


def test_unused_memory_is_told_as_numbers_that_keep_the_effective_batch():
    (found,) = findings(RULES, CASES["PERF001"][0])
    assert (
        found.line()
        == "Warning PERF001: VRAM utilization is 34 %. Try increasing per_device_train_batch_size from 4 to 16 and "
        "gradient_accumulation_steps from 8 to 2; the effective batch stays 32."
    )
    assert found.remedies[0].patch == {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    assert found.remedies[0].applicability == "safe"


def test_without_an_estimate_all_memory_is_taken_to_grow_with_the_batch():
    told = Told(config=SMALL, lines=steps(40, perf__memory_share=0.34))
    (found,) = findings(RULES, told)
    assert found.remedies[0].patch == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


def test_where_nothing_can_be_larger_unused_memory_is_no_finding():
    told = Told(config={"per_device_train_batch_size": 32}, lines=steps(40, perf__memory_share=0.34))
    assert codes(RULES, told) == set()


def test_what_takes_most_of_the_time_is_the_first_to_come_less_often():
    told = Told(
        config={"save_steps": 2, "eval_steps": 10},
        lines=steps(
            60,
            **CALM
            | {
                "perf__save_time": lambda step: every(step, 0.09),
                "perf__evaluation_time": lambda step: every(step, 0.1, 10),
            },
        ),
    )
    (found,) = findings(RULES, told)
    assert [list(remedy.patch) for remedy in found.remedies] == [["save_steps"], ["eval_steps"]]
    assert 27 <= found.remedies[0].patch["save_steps"] <= 33  # 1.5 times the training now, a tenth then
