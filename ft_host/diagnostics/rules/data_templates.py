"""What a person would see who reads what is learnt: completions without a word, and what a chat template leaves out of
rows that are trained on all the same (`ft_host.data.omissions` counts it).

A row of which a template leaves out a content or a call of a tool is refused. Imports no torch.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

EMPTY = 0.02  # the share of completions that may be empty unsaid

# By kind: what is left out, and what to do.
LEFT_OUT = {
    "parts": (
        "parts of what others than the assistant say",
        "Look at a row with `ft-host data`, and set chat_template_path to a template that shows all of it",
    ),
    "thoughts": (
        "thoughts of the assistant (<think> in contents, reasoning_content, reasoning, thinking)",
        "If it drops those of earlier turns on purpose, and would when it is asked, leave it so; a row for each turn "
        "trains on all of them. Otherwise set chat_template_path to a template that shows them, or write them into the "
        "contents as <think>…</think>",
    ),
    "tools": (
        "the tools (the column tools)",
        "Set chat_template_path to a template that shows tools, or describe them in a system message",
    ),
    "names": (
        "the names of messages (name)",
        "If the model should tell speakers apart, write their names into the contents",
    ),
    "beside": (
        "what the assistant says beside a call of a tool",
        "Take it out of the rows, or set chat_template_path to a template that shows both",
    ),
}


def what(view: View) -> str:
    said = LEFT_OUT[view.name("*")][0]
    return f"In {percent(view['data/left_out/*'])} of the rows the chat template leaves out {said}."


RULES = [
    Rule(
        code="DATA013",
        title="The chat template leaves something out of rows",
        stage="before",
        level="rows",
        needs=("data/left_out/*",),
        test=lambda view: view["data/left_out/*"] > 0,
        message=what,
        remedies=lambda view: [Remedy(why=LEFT_OUT[view.name("*")][1])],
        when=(
            "Any row that was looked at has thoughts, tools, names of speakers, or a text beside a call of a tool, that"
            " its text lacks. A row whose contents or calls are left out is refused."
        ),
        why=(
            "Templates show what their model was made for: some have no tools, many drop the thoughts of earlier turns,"
            " some show a call and not what is said beside it. What isn't shown isn't trained on."
        ),
        remedy="Use a template that shows it, write it into the contents, or take it out of the rows.",
        source="own judgement",
    ),
    Rule(
        code="DATA014",
        title="Completions are empty",
        stage="before",
        level="rows",
        mutes=("OPT012", "OPT014"),
        needs=("data/empty_completions", "data/measured"),
        test=lambda view: view["data/empty_completions"] > EMPTY,
        severe=lambda view: view["data/empty_completions"] > 0.5,
        message=lambda view: (
            f"Of {percent(view['data/empty_completions'])} of the completions ({short(view['data/measured'])} rows were"
            " looked at) no more than an end token and white space is learnt: these teach the model to say nothing."
        ),
        remedies=lambda view: [
            Remedy(why="Leave out the rows whose completion is empty, or find out what emptied them; `ft-host data`")
        ],
        when="Over 2 % of the texts that are whole have no supervised token beside special ones and white space.",
        why=(
            "An empty answer is the easiest one to learn: a share of them makes the model end at once for every prompt"
            " that it is unsure of. They come from failed exports, filters that empty a field, and columns mixed up."
        ),
        remedy="Leave such rows out; look for the step that emptied them.",
        source="own judgement",
    ),
]
