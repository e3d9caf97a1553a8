"""The time that sampling, its weights and rewards take, of runs that learn from completions of their own. Imports no
torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short
from ft_host.util.memory import rows_at_a_time


def waits(view: View) -> bool | None:
    whole = view["perf/generation_time"] + view.get("perf/train_time", 0.0)
    return None if view.step < 5 or whole <= 0 else of_both(view) > 0.7


def of_both(view: View) -> float:
    """The share of generation in the time of generation and training."""
    sampling = view["perf/generation_time"]
    return sampling / (sampling + view.get("perf/train_time", 0.0))


def of_step(view: View, name: str) -> float:
    """The share of a rollout's time, which is the time from one rollout to the next."""
    parts = (
        "perf/generation_time",
        "perf/reward_time",
        "perf/annotation_time",
        "perf/train_time",
        "perf/weight_sync_time",
        "perf/rollout_wait_time",
    )
    whole = sum(view.mean(part) for part in parts if view.count(part))
    return view.mean(name) / whole if whole else 0.0


RULES = [
    Rule(
        code="ENG005",
        title="Most of the time is generation",
        stage="train",
        symptom="slow",
        level="speed",
        severity="info",
        needs=("perf/generation_time", "perf/step_time"),
        test=waits,
        share=0.8,
        message=lambda view: (
            f"Generation takes {percent(of_both(view))} of the time of generation and training together"
            f" ({short(view['perf/generation_time'])} s of this rollout)."
        ),
        remedies=lambda view: [
            *(
                [
                    Remedy(
                        why=(
                            f"Raise decode_batch_size from {rows_at_a_time(view.config, view.facts)} to"
                            f" {4 * rows_at_a_time(view.config, view.facts)}"
                        ),
                        patch={"decode_batch_size": 4 * rows_at_a_time(view.config, view.facts)},
                        safe=True,
                    )
                ]
                if view.config.backend == "transformers"
                else []
            ),
            *(
                [Remedy(why="Sample with vLLM (ft-vllm), on GPUs of its own where there are more")]
                if view.config.backend == "transformers"
                else []
            ),
        ],
        when="Generation takes more than 70 % of generation and training together in 80 % of the last 50 rollouts.",
        why="The trainer waits for completions.",
        remedy="A larger decode_batch_size, vLLM, shorter completions.",
        source="PRIME-RL: wait for batch; own judgement of the share",
    ),
    Rule(
        code="ENG007",
        title="Handing weights to the sampler takes long",
        stage="train",
        level="speed",
        severity="info",
        needs=("perf/weight_sync_time",),
        share=0.5,
        test=lambda view: of_step(view, "perf/weight_sync_time") > 0.15,
        message=lambda view: (
            f"Handing the new weights to the sampler takes {percent(of_step(view, 'perf/weight_sync_time'))} of a"
            f" rollout's time ({short(view.mean('perf/weight_sync_time'))} s of it)."
        ),
        remedies=lambda view: [
            *(
                [Remedy(why="Set use_peft: only an adapter is handed over then", patch={"use_peft": True}, again=True)]
                if not view.config.use_peft
                else []
            ),
            Remedy(why="Make larger rollouts, so that weights are handed over less often"),
        ],
        when="perf/weight_sync_time is more than 15 % of a rollout's time, on average over the last 50.",
        why="The sampler stands still meanwhile.",
        remedy="LoRA, larger rollouts.",
        source="own judgement",
    ),
    Rule(
        code="ENG010",
        title="Rewards take long",
        stage="train",
        level="speed",
        needs=("perf/reward_time",),
        share=0.5,
        least=10,
        test=lambda view: of_step(view, "perf/reward_time") > 0.6,
        message=lambda view: (
            f"Rewards take {percent(of_step(view, 'perf/reward_time'))} of a rollout's time "
            f"({short(view.mean('perf/reward_time'))} s of it)."
        ),
        remedies=lambda view: [
            Remedy(
                why=f"Raise reward_workers from {view.config.reward_workers} to {2 * view.config.reward_workers}",
                patch={"reward_workers": 2 * view.config.reward_workers},
                safe=True,
            )
        ],
        when="perf/reward_time is more than 60 % of a rollout's time, on average over the last 50.",
        why="Nothing else happens meanwhile.",
        remedy="More reward_workers, a faster reward.",
        source="PRIME-RL run monitoring",
    ),
]
