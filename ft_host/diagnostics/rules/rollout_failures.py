"""What fails or lags in rollouts that don't wait for training, and what becomes of it. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.asynchrony import FIELDS, more_workers
from ft_host.diagnostics.view import View, short

SERVER = "rollouts/server_*/tokens_per_second"
CAUSES = {
    "engine": "Look at the last lines of the server or the rollout process, which the run's events hold",
    "environment": "Run the tools or the environment by hand on the prompt that events.jsonl names",
    "reward": "Call the reward by hand on a completion of samples.jsonl",
    "timeout": "Raise tool_timeout or reward_timeout where calls are slow by nature; else see what they wait for",
}


def times(count: float) -> str:
    return {1: "once", 2: "twice"}.get(int(count), f"{int(count)} times")


def counted(prompts: int) -> str:
    return "A prompt" if prompts == 1 else f"{prompts} prompts"


def set_timeout(view: View) -> list[Remedy]:
    now = vars(view.config).get("rollout_timeout")
    if now is None:
        return []
    said = f"Raise rollout_timeout from {short(now)} to {short(2 * now)} s, if a turn may take so long"
    return [Remedy(why=said, patch={"rollout_timeout": 2 * now})]


def servers(view: View) -> list[float]:
    """The speed of each server, over the last steps."""
    before, _, after = SERVER.partition("*")
    names = [name for name in view.series if name.startswith(before) and name.endswith(after)]
    return sorted(view.mean(name, 20) for name in names)


def lags(view: View) -> bool | None:
    speeds = servers(view)
    if len(speeds) < 2:
        return None
    return view.mean(SERVER, 20) < 0.5 * speeds[len(speeds) // 2]


def lag_message(view: View) -> str:
    speeds = servers(view)
    return (
        f"Server {view.cause} samples {short(view.mean(SERVER, 20))} tokens/s, the others"
        f" {short(speeds[len(speeds) // 2])} (median)."
    )


RULES = [
    Rule(
        code="ASY005",
        title="One server is slow",
        stage="train",
        level="speed",
        fields=FIELDS,
        needs=(SERVER,),
        test=lags,
        share=0.5,
        least=5,
        message=lag_message,
        remedies=lambda view: [
            Remedy(why="See whether another process uses its device, and whether its flags are those of the others")
        ],
        when="A server samples less than half the median server's tokens per second in half of the last 50 rollouts.",
        why="It holds up the prompts that it has, which are learnt from late. New ones go where least is under way.",
        remedy="Look at that machine; leave the server out.",
        source="SageMaker Debugger load balancing (0.5)",
    ),
    Rule(
        code="ASY008",
        title="The rollout process was started again",
        stage="train",
        level="machine",
        fields=FIELDS,
        needs=("watch/rollout_restarts",),
        test=lambda view: view["watch/rollout_restarts"] > 0,
        message=lambda view: (
            f"The process that samples was started again {times(view['watch/rollout_restarts'])}"
            f" ({view.get('watch/rollout_restart_cause', 'it ended by itself')}). Prompts under way went on with the"
            " tokens that they had."
        ),
        remedies=lambda view: [
            Remedy(
                why="See why it ended (memory of the device or the machine, a signal): events.jsonl has its last lines"
            )
        ],
        when="The rollout process ends while the run goes on.",
        why="A kill for lack of memory, a crash of a kernel or a driver, or somebody's signal.",
        remedy="Nothing is lost. Where memory was short: a smaller decode_batch_size, another rollout_device.",
        source="own judgement",
    ),
    Rule(
        code="ASY009",
        title="Prompts are set aside",
        stage="train",
        level="machine",
        fields=FIELDS,
        needs=("watch/set_aside", "watch/set_aside_count"),
        test=lambda view: view["watch/set_aside_count"] > 0,
        message=lambda view: (
            f"{counted(view['watch/set_aside_count'])} failed again and again and won't be learnt from:"
            f" {view['watch/set_aside']}. Those that follow are in events.jsonl."
        ),
        remedies=lambda view: [
            Remedy(why="Try these prompts by hand: with their tools, and their completions with the reward")
        ],
        when="A prompt has failed more often than rollout_retries allows.",
        why="Something about the prompt itself makes a tool, a reward or the engine fail.",
        remedy="Mend or remove the rows that are named. More than max_set_aside of them end the run.",
        source="NeMo-RL: bounded retries of data; own judgement",
    ),
    Rule(
        code="ASY010",
        title="Prompts fail and are tried again",
        stage="train",
        level="machine",
        fields=FIELDS,
        needs=("rollouts/failed_*",),
        test=lambda view: view["rollouts/failed_*"] > 0.05 * max(view.get("plan/prompts", 1), 1),
        share=0.3,
        least=5,
        message=lambda view: (
            f"{short(view.mean('rollouts/failed_*'))} of {view.get('plan/prompts', 'the')} prompts of a rollout failed"
            f" on average ({view.cause}), and were tried again."
        ),
        remedies=lambda view: [
            *(more_workers(view) if view.cause == "timeout" else []),
            Remedy(why=CAUSES.get(view.cause or "", "See events.jsonl for what failed")),
        ],
        when="More than 5 % of a rollout's prompts fail by one cause, in 30 % of the last 50 rollouts.",
        why="A second attempt costs its time, and hides a fault until it fails each time.",
        remedy="Mend what fails; the cause says where to look.",
        source="PRIME-RL: errored rollouts above 5 %",
    ),
    Rule(
        code="ASY011",
        title="A wait for completions reached its deadline",
        stage="train",
        level="machine",
        severity="error",
        fields=FIELDS,
        needs=("watch/failed", "watch/failed_place", "watch/failed_text"),
        test=lambda view: view["watch/failed"] == "rollouts",
        message=lambda view: view["watch/failed_text"].splitlines()[0],
        remedies=lambda view: [
            Remedy(
                why="See what the message says is awaited; go on with `ft-host train --resume`, which loses nothing"
            ),
            *set_timeout(view),
        ],
        mutes=("SYS005", "SYS001"),
        when="No prompt has got any further for rollout_timeout seconds while a step waited.",
        why="A server that hangs, a tool or a reward without an end, or a rollout process that stands still.",
        remedy="Mend what is named. Raise rollout_timeout only if a single turn may take that long.",
        source="NeMo-RL issue 3488: 3.7 hours after the collector had died",
    ),
]
