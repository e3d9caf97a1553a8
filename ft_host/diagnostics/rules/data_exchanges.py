"""Columns that look exchanged, preferences that contradict their rows or each other, and held-out rows that are nearly
trained on (`ft_host.monitor.rows`, `row_overlap`). Imports no torch.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.data_rows import FEW, SOME, for_instance, share_over
from ft_host.diagnostics.rules.data_set import COIN_TOSS
from ft_host.diagnostics.view import View, percent

# ---------------------------------------------------------------- DATA020, DATA021


def exchange_back(view: View, one: str, other: str) -> Remedy:
    """dataset_columns that exchange two columns, after what it renames already."""
    turned = {one: other, other: one}
    now = view.config.dataset_columns
    renamed = {theirs: turned.get(ours, ours) for theirs, ours in now.items()}
    renamed |= {ours: new for ours, new in turned.items() if ours not in now.values() and ours not in now}
    return Remedy(
        why=f"Exchange {one} and {other}: set dataset_columns to {renamed}",
        patch={"dataset_columns": renamed},
        again=True,
    )


def exchanged_remedies(view: View) -> list[Remedy]:
    if not view["data/exchanged_surely"] or not view.get("data/exchanged_columns", False):
        return [Remedy(why="Look at rows with `ft-host data`; if they are exchanged, exchange the columns or roles")]
    return [exchange_back(view, "prompt", "completion")]


def contradicted_message(view: View) -> str:
    share, by = view["data/contradicted/*"], view["data/contradicted_by/*"]
    where = view.get("data/said/contradicted/*")
    where = f" ({where})" if where else ""
    what = "the label" if view.name("*") == "label" else "which completion is chosen"
    meaning = (
        "they are exchanged"
        if share > 0.8
        else "much as a coin toss would have it"
        if share > 0.35
        else "such rows teach the opposite"
    )
    return f"In {percent(share)} of the rows that can be judged, {by} contradicts {what}{where}: {meaning}."


def contradicted_remedies(view: View) -> list[Remedy]:
    if view["data/contradicted/*"] <= 0.8:
        return [Remedy(why="Find out how preferences came into the rows, and leave contradicted ones out")]
    if "margin" in view["data/contradicted_by/*"]:
        return [Remedy(why="Write the margins anew, chosen less rejected, or exchange the columns if they are right")]
    if view.name("*") == "label":
        return [Remedy(why="Write the column label anew: true is for good completions")]
    if view.get("data/exchanged_columns", False):
        return [exchange_back(view, "chosen", "rejected")]
    return [Remedy(why="Exchange chosen and rejected in the training data")]


# ---------------------------------------------------------------- DATA031


def is_near(view: View) -> bool:
    return view["data/eval_near_rows"] > 0.02 or shared_prompts(view) > 0.1


def shared_prompts(view: View) -> float:
    """The share of held-out prompts that are trained on with another completion."""
    return view.get("data/eval_overlap_prompts", 0) - view["data/eval_overlap_rows"]


def near_message(view: View) -> str:
    said = []
    if view["data/eval_near_rows"] > 0.02:
        said.append(
            f"{percent(view['data/eval_near_rows'])} of the evaluation rows share two thirds of their sentences or "
            "more with a training row, signs and case apart."
        )
    if shared_prompts(view) > 0.1:
        said.append(
            f"{percent(view['data/eval_overlap_prompts'])} of the evaluation prompts are training prompts too; the "
            f"whole row is in {percent(view['data/eval_overlap_rows'])}."
        )
    return f"{' '.join(said)} Evaluation may measure memory."


RULES = [
    Rule(
        code="DATA020",
        title="Prompt and completion look exchanged",
        stage="before",
        level="rows",
        mutes=("OPT014",),
        needs=("data/exchanged", "data/exchanged_by", "data/exchanged_surely"),
        severity="info",
        test=share_over("data/exchanged", 0.5),
        notable=lambda view: view["data/exchanged_surely"],
        message=lambda view: (
            f"Prompt and completion look exchanged: {view['data/exchanged_by']}{for_instance(view, 'exchanged')}."
        ),
        remedies=exchanged_remedies,
        when=(
            "In over half of the rows: completions end as prompts do (=, ->, Answer:), prompts hold the final answer, "
            "or dataset_columns says so. As an info: completions are questions, or prompts are few and short as labels "
            "are."
        ),
        why="Columns or roles mixed up. The model learns to ask.",
        remedy="Exchange them in dataset_columns.",
        source="own judgement",
    ),
    Rule(
        code="DATA021",
        title="Rows contradict their own preference",
        stage="before",
        level="rows",
        later=("notes", lambda view: view["data/contradicted/*"] <= COIN_TOSS),
        mutes=("OPT005", "OPT009", "OPT010", "OPT014"),
        needs=("data/contradicted/*", "data/contradicted_by/*"),
        severity="info",
        test=share_over("data/contradicted/*", FEW),
        notable=share_over("data/contradicted/*", 0.2),
        message=contradicted_message,
        remedies=contradicted_remedies,
        when=(
            "Of the rows that can be judged by a column of theirs (an answer with which one completion alone ends; "
            "scores of both; a margin, which is above 0; renamed columns), over 2 % say the opposite (a warning above "
            "20 %). Labels are judged where bad completions have the answer as often as good ones."
        ),
        why="Chosen and rejected, or true and false, are exchanged or drawn at random. The wrong side is learnt.",
        remedy="Exchange the columns, turn the labels, or judge the rows anew.",
        source="own judgement",
    ),
    Rule(
        code="DATA022",
        title="Preferences contradict each other",
        stage="before",
        level="rows",
        later=("notes", lambda view: view["data/both_ways"] <= COIN_TOSS),
        mutes=("OPT005", "OPT009", "OPT010"),
        needs=("data/both_ways",),
        severity="info",
        test=share_over("data/both_ways", FEW),
        notable=share_over("data/both_ways", SOME),
        message=lambda view: (
            f"{percent(view['data/both_ways'])} of the rows say the opposite of another row: the same completion of "
            "the same prompt is good in one and bad in the other."
        ),
        remedies=lambda view: [Remedy(why="Keep one of the two, or neither")],
        when=(
            "Over 2 % of the pairs are there the other way round too, or of the judged completions with the other label"
            " (a warning above 10 %)."
        ),
        why="The two rows undo each other.",
        remedy="Leave such rows out.",
        source="own judgement",
    ),
    Rule(
        code="DATA031",
        title="Evaluation rows are nearly training rows",
        stage="before",
        level="rows",
        needs=("data/eval_near_rows", "data/eval_overlap_rows"),
        severity="info",
        test=is_near,
        message=near_message,
        remedies=lambda view: [
            Remedy(why="Split by prompt, so that what is held out is like nothing that is trained on")
        ],
        follows_from=("DATA007",),
        when=(
            "Over 2 % of the evaluation rows share two thirds of their sentences of five words or more with a training "
            "row (sentences that over eight training rows have don't count); or over a tenth of the evaluation prompts "
            "are trained on with another completion."
        ),
        why="Copies with other signs or an addition, or a split by completions: what is evaluated has been seen.",
        remedy="Split by prompt.",
        source="own judgement",
    ),
    Rule(
        code="DATA036",
        title="Columns don't belong to their prompts",
        stage="before",
        level="rows",
        needs=("data/misjoined/*", "data/misjoined_by/*"),
        test=lambda view: view["data/misjoined/*"] < 1.3,
        message=lambda view: (
            f"What is in {view.name('*')} seems to belong to other prompts: {view['data/misjoined_by/*']}."
        ),
        remedies=lambda view: [
            Remedy(why="Look at rows with `ft-host data`, and at how prompts and this column were joined")
        ],
        follows_from=("DATA014", "DATA016", "DATA018", "DATA020", "DATA021", "DATA023"),
        mutes=("OPT005", "OPT009", "OPT010", "OPT014"),
        when=(
            "Held-out rows are more like their own prompts than like others' (signs or words, beyond five standard "
            "errors), and training rows aren't; held-out completions end with their row's answer and training ones "
            "don't; or completions share less than 1.3 times as many rare words with their own prompt as with another "
            "row's, where they are made of words of prompts (usual: twice to a hundred times as many)."
        ),
        why="Columns that were sorted, shuffled or filtered apart. The loss falls to that of texts without a question.",
        remedy="Join them anew.",
        source="own judgement",
    ),
]
