"""Rows and tokens, before a model is loaded: what `ft_host.monitor.data_stats` and `check_rewards` tell. Imports no
torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

BALANCED = 4 / 3  # arXiv 2402.01306, eq. 8: weighed, good to bad labels are between 1 and this


def longer(view: View) -> Remedy | None:
    """max_length so that 95 of 100 rows fit."""
    limit = view.config.max_length
    fits = 64 * math.ceil(view.get("data/length_p95", 0) / 64)
    if limit is None or fits <= limit:
        fits = 64 * math.ceil(view.get("data/length_max", 0) / 64)
    if limit is None or fits <= limit:
        return None
    return Remedy(
        why=f"Raise max_length from {limit} to {fits}",
        patch={"max_length": fits},
        again=True,
        expected="rows are whole; memory grows with the longest rows",
    )


def is_rollout(view: View) -> bool:
    return "max_reward_failures" in vars(view.config)


# ---------------------------------------------------------------- DATA001, DATA005


def nothing_supervised(view: View) -> str:
    rows = view["data/unsupervised_rows"]
    if rows <= 0.01:
        return (
            f"Only {percent(view['data/supervised_fraction'])} of the tokens are supervised: nearly all of the work of"
            " a step is for tokens that nothing is learnt from."
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
                why="Check that the chat template marks the assistant's turns, or set assistant_only_loss to false",
                patch={"assistant_only_loss": False},
                again=True,
            )
        )
    out.append(Remedy(why="Look at a row with `ft-host data`: which of its labels are not -100"))
    return out


def cut_message(view: View) -> str:
    limit, rows = view.config.max_length, percent(view["data/truncated_rows"])
    lengths = f"the median is {view['data/length_p50']}, 95 of 100 are within {view['data/length_p95']}"
    if is_rollout(view):
        return f"{rows} of the prompts are longer than max_length {limit} and are left out: {lengths}."
    return (
        f"{rows} of the rows are longer than max_length {limit}: {lengths}. ft-host cuts them, and "
        f"{percent(view['data/truncated_tokens'])} of all tokens are lost."
    )


def cut_remedies(view: View) -> list[Remedy]:
    out = [each for each in [longer(view)] if each]
    if not is_rollout(view):
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


# ---------------------------------------------------------------- DATA006 to DATA009


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
    return view["data/duplicate_rows"] > 0.1 and not is_rollout(view)


def copies_message(view: View) -> str:
    said = []
    if is_leak(view):
        said.append(
            f"{percent(view['data/eval_overlap_rows'])} of the evaluation rows are training rows too: evaluation"
            " measures memory, and will not show overfitting."
        )
    if has_copies(view):
        said.append(
            f"{percent(view['data/duplicate_rows'])} of the training rows are copies of others: an epoch goes through"
            " them several times."
        )
    return " ".join(said)


def copies_remedies(view: View) -> list[Remedy]:
    out = [Remedy(why="Take the evaluation rows out of the training data")] if is_leak(view) else []
    return out + ([Remedy(why="Leave one row of each kind in the training data")] if has_copies(view) else [])


def lopsided(view: View) -> bool:
    ratio, longer_share = view.get("data/length_ratio", 1.0), view.get("data/chosen_longer", 0.5)
    return (ratio > 1.5 and longer_share > 0.75) or (ratio < 0.67 and longer_share < 0.25)


def pairs_message(view: View) -> str:
    said = []
    if view["data/identical_pairs"] > 0.01:
        said.append(
            f"{percent(view['data/identical_pairs'])} of the pairs have the same completion as chosen and as rejected: "
            "there is nothing to prefer in them."
        )
    if lopsided(view):
        said.append(
            f"Chosen completions are {view['data/length_ratio']:.2f} times as long as rejected ones, and longer in"
            f" {percent(view['data/chosen_longer'])} of the pairs: length alone tells them apart, and is what may be"
            " learnt."
        )
    return " ".join(said)


def pairs_remedies(view: View) -> list[Remedy]:
    out = (
        [Remedy(why="Leave out the pairs whose completions are the same")]
        if view["data/identical_pairs"] > 0.01
        else []
    )
    if lopsided(view):
        if "ld_alpha" in vars(view.config) and view.config.ld_alpha is None and view["data/length_ratio"] > 1:
            out.append(
                Remedy(
                    why="Set ld_alpha to 0.5, so that tokens beyond the shorter completion count half",
                    patch={"ld_alpha": 0.5},
                    again=True,
                )
            )
        out.append(Remedy(why="Add pairs whose shorter completion is the better one"))
    return out


def weighed(view: View) -> float:
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
    return not 1 / max(3, doubt) <= weighed(view) <= BALANCED * max(3, doubt)


def labels_message(view: View) -> str:
    good, bad = view["data/desirable"], view["data/undesirable"]
    if not good or not bad:
        return f"All of {good + bad} labels are {'true' if good else 'false'}: the loss learns from both kinds."
    return (
        f"{good} of {good + bad} labels are true; with desirable_weight {short(view.config.desirable_weight)} and"
        f" undesirable_weight {short(view.config.undesirable_weight)} good completions weigh {weighed(view):.2f} times"
        " as much as bad ones, and 1 to 4/3 is advised."
    )


def labels_remedies(view: View) -> list[Remedy]:
    if not view["data/desirable"] or not view["data/undesirable"]:
        return [Remedy(why="Check the label column, and add completions of the other kind")]
    name = "desirable_weight" if weighed(view) < 1 else "undesirable_weight"
    now = getattr(view.config, name)
    new = float(f"{now / weighed(view) if name == 'desirable_weight' else now * weighed(view):.2g}")
    return [Remedy(why=f"Raise {name} from {short(now)} to {short(new)}", patch={name: new}, again=True)]


# ---------------------------------------------------------------- DATA010


def reward_is_broken(view: View) -> bool:
    if view["data/reward/*/failed"] > 0.25 or view.get("data/reward/*/not_finite", 0) > 0:
        return True
    return bool(view.get("data/reward/*/whole")) and view.get("data/reward/*/spread", 1.0) == 0


def reward_message(view: View) -> str:
    name = view.name("*")
    said = view.get("data/reward/*/said")
    why = f", for instance: {said}" if said else ""
    if view["data/reward/*/failed"] > 0.25:
        return f"Reward {name} fails for {percent(view['data/reward/*/failed'])} of completions tried beforehand{why}."
    if view.get("data/reward/*/not_finite", 0) > 0:
        return f"Reward {name} isn't finite for {percent(view['data/reward/*/not_finite'])} of completions{why}."
    return (
        f"Reward {name} is {short(view['data/reward/*/value'])} for the data's own answers as for empty and random"
        " text: there is nothing in it to learn from."
    )


def share_over(name: str, limit: float):
    return lambda view: view[name] > limit


RULES = [
    Rule(
        code="DATA001",
        title="Rows without a supervised token",
        stage="before",
        needs=("data/unsupervised_rows", "data/supervised_fraction"),
        test=lambda view: view["data/unsupervised_rows"] > 0.01 or view["data/supervised_fraction"] < 0.01,
        severe=share_over("data/unsupervised_rows", 0.1),
        message=nothing_supervised,
        remedies=supervised_remedies,
        mutes=("OPT",),
        when=(
            "More than 1 % of rows have no supervised token (an error above 10 %), or less than 1 % of all tokens is"
            " one."
        ),
        why=(
            "All labels of a row are -100: the prompt fills max_length, the chat template doesn't mark the assistant's "
            "turns, or the labels of the data are wrong. Such rows cost time and teach nothing."
        ),
        remedy="Raise max_length, keep the ends of rows, mend the template or the labels.",
        source="TRL issues 4879, 4201",
    ),
    Rule(
        code="DATA002",
        title="Prompts in training aren't those of generation",
        stage="before",
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
        code="DATA003",
        title="The end of texts is not supervised",
        stage="before",
        needs=("data/eos_rows",),
        test=lambda view: view["data/eos_rows"] < 0.9,
        message=lambda view: (
            f"{percent(1 - view['data/eos_rows'])} of the texts don't end in a supervised end token: the model isn't "
            "taught to stop, and completions will run on."
        ),
        remedies=lambda view: [
            Remedy(why="Put the end token behind each text, with a label of its own, or name it in eos_token")
        ],
        when=(
            "Less than nine in ten texts that are whole have an end token (EOS, or what ends a turn) as one of the last"
            " three supervised tokens."
        ),
        why=(
            "The data lacks the token, its label is -100 (often since padding is the same token), or the template's"
            " marks of the assistant's turns leave it out."
        ),
        remedy="Add or unmask the end token; name it in eos_token where it isn't the tokenizer's.",
        source="TRL issue 1623; unsloth issue 416",
    ),
    Rule(
        code="DATA004",
        title="Texts begin with two BOS",
        stage="before",
        needs=("data/double_bos_rows",),
        test=share_over("data/double_bos_rows", 0),
        message=lambda view: (
            f"{percent(view['data/double_bos_rows'])} of the rows begin with the token for the beginning twice, which "
            "no pretrained model has seen."
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
        code="DATA006",
        title="Much of each batch is padding",
        stage="before",
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
        needs=("data/identical_pairs",),
        test=lambda view: view["data/identical_pairs"] > 0.01 or lopsided(view),
        message=pairs_message,
        remedies=pairs_remedies,
        when=(
            "More than 1 % of pairs have equal completions; or chosen ones are on average over 1.5 times (or under 0.67"
            " times) as long as rejected ones, in over three of four pairs."
        ),
        why="Equal completions pull both ways. Where length alone tells chosen from rejected, the model learns length.",
        remedy="Leave equal pairs out; balance lengths; ld_alpha.",
        source="arXiv 2410.08847; arXiv 2409.06411",
    ),
    Rule(
        code="DATA009",
        title="Good and bad labels don't balance",
        stage="before",
        needs=("data/desirable", "data/undesirable"),
        fields=("desirable_weight", "undesirable_weight"),
        test=is_unbalanced,
        message=labels_message,
        remedies=labels_remedies,
        when="Weighed, the labels are more than threefold off the advised 1 to 4/3, of 64 labels at the least.",
        why="The more frequent kind drowns the other: all likelihoods fall, or all rise.",
        remedy="Set desirable_weight or undesirable_weight so that both kinds weigh alike.",
        source="arXiv 2402.01306, eq. 8",
    ),
    Rule(
        code="DATA010",
        title="A reward fails or can't tell right from wrong",
        stage="before",
        needs=("data/reward/*/failed",),
        test=reward_is_broken,
        message=reward_message,
        remedies=lambda view: [Remedy(why="Try the reward on right and wrong answers by itself, and mend it")],
        when=(
            "Tried on the data's own answers and on rubbish, it fails for over a quarter, gives a number that isn't"
            " finite, or gives the same for all though rows hold whole completions. Slow functions and reward models"
            " aren't tried."
        ),
        why="What a reward doesn't tell apart can't be learnt; found out later, it costs a run.",
        remedy="Test the reward by itself.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="DATA011",
        title="Packed documents see each other",
        stage="before",
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
        needs=("data/unknown_tokens",),
        test=share_over("data/unknown_tokens", 0.01),
        severe=share_over("data/unknown_tokens", 0.1),
        message=lambda view: (
            f"{percent(view['data/unknown_tokens'])} of the tokens are the one for what is unknown: the tokenizer was"
            " not made for these texts, and what they say is lost."
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
