"""Faults of pairs and judged completions, and of their reference."""

from __future__ import annotations

from cases.kinds import SOLVABLE, Kind, Times

ALONE = {"loss_type": ["sigmoid"], "loss_weights": []}  # without the loss that keeps chosen completions likely
LABELS = ("data",)
FLAT = ("OPT005", "OPT009", "OPT010")

KINDS = [
    Kind(name="dpo-swapped", method="dpo", what="chosen and rejected are swapped in the training rows", train="swapped",
         config=ALONE, at_fault=LABELS, cause=("DPO004", "DATA021"), partly=("DPO",), beside=("DPO", "OPT009", "OPT010", "DATA008")),
    Kind(name="dpo-half-swapped", method="dpo", what="which one is chosen is a coin toss", train="half_swapped",
         config=ALONE, at_fault=LABELS, cause=("DPO003", "DATA021", "DATA022"), partly=("DPO",), beside=("DPO", *FLAT)),
    Kind(name="dpo-identical", method="dpo", what="chosen and rejected are the same in a third of the pairs",
         train="identical", at_fault=LABELS, cause=("DATA008",), visible=0),
    Kind(name="dpo-length-leak", method="dpo", what="chosen is always twice as long", train="chosen_longer",
         held_out="chosen_longer", at_fault=LABELS, cause=("DATA008", "DPO002"), beside=("DPO", "OPT012", "DATA034"), visible=0),
    Kind(name="dpo-rejected-empty", method="dpo", what="rejected is empty in two pairs of five", train="rejected_empty",
         at_fault=("data", "max_dropped_share"), cause=("DATA014", "DATA016", "DATA008"), partly=("DATA",), beside=("DPO",), visible=0),
    Kind(name="dpo-chosen-is-prompt", method="dpo", what="chosen is the prompt", train="chosen_is_prompt",
         at_fault=("data", "dataset_columns"), cause=("DATA018", "DATA020"), partly=("DATA", "DPO"), beside=("DPO", "OPT"), visible=0),
    Kind(name="dpo-leak", method="dpo", what="the held-out pairs are trained on", held_out="first_of_train",
         at_fault=("data", "eval_dataset"), cause=("DATA007", "DATA031"), beside=("DATA008",), visible=0),
    Kind(name="dpo-other-reference", method="dpo", what="the reference isn't the policy",
         config={"ref_model": "@model/scratch"}, at_fault=("ref_model",), cause=("PRB001",), beside=("DPO", "OPT")),
    Kind(name="kto-imbalance", method="kto", what="ten bad completions to each good one, without weights",
         train="mostly_bad", config={"desirable_weight": 1.0},
         at_fault=("data", "desirable_weight", "undesirable_weight"), cause=("DATA009",), beside=("KTO",), visible=0),
    Kind(name="kto-only-good", method="kto", what="no bad completion at all", train="only_good",
         config={"desirable_weight": 1.0}, at_fault=LABELS, cause=("DATA009", "KTO002"), beside=("KTO", "OPT", "PRB"),
         visible=0),
    Kind(name="kto-wrong-labels", method="kto", what="good and bad are swapped in the training rows",
         train="labels_turned", config={"desirable_weight": 1.0}, own={"arithmetic": {"undesirable_weight": 3.0}},
         at_fault=LABELS, cause=("KTO004", "DATA021"), partly=("KTO",), beside=("KTO", "OPT009", "OPT010")),
    Kind(name="kto-coin-toss", method="kto", what="which completions are good is a coin toss", train="labels_tossed",
         config={"desirable_weight": 1.0}, at_fault=LABELS, cause=("KTO006", "DATA021", "DATA022"), partly=("KTO",), beside=("KTO", *FLAT)),
    Kind(name="kto-empty-third", method="kto", what="a third of the completions are empty", train="empty_third",
         at_fault=("data", "max_dropped_share"), cause=("DATA014", "DATA016"), beside=("KTO", "DATA007"), visible=0),
    Kind(name="kto-other-reference", method="kto", what="the reference isn't the policy",
         config={"ref_model": "@model/scratch"}, at_fault=("ref_model",), cause=("PRB001",), beside=("KTO", "OPT")),
    Kind(name="reward-swapped", method="reward", what="chosen and rejected are swapped in the training rows",
         train="swapped", at_fault=LABELS, cause=("RM004", "RM001", "DATA021"), partly=("RM",), beside=("RM", "OPT009", "OPT010")),
    Kind(name="reward-coin-toss", method="reward", what="which one is chosen is a coin toss", train="half_swapped",
         at_fault=LABELS, cause=("RM004", "RM001", "DATA021", "DATA022"), partly=("OPT005",), beside=("RM", "OPT")),
    Kind(name="reward-overfit", method="reward", what="sixty pairs, gone through again and again", train="sixty",
         config={"max_steps": 160}, families=SOLVABLE, at_fault=("data", "max_steps", "num_train_epochs", "learning_rate"),
         cause=("RM001", "OPT009"), beside=("OPT", "RM", "DATA007"), visible=40),
    Kind(name="reward-length-leak", method="reward", what="chosen is always twice as long", train="chosen_longer",
         held_out="chosen_longer", at_fault=LABELS, cause=("DATA008",), beside=("RM", "OPT012", "DATA034"), visible=0),
    Kind(name="reward-margins-negative", method="reward", what="margins with the wrong sign", train="negative_margins",
         at_fault=("data", "dataset_columns"), cause=("DATA021",), partly=("DATA", "RM004"), beside=("RM", "OPT"), visible=0),
    Kind(name="reward-margin-overflows", method="reward", what="a margin of 1e39 in one row", train="huge_margin",
         config={"train_sampling_strategy": "sequential", "learning_rate": Times(1)}, at_fault=LABELS,
         cause=("NUM001", "DATA021"), beside=("DATA",), visible=41),
]
