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


def stalled_message(view: View) -> str:
    minutes = view["watch/silent_seconds"] / 60
    return (
        f"No step for {minutes:.0f} minutes after step {view['watch/silent_after_step']}: the run stands still. What"
        " its threads are doing is in stacks.txt of the run's folder."
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
        test=lambda view: True,
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
            "No step for the longer of half an hour and ten times the median step; in an evaluation or a checkpoint,"
            " four times as long."
        ),
        why=(
            "A process waits for something that doesn't come: another process that has died, a reward function or a"
            " server that doesn't answer, a disk that hangs."
        ),
        remedy="The stacks of all threads say where it waits. What has been saved is whole.",
        source="SageMaker Debugger StalledTraining (1800 s)",
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
