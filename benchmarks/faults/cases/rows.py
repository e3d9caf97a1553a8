"""Faults of rows, tokens and models, of supervised fine-tuning."""

from __future__ import annotations

from cases.kinds import SOLVABLE, Kind, Times

TRAINED = {"model": "@model/start", "learning_rate": Times(0.1)}
CHAT = {"model": "@model/chat", "dataset": "@data/chat_train", "eval_dataset": "@data/chat_test"}
TALKS = {"arithmetic": CHAT | {"learning_rate": 1e-3}, "lookup": CHAT | {"model": "@model/scratch"}}
LEARNT = ("OPT005", "OPT009", "OPT010", "OPT012", "SFT001", "PRB005")  # what rows that can't be learnt, or learnt too well, bring with them
UNKNOWN = ("SFT001", "PRB005")

KINDS = [
    # -- what is supervised
    Kind(name="sft-all-masked", method="sft", what="every label is -100", train="all_masked", at_fault=("data",),
         cause=("DATA001",), beside=("DATA", "OPT"), visible=0),
    Kind(name="sft-some-masked", method="sft", what="no label in three rows of ten", train="some_masked",
         config={"max_dropped_share": 0.5}, at_fault=("data", "max_dropped_share"), cause=("DATA001",), beside=("DATA003",),
         visible=0),
    Kind(name="sft-eos-masked", method="sft", what="the label of EOS is -100 in every row", train="eos_masked",
         at_fault=("data",), cause=("DATA003",), visible=0),
    Kind(name="sft-eos-absent", method="sft", what="no row ends in EOS", train="eos_absent", held_out="eos_absent",
         at_fault=("data", "eos_token"), cause=("DATA003",), visible=0),
    # -- tokens
    Kind(name="sft-bos-twice", method="sft", what="rows begin with two BOS", own=TALKS, families=tuple(TALKS),
         train="bos_twice", at_fault=("data",), cause=("DATA004",), beside=("DATA003", "OPT009"), visible=0),
    Kind(name="sft-other-template", method="sft", what="the prompt that is generated from isn't the one trained on",
         config={"chat_template_path": "@data/other.jinja"}, own=TALKS, families=tuple(TALKS),
         at_fault=("chat_template_path", "eos_token"), cause=("DATA002",), beside=("DATA003", "DATA012", "PRB005", "OPT009"),
         visible=0),
    Kind(name="sft-other-tokenizer", method="sft", what="a tokenizer whose ids mean something else to the model",
         config={"model": "@model/other_tokenizer", "learning_rate": Times(0.1)}, at_fault=("model",), cause=("PRB005",),
         partly=("SFT001",), beside=("SFT001", "OPT001")),
    Kind(name="sft-unknown-tokens", method="sft", what="texts that the tokenizer has no tokens for",
         train="other_script", held_out="other_script", config={"model": "@model/able"}, at_fault=("data", "model"),
         cause=("DATA012", "DATA028", "DATA002", "PRB005"), beside=("DATA", "OPT", "PRB"), visible=0),
    # -- texts
    Kind(name="sft-empty-third", method="sft", what="a third of the completions are empty", train="empty_third",
         at_fault=("data", "max_dropped_share"), cause=("DATA014", "DATA016"), beside=("DATA007",), visible=0),
    Kind(name="sft-empty-all", method="sft", what="the completions of all rows are empty", train="empty_all",
         at_fault=("data", "dataset_columns"), cause=("DATA014", "DATA016", "DATA001"), beside=("DATA", "OPT"), visible=0),
    Kind(name="sft-exchanged", method="sft", what="prompt and completion stand under each other's name",
         train="exchanged", config=TRAINED, at_fault=("data", "dataset_columns"), cause=("DATA020",), partly=("DATA", *UNKNOWN),
         beside=LEARNT, visible=0),
    Kind(name="sft-copies", method="sft", what="the completion is its prompt", train="copies", config=TRAINED,
         at_fault=("data", "dataset_columns"), cause=("DATA018", "DATA020"), partly=("DATA", *UNKNOWN), beside=LEARNT, visible=0),
    Kind(name="sft-echoes", method="sft", what="completions repeat their prompt", train="echoes", config=TRAINED,
         at_fault=("data", "dataset_columns"), cause=("DATA018",), partly=("DATA", *UNKNOWN), beside=LEARNT, visible=0),
    Kind(name="sft-all-alike", method="sft", what="nine completions of ten are the same text", train="all_alike",
         at_fault=("data",), cause=("DATA023",), partly=("DATA", "OPT012", "OPT009"), beside=(*LEARNT, "OPT"), visible=0),
    Kind(name="sft-shifted", method="sft", what="each prompt has the completion of the row before", train="shifted",
         config=TRAINED, families=SOLVABLE, at_fault=("data",), cause=("DATA036", "SFT001", "PRB005"),
         partly=("OPT009", "OPT005", "OPT004"), beside=LEARNT),
    Kind(name="sft-marked", method="sft", what="marks of another model's template are left in the texts",
         train="marked", families=("transduction", "gsm8k"), at_fault=("data",), cause=("DATA026",), partly=("DATA",), beside=LEARNT, visible=0),
    Kind(name="sft-garbage-rows", method="sft", what="eight steps of garbage rows among good ones", train="garbage",
         config=TRAINED | {"train_sampling_strategy": "sequential"}, families=("arithmetic", "transduction", "gsm8k"),
         at_fault=("data",), cause=("OPT003", "OPT001"), beside=("OPT",), visible=61),
    # -- which rows
    Kind(name="sft-duplicates", method="sft", what="each row ten times", train="ten_times", at_fault=("data",),
         cause=("DATA007", "DATA023"), beside=("OPT009", "OPT010", "OPT012"), visible=0),
    Kind(name="sft-leak", method="sft", what="half of the held-out rows are trained on", held_out="half_of_train",
         at_fault=("data", "eval_dataset"), cause=("DATA007", "DATA031"), visible=0),
    Kind(name="sft-overfit", method="sft", what="forty rows, gone through again and again", train="forty",
         config={"max_steps": 200, "eval_steps": 10}, at_fault=("data", "max_steps", "num_train_epochs", "learning_rate"),
         cause=("OPT009", "OPT010"), beside=("OPT012", "DATA007"), visible=60),
    # -- models
    Kind(name="sft-nan-weights", method="sft", what="a weight of the model is NaN", config={"model": "@model/nan"},
         at_fault=("model",), cause=("NUM001",), beside=("PRB",)),
    Kind(name="dpo-dropout", method="dpo", what="dropout makes the first loss another one",
         config={"model": "@model/dropout", "disable_dropout": False}, at_fault=("disable_dropout", "model"),
         cause=("PRB001",), beside=("DPO", "CFG", "OPT009")),
    Kind(name="grpo-dropout", method="grpo", what="dropout: what samples isn't what is trained",
         config={"model": "@model/dropout", "disable_dropout": False, "max_steps": 30},
         at_fault=("disable_dropout", "model"), cause=("PRB002", "PRB003", "PRB004", "ENG001", "CFG010"),
         beside=("ENG", "PRB", "GRPO")),
]
