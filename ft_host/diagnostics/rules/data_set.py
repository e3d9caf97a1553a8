"""The data set as a whole: padding, rows that are there twice, leaks, unbalanced pairs and labels. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

COIN_TOSS = 0.25  # the share of pairs without a preference that explains why none is learnt
BALANCED = 4 / 3  # arXiv 2402.01306, eq. 8: weighed, good to bad labels are between 1 and this


def padding_remedies(view: View) -> list[Remedy]:
    share = percent(view["data/padding_share"])
    return [
        Remedy(
            why=(
                f"Put rows of like length together, against {share} of padding: set train_sampling_strategy to "
                "group_by_length"
            ),
            patch={"train_sampling_strategy": "group_by_length"},
            again=True,
            expected="less padding, faster steps",
        ),
        *(
            [
                Remedy(
                    why="Lay rows out without padding: set segment_attention from none to auto",
                    patch={"segment_attention": "auto"},
                    safe=True,
                    expected="no padding",
                )
            ]
            if view.config.segment_attention == "none"
            else []
        ),
    ]


def is_leak(view: View) -> bool:
    return view.get("data/eval_overlap_rows", 0) > 0.02


def has_copies(view: View) -> bool:
    return view["data/duplicate_rows"] > 0.1 and not view.by_rollout


def copies_message(view: View) -> str:
    said = []
    if is_leak(view):
        said.append(
            f"{percent(view['data/eval_overlap_rows'])} of the evaluation rows are training rows too: for these,"
            " evaluation measures memory."
        )
    if has_copies(view):
        said.append(
            f"{percent(view['data/duplicate_rows'])} of the training rows are copies of others: an epoch goes through"
            " these more than once."
        )
    return " ".join(said)


def copies_remedies(view: View) -> list[Remedy]:
    out = [Remedy(why="Take the evaluation rows out of the training data")] if is_leak(view) else []
    return out + ([Remedy(why="Leave one row of each kind in the training data")] if has_copies(view) else [])


def lopsided(view: View) -> bool:
    """Whether length tells chosen from rejected, and nothing weighs against it."""
    ratio, longer_share = view.get("data/length_ratio", 1.0), view.get("data/chosen_longer", 0.5)
    if ratio > 1 and vars(view.config).get("ld_alpha") is not None:
        return False
    return (ratio > 1.5 and longer_share > 0.75) or (ratio < 0.67 and longer_share < 0.25)


def near_identical(view: View) -> bool:
    return view.get("data/near_identical_pairs", 0) > 0.02


def pairs_message(view: View) -> str:
    said = []
    if view["data/identical_pairs"] > 0.01:
        said.append(
            f"{percent(view['data/identical_pairs'])} of the pairs have the same completion as chosen and as rejected: "
            "there is nothing to prefer in them."
        )
    if near_identical(view):
        said.append(
            f"In {percent(view['data/near_identical_pairs'])} of the pairs chosen and rejected differ in white space"
            " alone."
        )
    if lopsided(view):
        said.append(
            f"Chosen completions are {short(view['data/length_ratio'])} times as long as rejected ones, and longer in"
            f" {percent(view['data/chosen_longer'])} of the pairs: length may be what is learnt."
        )
    return " ".join(said)


def pairs_remedies(view: View) -> list[Remedy]:
    out = (
        [Remedy(why="Leave out the pairs whose completions are the same")]
        if view["data/identical_pairs"] > 0.01 or near_identical(view)
        else []
    )
    if lopsided(view):
        if "ld_alpha" in vars(view.config) and view["data/length_ratio"] > 1:
            out.append(
                Remedy(
                    why="Set ld_alpha to 0.5, so that tokens beyond the shorter completion count half",
                    patch={"ld_alpha": 0.5},
                    again=True,
                )
            )
        out.append(Remedy(why="Add pairs whose shorter completion is the better one"))
    return out


def label_ratio(view: View) -> float:
    """Good labels to bad ones, with their weights."""
    good = view.config.desirable_weight * view["data/desirable"]
    return good / (view.config.undesirable_weight * view["data/undesirable"])


def is_unbalanced(view: View) -> bool | None:
    """More than threefold off the paper's range, beyond what a sample may be off by chance."""
    good, bad = view["data/desirable"], view["data/undesirable"]
    if good + bad < 64:
        return None
    if not good or not bad:
        return True
    doubt = math.exp(3 * math.sqrt(1 / good + 1 / bad))
    return not 1 / max(3, doubt) <= label_ratio(view) <= BALANCED * max(3, doubt)


def labels_message(view: View) -> str:
    good, bad = view["data/desirable"], view["data/undesirable"]
    if not good or not bad:
        return f"All of {good + bad} labels are {'true' if good else 'false'}: the loss learns from both kinds."
    return (
        f"{good} of {good + bad} labels are true; with desirable_weight {short(view.config.desirable_weight)} and"
        f" undesirable_weight {short(view.config.undesirable_weight)} good completions weigh {label_ratio(view):.2f}"
        " times as much as bad ones, and 1 to 4/3 is advised."
    )


def labels_remedies(view: View) -> list[Remedy]:
    if not view["data/desirable"] or not view["data/undesirable"]:
        return [Remedy(why="Check the label column, and add completions of the other kind")]
    name = "desirable_weight" if label_ratio(view) < 1 else "undesirable_weight"
    now = getattr(view.config, name)
    new = float(f"{now / label_ratio(view) if name == 'desirable_weight' else now * label_ratio(view):.2g}")
    return [Remedy(why=f"Raise {name} from {short(now)} to {short(new)}", patch={name: new}, again=True)]


