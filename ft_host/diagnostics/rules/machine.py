"""The machine that a run is on: stalls and disks. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, short

LONGEST = 400  # characters of an error in a finding
REMEDIES = {
    "data": "Mend or remove the row that the message names, and {again}",
    "config": "Change the field that the message names, and {again}",
    "hook": "Tell the author of the plugin that the message names; traceback.txt in the run's folder shows where",
    "plugin": "Install another version of the plugin that the message names",
    "disk": "Make room, or make the folder writable, and {again}",
    "process": "See why the process ended (memory, a signal), and {again}",
    "library": "Look at traceback.txt in the run's folder, and {again} once it is mended",
    "rollouts": "See what the message says is awaited, and {again}",
    "run": "Mend what the message names, and {again}",
}


def seconds(value: float) -> str:
    """A time in words: 0.4 seconds, 75 seconds, 12 minutes."""
    return f"{value / 60:.0f} minutes" if value >= 300 else f"{short(value)} seconds"


def stood(view: View, which: str) -> str:
    """ "for 75 seconds after step 12, in a step, which usually takes 0.4 seconds (rewards.py, line 3, in slow)"."""
    usual, during = view.get(f"watch/{which}_usual", 0.0), view.get(f"watch/{which}_during", "a step")
    place = view.get(f"watch/{which}_place", "")
    return (
        f"for {seconds(view[f'watch/{which}_seconds'])} after step {view[f'watch/{which}_after_step']}, in {during}"
        + (f", which usually takes {seconds(usual)}" if usual else "")
        + (f" ({place})" if place else "")
    )


def stalled_message(view: View) -> str:
    return (
        f"Nothing has been done {stood(view, 'silent')}: the run stands still. What its threads are doing is in"
        " stacks.txt of the run's folder."
    )


def passed_message(view: View) -> str:
    times = view["watch/stalls"]
    often = "once" if times == 1 else f"{times} times, the longest time"
    return (
        f"The run has stood still {often} {stood(view, 'stalled')}, and went on. What its threads were doing is in"
        " stacks.txt of the run's folder."
    )


def little_room(view: View) -> bool:
    return view["system/disk_free_mb"] < 2 * view["system/checkpoint_mb"] + 100


def room_message(view: View) -> str:
    free, one = view["system/disk_free_mb"], view["system/checkpoint_mb"]
    return (
        f"{short(free)} MB are free where the run writes, and a checkpoint takes about {short(one)} MB; while one is "
        "written the one before it is still there."
    )


def fewer_checkpoints(view: View) -> list[Remedy]:
    limit = view.config.save_total_limit
    found = [Remedy(why="Free some space, or set output_dir to a larger disk")]
    if limit is None or limit > 1:
        was = "no limit" if limit is None else str(limit)
        found.append(
            Remedy(
                why=f"Keep fewer checkpoints: save_total_limit from {was} to 1",
                patch={"save_total_limit": 1},
                safe=True,
            )
        )
    return found


def ended_message(view: View) -> str:
    step, text = int(view["watch/failed_step"]), view["watch/failed_text"].splitlines()[0]
    text = text.rstrip(".") if len(text) <= LONGEST else text[:LONGEST] + "…"
    when = f"with an error after step {step}" if step else "with an error before it had made a step"
    return f"The run ended {when}: {text}."


def what_to_do(view: View) -> list[Remedy]:
    again = "go on with `ft-host train --resume`" if view["watch/failed_step"] else "start it again"
    return [Remedy(why=REMEDIES[view["watch/failed"]].format(again=again))]


RULES = [
    Rule(
        code="SYS001",
        title="The run stands still",
        stage="train",
        level="machine",
        needs=("watch/silent_seconds", "watch/silent_after_step"),
        severity="error",
        test=lambda view: not view.get("watch/silent_over", False),
        message=stalled_message,
        remedies=lambda view: [
            Remedy(
                why=(
                    "Look at stacks.txt; end the run, and go on from its newest checkpoint with `ft-host train"
                    " --resume`"
                )
            )
        ],
        when=(
            "Nothing is done for the longest of a minute, ten times the median of the last 100 steps, and three times"
            " the longest of them; in an evaluation or a checkpoint the same by earlier ones. Half an hour for the"
            " first of each kind. It passes when the run goes on."
        ),
        why=(
            "A process waits for something that doesn't come: another process that has died, a reward function or a"
            " server that doesn't answer, a disk that hangs."
        ),
        remedy=(
            "The message names where it waits, and the rank that the others wait for. The stacks of all threads are in"
            " stacks.txt, those of rank N in stacks-rank-N.txt. What has been saved is whole."
        ),
        source="SageMaker Debugger StalledTraining",
    ),
    Rule(
        code="SYS008",
        title="The run has stood still",
        stage="train",
        level="speed",
        needs=("watch/stalls", "watch/stalled_seconds", "watch/stalled_after_step"),
        test=lambda view: True,
        message=passed_message,
        remedies=lambda view: [Remedy(why="Look at stacks.txt for what was waited for, before it comes again")],
        when="SYS001 was found, and then the run went on.",
        why=(
            "Something answered late: a server, a reward function, a disk, another rank. The next time it may not"
            " answer at all."
        ),
        remedy="Mend what stacks.txt names, or give it a deadline.",
        source="own judgement",
    ),
    Rule(
        code="SYS003",
        title="Little room for the next checkpoint",
        stage="probe",
        level="machine",
        needs=("system/disk_free_mb", "system/checkpoint_mb"),
        test=little_room,
        message=room_message,
        remedies=fewer_checkpoints,
        when="Less is free than two checkpoints take; looked at before training and after each checkpoint.",
        why=(
            "A checkpoint is written beside the others and takes its place when it is whole, so that one more than are"
            " kept must fit. A full disk ends the run."
        ),
        remedy="Free some space, keep fewer checkpoints, or write elsewhere.",
        source="own judgement",
    ),
    Rule(
        code="SYS005",
        title="The run ended with an error",
        stage="train",
        level="results",
        needs=("watch/failed", "watch/failed_place", "watch/failed_hook", "watch/failed_step", "watch/failed_text"),
        severity="error",
        test=lambda view: True,
        message=ended_message,
        remedies=what_to_do,
        when=(
            "A run ends with an error, whatever raised it. The fact `watch/failed` says what it is about: data, config,"
            " hook, plugin, disk, process, library or run; `watch/failed_place` is the place: file and line, or path."
        ),
        why=(
            "A row that can't be used, a plugin's hook that raises, a disk that is full or gone, a process that was"
            " killed, or a library that refuses. What was learnt until then is in the newest checkpoint."
        ),
        remedy=(
            "Mend what the message names, and start it again, or go on with `ft-host train --resume`. The traceback, if"
            " any, is in traceback.txt of the run's folder."
        ),
        source="own judgement",
    ),
]
