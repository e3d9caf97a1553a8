"""What a person would see in single texts: values that are none, broken characters, what was left in them, texts that
were cut or repeat themselves, and rows in an order (`ft_host.monitor.rows`). Imports no torch.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.data_rows import FEW, LOOK, MANY, SOME, TEXTS, for_instance, share_over
from ft_host.diagnostics.view import View, percent

BROKEN = {
    "replaced": ("the sign for a character that couldn't be read (U+FFFD)", "Read the source in its own encoding"),
    "misread": (
        "UTF-8 that was read as another encoding",
        "Read the source as UTF-8; ftfy mends texts that are spoilt already",
    ),
    "control": ("control characters", "Take them out"),
}
LEFT_OVER = {
    "marks": (
        "have a chat template's mark within a message, where the template adds its own",
        "Take the marks out of the messages",
    ),
    "foreign_marks": (
        "have a mark of a chat template that isn't this tokenizer's: it is learnt as a text of several tokens",
        "Take the marks out, or use those of this tokenizer",
    ),
    "slots": ("have a slot of a template that wasn't filled", "Fill the template's slots with the row's columns"),
    "turns": ("go on with the next turn of a conversation within a completion", "Cut completions where they end"),
    "html": ("have HTML in them", "Turn HTML into text, unless it is the subject"),
}


def left_over_message(view: View) -> str:
    kind = view.name("*")
    return f"{percent(view['data/left_over/*'])} of the rows {LEFT_OVER[kind][0]}{for_instance(view, 'left_over/*')}."


def left_over_is_grave(view: View) -> bool:
    return view["data/left_over/*"] > MANY and view.name("*") in ("marks", "foreign_marks", "slots", "turns")


def sorted_matters(view: View) -> bool:
    """Whether rows come in the order of the data."""
    return view["data/sorted/*"] > 0.7 and (
        view.config.train_sampling_strategy == "sequential" or view.config.dataset_streaming
    )


# ---------------------------------------------------------------- DATA023


def same_is_told(view: View) -> bool:
    """All rows alike. A prompt may be meant so, and a rejected text may."""
    return view["data/same/*"] > SOME


def same_is_grave(view: View) -> bool:
    column, share = view.name("*"), view["data/same/*"]
    if column in ("prompt", "rejected"):
        return False
    return share > 0.5 or (share > MANY and view["data/same_size/*"] >= 40)


def same_message(view: View) -> str:
    column, share = view.name("*"), view["data/same/*"]
    who = "all rows have" if share == 1 else f"{percent(share)} of the rows have"
    effect = (
        "the question may be missing"
        if column == "prompt"
        else "it can be learnt without reading the prompt"
        if column in TEXTS
        else "what reads it can't tell one row from another"
    )
    return f"In {column} {who} the same text{for_instance(view, 'same/*')}: {effect}."


RULES = [
    Rule(
        code="DATA023",
        title="Many rows have the same text",
        stage="before",
        level="rows",
        needs=("data/same/*", "data/same_size/*"),
        severity="info",
        test=same_is_told,
        notable=same_is_grave,
        message=same_message,
        remedies=lambda view: [LOOK],
        mutes=("OPT012",),
        when=(
            "A column is the same in all rows, or has one text in over a tenth of them that is no label: one of 40 "
            "characters or more, or one among others that differ from each other. A warning above a half, and above a "
            "third for long ones; of prompts and rejected completions an info."
        ),
        why=(
            "What doesn't depend on the prompt is learnt without reading it. Failed requests leave such texts, and "
            "columns that were filled with one value."
        ),
        remedy="Leave such rows out, or find the column that was meant.",
        source="own judgement",
    ),
    Rule(
        code="DATA025",
        title="Characters are broken",
        stage="before",
        level="rows",
        needs=("data/broken/*",),
        severity="info",
        test=share_over("data/broken/*", 0.01),
        notable=share_over("data/broken/*", SOME),
        message=lambda view: (
            f"{percent(view['data/broken/*'])} of the rows have {BROKEN[view.name('*')][0]}"
            f"{for_instance(view, 'broken/*')}."
        ),
        remedies=lambda view: [Remedy(why=BROKEN[view.name("*")][1])],
        when="Over 1 % of the rows that were looked at (a warning above 10 %).",
        why="A file was read in another encoding than it was written in. The model learns to write the broken form.",
        remedy="Read the source anew.",
        source="own judgement",
    ),
    Rule(
        code="DATA026",
        title="Something was left in the texts",
        stage="before",
        level="rows",
        needs=("data/left_over/*",),
        severity="info",
        test=share_over("data/left_over/*", 0.05),
        notable=left_over_is_grave,
        message=left_over_message,
        remedies=lambda view: [Remedy(why=LEFT_OVER[view.name("*")][1])],
        when=(
            "Over 5 % of the rows have marks of a chat template within messages, marks that this tokenizer doesn't "
            "know, slots such as {question}, the next turn of a conversation within a completion, or HTML outside of "
            "code. A warning where over 30 % have marks, unfilled slots or further turns."
        ),
        why=(
            "Texts that went through a template already, through none, or come from web pages. Marks in a message end "
            "turns where none ends."
        ),
        remedy="Take it out of the texts.",
        source="own judgement",
    ),
    Rule(
        code="DATA027",
        title="Texts were cut before they came here",
        stage="before",
        level="rows",
        needs=("data/cut/*", "data/cut_size/*"),
        severity="info",
        test=share_over("data/cut/*", 0.05),
        notable=lambda view: view["data/cut/*"] > MANY and view.name("*") != "text",
        message=lambda view: (
            f"{percent(view['data/cut/*'])} of the texts in {view.name('*')} are {view['data/cut_size/*']} "
            f"long and end in mid-sentence{for_instance(view, 'cut/*')}: the model learns to stop there."
        ),
        remedies=lambda view: [Remedy(why="Make the rows again from whole texts, or leave out those of this length")],
        when=(
            "Over a tenth are exactly as long as the longest, a fourth as many or fewer have any other length, and "
            "they don't end as sentences do (a warning above 30 %; of plain texts, which may be pieces "
            "on purpose, an info)."
        ),
        why="A limit of characters somewhere before. An end token behind half an answer teaches to end there.",
        remedy="Make the rows again without the limit.",
        source="own judgement",
    ),
    Rule(
        code="DATA028",
        title="Some rows are in another script",
        stage="before",
        level="rows",
        needs=("data/script/*", "data/script_usual/*"),
        severity="info",
        test=share_over("data/script/*", FEW),
        message=lambda view: (
            f"{percent(view['data/script/*'])} of the texts in {view.name('*')} aren't in "
            f"{view['data/script_usual/*']} script, as most are{for_instance(view, 'script/*')}."
        ),
        remedies=lambda view: [Remedy(why="If the model isn't meant to mix languages, leave these rows out")],
        when="Over 2 % of a column, where over 60 % are in one script.",
        why="Rows of another source or language. Completions in another language than asked for are learnt too.",
        remedy="Leave them out, or say in the prompt which language is wanted.",
        source="own judgement",
    ),
    Rule(
        code="DATA029",
        title="Rows are in the order of their kinds",
        stage="before",
        level="rows",
        mutes=("OPT001", "OPT003"),
        needs=("data/sorted/*",),
        test=sorted_matters,
        message=lambda view: (
            f"Rows of one {view.name('*')} stand together (of the changes that chance would make "
            f"{percent(1 - view['data/sorted/*'])} are there), and the run takes rows in the order of the data: steps "
            "see one kind after the other."
        ),
        remedies=lambda view: (
            [
                Remedy(
                    why="Shuffle: set train_sampling_strategy from sequential to random",
                    patch={"train_sampling_strategy": "random"},
                    again=True,
                )
            ]
            if view.config.train_sampling_strategy == "sequential" and not view.config.dataset_streaming
            else [Remedy(why="Shuffle the data before the run: a stream is read in its order")]
        ),
        when=(
            "train_sampling_strategy sequential or a stream, and like labels, or like completions of ten kinds at "
            "most, follow each other over 70 % more often than by chance."
        ),
        why="The model forgets one kind while it learns the next, and each step's gradient is of one kind.",
        remedy="Shuffle.",
        source="own judgement",
    ),
    Rule(
        code="DATA030",
        title="Texts repeat themselves",
        stage="before",
        level="rows",
        needs=("data/loops/*",),
        severity="info",
        test=share_over("data/loops/*", FEW),
        notable=share_over("data/loops/*", MANY),
        message=lambda view: (
            f"{percent(view['data/loops/*'])} of the texts in {view.name('*')} say one thing again and again"
            f"{for_instance(view, 'loops/*')}."
        ),
        remedies=lambda view: [LOOK],
        when="Over 2 % of the texts of 200 characters or more can be compressed to a tenth (a warning above 30 %).",
        why="Samples of a model that ran in a loop, or a field that was joined with itself.",
        remedy="Leave such rows out.",
        source="own judgement",
    ),
    Rule(
        code="DATA034",
        title="Texts end in the middle of a word",
        stage="before",
        level="rows",
        needs=("data/mid_word/*",),
        severity="info",
        test=share_over("data/mid_word/*", 0.05),
        notable=lambda view: view["data/mid_word/*"] > 0.2 and view.name("*") != "text",
        message=lambda view: (
            f"{percent(view['data/mid_word/*'])} of the texts in {view.name('*')} end in a piece of a word"
            f"{for_instance(view, 'mid_word/*')}: they were cut, and the model learns to stop anywhere."
        ),
        remedies=lambda view: [Remedy(why="Make the rows again from whole texts, or leave out those that were cut")],
        follows_from=("DATA027",),
        when=(
            "Over 5 % of a column end in letters that are no word anywhere else in it and with which one begins; of "
            "texts of 8 words or more (a warning above 20 %; of plain texts an info)."
        ),
        why="A limit of tokens somewhere before, or samples that ran out of room.",
        remedy="Make the rows again without the limit.",
        source="own judgement",
    ),
]