# ---------------------------------------------------------------- DATA003


def endless_message(view: View) -> str:
    rows = percent(1 - view["data/eos_rows"])
    mark = view.get("data/end_mark")
    if mark is not None:
        return (
            f"{rows} of the texts don't end where generation does; most of these end in {mark}, which neither the run"
            " nor the saved model stops at."
        )
    return f"{rows} of the texts don't end in a supervised end token: from these the model doesn't learn to stop."


def endless_remedies(view: View) -> list[Remedy]:
    mark = view.get("data/end_mark")
    if mark is None:
        return [
            Remedy(
                why=(
                    "Of tokens: put the end token behind each text, with a label of its own. Of conversations: name in "
                    "eos_token the token with which the chat template ends a turn, or set chat_template_path to a "
                    "template that ends turns with a token"
                )
            )
        ]
    return [
        Remedy(
            why=f"Set eos_token to {mark}; it is then an end token of the saved model too",
            patch={"eos_token": mark},
            again=True,
        )
    ]


RULES = [
    Rule(
        code="DATA003",
        title="The end of texts is not supervised",
        stage="before",
        level="rows",
        mutes=("OPT014",),
        needs=("data/eos_rows",),
        test=lambda view: view["data/eos_rows"] < 0.9,
        message=endless_message,
        remedies=endless_remedies,
        when=(
            "Less than nine in ten texts that are whole have an end token as one of the last three supervised tokens: "
            "the tokenizer's EOS, or one of the model's generation config. What ends a turn in the chat template counts"
            " only if it is one of those: generation doesn't stop at any other."
        ),
        why=(
            "The data lacks the token, its label is -100 (often since padding is the same token), the chat template"
            " ends turns with a token that generation doesn't end at, or with none. (Where a template closes a turn"
            " only by the mark of the next one, the host adds that mark to the last turn.)"
        ),
        remedy="Add or unmask the end token; name it in eos_token where it isn't the tokenizer's.",
        source="TRL issue 1623; unsloth issue 416",
    ),
    Rule(
        code="DATA006",
        title="Much of each batch is padding",
        stage="before",
        level="speed",
        needs=("data/padding_share", "plan/kernel"),
        test=lambda view: view["plan/kernel"] == "none" and view["data/padding_share"] > 0.35,
        message=lambda view: (
            f"Rows of a micro-batch are padded to the longest, and {percent(view['data/padding_share'])} of the tokens"
            " are padding: that much of each step is wasted."
        ),
        remedies=padding_remedies,
        when=(
            "Batches are laid out as rectangles (segment_attention none), and more than 35 % of them would be padding."
        ),
        why="Row lengths differ much. Only layouts that pad suffer from it.",
        remedy="Group rows by length, pack them, or let segment_attention find a layout without padding.",
        source="SageMaker Debugger NLPSequenceRatio (50 %)",
    ),
    Rule(
        code="DATA007",
        title="Rows are there more than once",
        stage="before",
        level="rows",
        mutes=("OPT012",),
        needs=("data/duplicate_rows",),
        test=lambda view: is_leak(view) or has_copies(view),
        message=copies_message,
        remedies=copies_remedies,
        when=(
            "More than 2 % of the evaluation rows are training rows, or more than 10 % of the training rows are copies;"
            " case and white space apart. Prompts of rollouts may repeat."
        ),
        why="An evaluation on rows that were trained on says nothing. Copies are learnt by heart first.",
        remedy="Leave copies out; split anew.",
        source="own judgement",
    ),
    Rule(
        code="DATA008",
        title="Pairs that hold no preference, or one of length",
        stage="before",
        level="rows",
        follows_from=("DATA016", "DATA018", "DATA020"),
        mutes=("OPT005",),
        later=("notes", lambda view: view["data/identical_pairs"] < COIN_TOSS),
        needs=("data/identical_pairs",),
        test=lambda view: view["data/identical_pairs"] > 0.01 or near_identical(view) or lopsided(view),
        message=pairs_message,
        remedies=pairs_remedies,
        when=(
            "More than 1 % of pairs have equal completions, or 2 % ones that differ in white space alone; or chosen "
            "ones are on average over 1.5 times (or under 0.67 times) as long as rejected ones, in over three of four "
            "pairs; longer chosen ones not where ld_alpha is set, which weighs against that."
        ),
        why="Equal completions pull both ways. Where length alone tells chosen from rejected, the model learns length.",
        remedy="Leave equal pairs out; balance lengths; ld_alpha.",
        source="arXiv 2410.08847; arXiv 2409.06411",
    ),
    Rule(
        code="DATA009",
        title="Good and bad labels don't balance",
        stage="before",
        level="rows",
        needs=("data/desirable", "data/undesirable"),
        fields=("desirable_weight", "undesirable_weight"),
        mutes=("OPT009", "OPT014"),
        test=is_unbalanced,
        message=labels_message,
        remedies=labels_remedies,
        when="Weighed, the labels are more than threefold off the advised 1 to 4/3, of 64 labels at the least.",
        why="The more frequent kind drowns the other: all likelihoods fall, or all rise.",
        remedy="Set desirable_weight or undesirable_weight so that both kinds weigh alike.",
        source="arXiv 2402.01306, eq. 8",
    ),
]
