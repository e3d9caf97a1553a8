"""Values of columns that a reward compares with, or a loss learns: words for absent values, white space around them,
answers that a reward doesn't pay. Imports no torch.
"""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.data_rows import FEW, SOME, for_instance, share_over
from ft_host.diagnostics.view import View, percent


def void_message(view: View) -> str:
    return (
        f"In {percent(view['data/void/*'])} of the rows {view.name('*')} is a word for an absent value"
        f"{for_instance(view, 'void/*')}: it is learnt, or compared with, as a text."
    )


def more_room(view: View) -> list[Remedy]:
    room = 64 * math.ceil((view["data/room_for/*"] + 1) / 64)  # with an end token
    now = view.config.max_completion_length
    if room <= now:
        return [Remedy(why="Shorten what the longest rows hold, or leave them out")]
    patch = {"max_completion_length": room}
    return [Remedy(why=f"Raise max_completion_length from {now} to {room}", patch=patch, again=True)]


# ---------------------------------------------------------------- DATA033


def unpaid(view: View, limit: float) -> bool:
    alone = max(view.get("data/reward/*/only_whole", 0) - 0.4, view.get("data/reward/*/only_spaced", 0))
    return view["data/reward/*/unpaid"] > limit or alone > SOME


def own_is_told(view: View) -> bool:
    """Whether the data's own completions earn nothing. They may be in another form than the reward wants on purpose."""
    return view.get("data/reward/*/own_unpaid", 0) > 0.5


def unpaid_message(view: View) -> str:
    name, said = view.name("*"), []
    if view["data/reward/*/unpaid"] > 0.1:
        said.append(
            f"Reward {name} gives the row's own answer no more than rubbish in {percent(view['data/reward/*/unpaid'])} "
            "of the rows tried beforehand, and pays it in the others."
        )
    if view.get("data/reward/*/only_whole", 0) > 0.5:
        said.append(
            f"Reward {name} pays for the whole worked answer, word for word, in "
            f"{percent(view['data/reward/*/only_whole'])} of the rows tried beforehand, and not for what it ends in: a "
            "model that says the same in other words earns nothing."
        )
    if own_is_told(view):
        said.append(
            f"Reward {name} gives the rows' own completions no more than rubbish in "
            f"{percent(view['data/reward/*/own_unpaid'])} of the rows tried beforehand, and pays the answer alone."
        )
    if view.get("data/reward/*/only_spaced", 0) > SOME:
        said.append(
            f"Reward {name} pays the row's answer with the white space around it and not without, in "
            f"{percent(view['data/reward/*/only_spaced'])} of the rows tried beforehand."
        )
    return " ".join(said)


def unpaid_remedies(view: View) -> list[Remedy]:
    out = []
    if view.get("data/reward/*/only_whole", 0) > 0.5:
        out.append(Remedy(why="Keep the final answer alone in the column, or let the reward compare what follows ####"))
    if view.get("data/reward/*/only_spaced", 0) > SOME:
        out.append(Remedy(why="Take the white space off the column, or let the reward strip both sides"))
    if own_is_told(view):
        out.append(
            Remedy(why="See whether completion and answer are of one row, and in the form that the reward reads")
        )
    if view["data/reward/*/unpaid"] > 0.1:
        out.append(Remedy(why="Look at the answers of such rows, and mend them or leave the rows out"))
    return out


RULES = [
    Rule(
        code="DATA024",
        title="Texts are words for an absent value",
        stage="before",
        level="rows",
        needs=("data/void/*",),
        severity="info",
        test=share_over("data/void/*", FEW),
        notable=lambda view: view.get("data/never/*", 0) > SOME,
        message=void_message,
        remedies=lambda view: [Remedy(why="Leave such rows out, or fill the column; `ft-host data`")],
        when=(
            "Over 2 % of the rows. A warning where over 10 % are nan, undefined, [deleted] and the like, which are "
            "never meant; None, null and N/A may be labels."
        ),
        why="An absent value that was turned into text on its way.",
        remedy="Leave such rows out.",
        source="own judgement",
    ),
    Rule(
        code="DATA033",
        title="The right answer earns nothing in some rows",
        stage="before",
        level="rows",
        needs=("data/reward/*/unpaid",),
        severity="info",
        test=lambda view: unpaid(view, 0.1) or own_is_told(view),
        notable=lambda view: unpaid(view, 0.25),
        message=unpaid_message,
        remedies=unpaid_remedies,
        when=(
            "Of 8 rows whose answers were tried in usual forms, over a tenth earn no more than rubbish, where the "
            "others earn one and the same (a warning above a quarter); or a worked answer earns as a whole only, and "
            "not by what it ends in, or an answer only with the white space around it. As an info: "
            "the rows' own completions earn nothing in over half of them, where the answer alone does."
        ),
        why=(
            "Answers that are blank, in another form than the others, or whole texts that a reward compares as they "
            "are: no completion of a model can earn there, or every one does."
        ),
        remedy="Mend the column, or compare final answers.",
        source="own judgement",
    ),
    Rule(
        code="DATA037",
        title="Values have white space around them",
        stage="before",
        level="rows",
        needs=("data/spaced/*",),
        severity="info",
        test=share_over("data/spaced/*", FEW),
        message=lambda view: (
            f"In {percent(view['data/spaced/*'])} of the rows {view.name('*')} has white space around what it says"
            f"{for_instance(view, 'spaced/*')}: a reward that compares it as it is finds no completion equal."
        ),
        remedies=lambda view: [Remedy(why="Take it off the column, or see to it that the reward strips both sides")],
        follows_from=("DATA033",),
        when="Over 2 % of the rows, in a column that a reward or the loss reads beside the texts.",
        why="CSV files and splits of texts leave it.",
        remedy="Strip the column.",
        source="own judgement",
    ),
    Rule(
        code="DATA038",
        title="Completions have no room for the data's own answers",
        stage="before",
        level="rows",
        needs=("data/longer_than_room/*", "data/room_for/*"),
        fields=("max_completion_length",),
        severity="info",
        test=share_over("data/longer_than_room/*", SOME),
        notable=share_over("data/longer_than_room/*", 0.5),
        message=lambda view: (
            f"{percent(view['data/longer_than_room/*'])} of what the rows have in {view.name('*')} is longer than "
            f"max_completion_length {view.config.max_completion_length}; 95 of 100 are within "
            f"{view['data/room_for/*']} tokens."
        ),
        remedies=more_room,
        when="Over a tenth of the rows (a warning above a half), with rollouts.",
        why="A completion that is cut can't be as long as what the data holds for right, and seldom earns anything.",
        remedy="Raise max_completion_length.",
        source="own judgement",
    ),
]
