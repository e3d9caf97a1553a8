"""Rows and tokens, before a model is loaded: what `ft_host.monitor.data_stats` tells. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent


def longer(view: View) -> Remedy | None:
    """max_length so that 95 of 100 rows fit."""
    limit = view.config.max_length
    fits = 64 * math.ceil(view.get("data/length_p95", 0) / 64)
    if limit is None or fits <= limit:
        fits = 64 * math.ceil(view.get("data/length_max", 0) / 64)
    fits = min(fits, view.get("model/row_limit", fits))
    if limit is None or fits <= limit:
        return None
    return Remedy(
        why=f"Raise max_length from {limit} to {fits}",
        patch={"max_length": fits},
        again=True,
        expected="rows are whole; memory grows with the longest rows",
    )


# ---------------------------------------------------------------- DATA001, DATA005


def nothing_supervised(view: View) -> str:
    rows = view["data/unsupervised_rows"]
    if rows <= 0.01:
        return (
            f"{percent(view['data/supervised_fraction'])} of the tokens are supervised: nothing is learnt from the"
            f" other {percent(1 - view['data/supervised_fraction'])}."
        )
    cut = view.get("data/truncated_rows", 0)
    why = f"; max_length {view.config.max_length} cuts {percent(cut)} of the rows" if cut else ""
    return f"{percent(rows)} of the rows have no supervised token, so that nothing is learnt from them{why}."


def supervised_remedies(view: View) -> list[Remedy]:
    out = []
    if view.get("data/truncated_rows", 0) > 0:
        out += [each for each in [longer(view)] if each]
        if view.config.truncation_mode == "keep_start":
            out.append(
                Remedy(
                    why="Keep the ends of rows: set truncation_mode to keep_end",
                    patch={"truncation_mode": "keep_end"},
                    again=True,
                )
            )
    if view.config.__dict__.get("assistant_only_loss"):
        out.append(
            Remedy(
                why="Check that the messages have the role assistant, or set assistant_only_loss to false",
                patch={"assistant_only_loss": False},
                again=True,
            )
        )
    out.append(Remedy(why="Look at a row with `ft-host data`: which of its labels are not -100"))
    return out


def cut_message(view: View) -> str:
    limit, rows = view.config.max_length, percent(view["data/truncated_rows"])
    lengths = f"the median is {view['data/length_p50']}, 95 of 100 are within {view['data/length_p95']}"
    if view.by_rollout:
        return f"{rows} of the prompts are longer than max_length {limit} and are left out: {lengths}."
    return (
        f"{rows} of the rows are longer than max_length {limit}: {lengths}. ft-host cuts them, and "
        f"{percent(view['data/truncated_tokens'])} of all tokens are lost."
    )


def cut_remedies(view: View) -> list[Remedy]:
    out = [each for each in [longer(view)] if each]
    if not view.by_rollout:
        packed = view.config.packing and view.config.packing_strategy == "bfd" and "loss_type" in vars(view.config)
        if packed and isinstance(view.config.loss_type, str) and "completion_only_loss" in vars(view.config):
            out.append(
                Remedy(
                    why="Split long rows rather than cut them: set packing_strategy to bfd_split",
                    patch={"packing_strategy": "bfd_split"},
                    again=True,
                )
            )
        if view.config.truncation_mode == "keep_start":
            out.append(
                Remedy(
                    why="Keep the ends of rows, where answers are: set truncation_mode to keep_end",
                    patch={"truncation_mode": "keep_end"},
                    again=True,
                )
            )
    out.append(Remedy(why="Leave long rows out of the data, or split them"))
    return out


def share_over(name: str, limit: float):
    return lambda view: view[name] > limit


RULES = [
    Rule(
        code="DATA001",
        title="Rows without a supervised token",
        stage="before",
        level="rows",
        later=("notes", lambda view: view["data/unsupervised_rows"] <= 0.1),
        needs=("data/unsupervised_rows", "data/supervised_fraction"),
        test=lambda view: view["data/unsupervised_rows"] > 0.01 or view["data/supervised_fraction"] < 0.01,
        severe=share_over("data/unsupervised_rows", 0.1),
        message=nothing_supervised,
        remedies=supervised_remedies,
        mutes=("OPT", "standstill"),
        when=(
            "More than 1 % of rows have no supervised token (an error above 10 %), or less than 1 % of all tokens is"
            " one."
        ),
        why=(
            "All labels of a row are -100: the prompt fills max_length, no message is the assistant's or all of them "
            "have weight 0, or the labels of the data are wrong. Such rows cost time and teach nothing."
        ),
        remedy="Raise max_length, keep the ends of rows, mend the roles, the weights or the labels.",
        source="TRL issues 4879, 4201",
    ),
    Rule(
        code="DATA002",
        title="Prompts in training aren't those of generation",
        stage="before",
        level="rows",
        mutes=("OPT014",),
        needs=("data/prompt_mismatch_rows",),
        test=lambda view: view["data/prompt_mismatch_rows"] >= 0.1,
        message=lambda view: (
            f"In {percent(view['data/prompt_mismatch_rows'])} of the rows the prompt has other tokens in training than "
            "generation will begin with: what is learnt is not what is asked later."
        ),
        remedies=lambda view: [
            Remedy(
                why=(
                    "Use a chat template whose generation prompt is how the assistant's turns begin"
                    " (chat_template_path)"
                )
            )
        ],
        when="In at least a tenth of the rows.",
        why=(
            "The chat template renders a conversation in another way when it asks for an answer than when it shows one."
            " The model then meets prompts that it was not trained on."
        ),
        remedy="Mend the chat template.",
        source="TRL issue 2059; soup data doctor",
    ),
    Rule(
        code="DATA004",
        title="Texts begin with two BOS",
        stage="before",
        level="rows",
        later=("notes", lambda view: view["data/double_bos_rows"] < 0.5),
        mutes=("OPT009",),  # held-out rows that begin with one are no longer what is trained on
        needs=("data/double_bos_rows",),
        test=share_over("data/double_bos_rows", 0),
        message=lambda view: (
            f"{percent(view['data/double_bos_rows'])} of the rows begin with the token for the beginning twice;"
            " generation begins with one."
        ),
        remedies=lambda view: [Remedy(why="Take one of them out of the data or of the chat template")],
        when="In any row that was looked at.",
        why=(
            "A template writes the token and the tokenizer adds it again. It costs a little quality, and generation "
            "begins with one only."
        ),
        remedy="Remove it from the data; with text or messages ft-host never doubles it.",
        source="alignment-handbook issue 127; open-r1 issue 462",
    ),
    Rule(
        code="DATA005",
        title="Rows are cut at max_length",
        stage="before",
        level="rows",
        needs=("data/truncated_rows", "data/truncated_tokens", "data/length_p50", "data/length_p95"),
        test=lambda view: view["data/truncated_rows"] > 0.05,
        severe=share_over("data/truncated_rows", 0.5),
        message=cut_message,
        remedies=cut_remedies,
        when="More than 5 % of the rows (an error above 50 %).",
        why="What is beyond max_length is not seen: with keep_start the ends of answers, and their end token.",
        remedy="Raise max_length, split rows, or leave long ones out.",
        source="unsloth issue 2669; thresholds by own judgement",
    ),
    Rule(
        code="DATA011",
        title="Packed documents see each other",
        stage="before",
        level="rows",
        needs=("data/measured",),
        severity="info",
        test=lambda view: view.config.packing and view.config.packing_strategy == "wrapped",
        message=lambda view: (
            "packing_strategy wrapped joins rows end to end: a document sees those before it in its block."
        ),
        remedies=lambda view: [
            Remedy(
                why="Set packing_strategy from wrapped to bfd, where documents never see each other",
                patch={"packing_strategy": "bfd"},
                again=True,
            )
        ],
        when="packing with packing_strategy wrapped.",
        why="Usual for pretraining; for instructions it mixes conversations that have nothing to do with each other.",
        remedy="Use bfd.",
        source="TRL issue 3910",
    ),
    Rule(
        code="DATA012",
        title="Texts have tokens that the tokenizer doesn't know",
        stage="before",
        level="rows",
        mutes=("OPT012", "OPT014"),
        needs=("data/unknown_tokens",),
        test=share_over("data/unknown_tokens", 0.01),
        severe=share_over("data/unknown_tokens", 0.1),
        message=lambda view: (
            f"{percent(view['data/unknown_tokens'])} of the tokens are the one for what is unknown: what the texts say"
            " there is lost."
        ),
        remedies=lambda view: [
            Remedy(why="Check that the tokenizer belongs to this data: its language, digits and signs")
        ],
        when="More than 1 % of the tokens (an error above 10 %).",
        why="The vocabulary lacks what the texts are written in.",
        remedy="Use the model with its own tokenizer, or a model whose tokenizer knows the language.",
        source="own judgement",
    ),
]
