"""What a person would see who scrolls through the rows: columns that are blank, copied, exchanged, given away or
contradicted (`ft_host.monitor.rows`). What spoils a good part of the rows is a warning, a peculiarity an info.

Imports no torch.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

FEW, SOME, MANY = 0.02, 0.1, 0.3  # shares of rows: unsaid below the first, certain trouble from the last
TEXTS = ("prompt", "completion", "chosen", "rejected", "text")
LOOK = Remedy(why="Look at such rows with `ft-host data`, and mend or leave them out")


def share_over(name: str, limit: float):
    return lambda view: view[name] > limit


def for_instance(view: View, name: str) -> str:
    said = view.get(f"data/said/{name}")
    return f", for instance {said}" if said else ""


# ---------------------------------------------------------------- DATA016


def blank_is_grave(view: View) -> bool:
    """A blank text spoils its row. A further column may be meant to be blank where there are several rewards."""
    share = view["data/blank/*"]
    if view.name("*") in TEXTS:
        return share > SOME
    return share > MANY and len(vars(view.config).get("reward", ())) < 2


def blank_message(view: View) -> str:
    column, share = view.name("*"), percent(view["data/blank/*"])
    effect = {
        "prompt": "the model learns, or is asked, without a question",
        "chosen": "nothing is preferred there",
        "rejected": "nothing is rejected there",
        "completion": "nothing is said there",
    }.get(column, "what reads it has nothing to go by")
    return f"In {share} of the rows {column} is blank: {effect}{for_instance(view, 'blank/*')}."


# ---------------------------------------------------------------- DATA018, DATA019


def copied_message(view: View) -> str:
    column, share = view.name("*"), percent(view["data/copied/*"])
    return (
        f"In {share} of the rows {column} repeats the whole prompt{for_instance(view, 'copied/*')}: what is learnt is "
        "to say the question once more."
    )


def given_message(view: View) -> str:
    column, share = view.name("*"), percent(view["data/given_away/*"])
    what = "the row's own completion" if column in TEXTS else f"the row's own {column}"
    return (
        f"In {share} of the rows the prompt gives {what} away{for_instance(view, 'given_away/*')}: it can be copied, "
        "and nothing else has to be learnt."
    )


RULES = [
    Rule(
        code="DATA015",
        title="Rows are left out",
        stage="before",
        level="rows",
        needs=("data/dropped/*", "data/measured"),
        severity="info",
        test=share_over("data/dropped/*", FEW),
        notable=share_over("data/dropped/*", SOME),
        message=lambda view: (
            f"{percent(view['data/dropped/*'])} of {short(view['data/measured'])} rows that were looked at are left "
            f"out: {view.name('*')}."
        ),
        remedies=lambda view: [LOOK],
        when=(
            "Over 2 % of the rows that were looked at (a warning above 10 %), for a reason that no other rule is about."
        ),
        why="The method can't use them. What remains may be another selection than you meant.",
        remedy="Mend them, or take them out yourself.",
        source="own judgement",
    ),
    Rule(
        code="DATA016",
        title="A column is blank",
        stage="before",
        level="rows",
        needs=("data/blank/*",),
        severity="info",
        test=share_over("data/blank/*", FEW),
        notable=blank_is_grave,
        message=blank_message,
        follows_from=("DATA020",),
        remedies=lambda view: [Remedy(why="Leave out such rows, or find out what emptied them; `ft-host data`")],
        when=(
            "Over 2 % of the rows have nothing, white space or only special tokens in prompt, chosen, rejected, a "
            "judged completion, or a column that the loss or a reward reads. A warning above 10 %; of further columns "
            "above a third, and not with several rewards, where a row may be of one of them."
        ),
        why=(
            "Failed exports, joins and filters leave blanks. Pairs with a blank side are left out; a blank prompt is "
            "trained on; a blank answer earns whatever the reward gives for it."
        ),
        remedy="Leave such rows out; look for the step that emptied them.",
        source="own judgement",
    ),
    Rule(
        code="DATA017",
        title="Completions are thoughts without an answer",
        stage="before",
        level="rows",
        mutes=("OPT014",),
        needs=("data/only_thoughts",),
        severity="info",
        test=share_over("data/only_thoughts", FEW),
        notable=share_over("data/only_thoughts", SOME),
        message=lambda view: (
            f"{percent(view['data/only_thoughts'])} of the completions have thoughts and nothing after them"
            f"{for_instance(view, 'only_thoughts')}: the model learns to think and not to answer."
        ),
        remedies=lambda view: [
            Remedy(why="Leave such rows out; if they were cut or their answers are elsewhere, make them whole")
        ],
        when="Over 2 % of the completions (a warning above 10 %). Calls of tools are answers.",
        why="Texts that were cut while thinking, or answers that stayed in another column.",
        remedy="Leave such rows out, or add the answers.",
        source="own judgement",
    ),
    Rule(
        code="DATA018",
        title="Completions repeat the prompt",
        stage="before",
        level="rows",
        mutes=("OPT012", "OPT014"),
        needs=("data/copied/*",),
        severity="info",
        test=share_over("data/copied/*", 0.05),
        notable=lambda view: view.get("data/copied_surely/*", 0) > MANY,
        message=copied_message,
        follows_from=("DATA020",),
        remedies=lambda view: [Remedy(why="Take the prompt out of the column, which holds what comes after it alone")],
        when=(
            "Over 5 % of the rows (a warning where over 30 % of them have a prompt of 20 characters or more, or one "
            "that ends in a sign such as = or ?, and repeat it). To say short material once more may be the task."
        ),
        why=(
            "Where a column holds whole texts, the prompt stands in a row twice: once as the prompt, once to be "
            "learnt. The model learns to repeat the question before it answers."
        ),
        remedy="Give the rest of the text alone, or the whole as a text without a prompt.",
        source="own judgement",
    ),
    Rule(
        code="DATA019",
        title="Prompts give the answer away",
        stage="before",
        level="rows",
        mutes=("OPT012",),
        needs=("data/given_away/*",),
        severity="info",
        test=share_over("data/given_away/*", 0),
        notable=share_over("data/given_away/*", SOME),
        message=given_message,
        remedies=lambda view: [Remedy(why="Take the answer out of the prompts")],
        follows_from=("DATA020",),
        when=(
            "The prompt ends with the row's answer in half of the rows, or has it behind a word for it (answer:, "
            "solution:, ####) in 5 % of them, beyond what another row's prompt would have by chance. A warning above "
            "10 %. An answer that stands elsewhere in a context is no trouble."
        ),
        why="A leak: training looks well, and the model can't answer what it isn't told.",
        remedy="Build prompts from the question alone.",
        source="own judgement",
    ),
    Rule(
        code="DATA032",
        title="There is nothing left to learn from the first step on",
        stage="probe",
        level="rows",
        needs=("start/loss", "start/mean_token_accuracy"),
        severity="info",
        test=lambda view: 0 <= view["start/loss"] < 0.02 and view["start/mean_token_accuracy"] > 0.99,
        notable=lambda view: view["start/loss"] < 1e-4,  # a model that is good at the task may begin at a thousandth
        message=lambda view: (
            f"Before any update the loss is {short(view['start/loss'])}, and "
            f"{percent(view['start/mean_token_accuracy'])} of the supervised tokens are predicted: the model knows "
            "already what these rows teach, or what is supervised follows from the prompt alone."
        ),
        remedies=lambda view: [
            Remedy(
                why="Look at which tokens are supervised, with `ft-host data`, and whether prompts hold the answers"
            ),
            Remedy(why="If the model was trained on these rows, train it on others"),
        ],
        mutes=("OPT005", "OPT012"),  # updates that are too large ruin what the model knows
        when="The loss of step 1 is below 0.02 and over 99 % of its tokens are predicted (a warning below 0.0001).",
        why=(
            "Only an end token or a fixed text is supervised, answers stand in the prompts, or the model was trained "
            "on these rows. Updates change nothing that matters."
        ),
        remedy="Look at the labels, and at where the model comes from.",
        source="own judgement",
    ),
    Rule(
        code="DATA035",
        title="Conversations end with a question",
        stage="before",
        level="rows",
        needs=("data/unanswered",),
        severity="info",
        test=share_over("data/unanswered", 0.05),
        notable=share_over("data/unanswered", MANY),
        message=lambda view: (
            f"{percent(view['data/unanswered'])} of the conversations end with a message of the user"
            f"{for_instance(view, 'unanswered')}: its answer isn't there to be learnt."
        ),
        remedies=lambda view: [Remedy(why="Leave out the last message, or find out where its answer is")],
        follows_from=("DATA020",),
        when="Over 5 % of the conversations that are imitated (a warning above 30 %).",
        why="The answer is in another column, or was left out on the way; or roles are exchanged.",
        remedy="Add the answers, or leave the last message out.",
        source="own judgement",
    ),
]
