"""Data sets of axolotl's as data sets of ours: where rows are, what their columns are called, and what is learnt."""

from __future__ import annotations

from typing import Any

from ft_host.migrate.sources import Found

PLACE = ("path", "name", "split", "data_files", "revision")
# Columns that a type of axolotl's reads, with ours, where the rows are what a method here takes.
COLUMNS = {
    "chatml.intel": {"question": "prompt"},
    "chatml.argilla": {"instruction": "prompt", "chosen_response": "chosen", "rejected_response": "rejected"},
    "chatml.argilla_chat": {},
    "chatml.ultra": {},
    "chatml.prompt_pairs": {},
    "chatml.icr": {"input": "prompt"},
}
AS_THEY_ARE = ("alpaca", "sharegpt", "chat_template", "completion", "pretrain", "input_output")
KNOWN = (*PLACE, "type", "ds_type", "field", "field_messages", "field_chosen", "field_rejected", "text_column")
SAME = ("chat_template", "shards_idx", "preprocess_shards", "trust_remote_code", "conversation", "roles", "skip")
WHY = {
    "roles_to_train": "not offered; assistant_only_loss learns from the assistant's turns",
    "train_on_eos": "not offered; the token that ends a turn is learnt with it (turn there)",
    "shards": "not offered; a split such as train[:10%] takes a part",
    "message_property_mappings": "rows with role and content, or from and value, are read; write others so",
    "message_field_role": "rows with role and content, or from and value, are read; write others so",
    "message_field_content": "rows with role and content, or from and value, are read; write others so",
    "message_field_training": "not offered; assistant_only_loss learns from all turns of the assistant",
    "message_field_training_detail": "not offered; rows with input_ids and labels say which tokens are learnt",
    "drop_system_message": "not offered; leave the system message out of the rows",
    "step_separator": "there is no method that learns from judged steps",
}
MESSAGES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})


def data_set(found: Found, given: dict[str, Any]) -> None:
    """`datasets`, or the stream of `pretraining_dataset`, and what of a row is learnt."""
    streamed = given.get("pretraining_dataset")
    items = listed(given.get("datasets") or streamed)
    if given.get("train_on_inputs") and (found.method != "sft" or not items):
        found.left.append(("train_on_inputs", True, "not offered; completions alone are learnt from"))
    if not items:
        return
    columns: dict[str, str] = {}
    places, chats, texts = [], False, False
    for number, item in enumerate(items):
        kind = item.get("type")
        columns |= renames(found, number, item, found.method)
        chats |= kind in (None, "chat_template") or "sharegpt" in str(kind)
        texts |= kind in ("completion", "pretrain")
        places.append({name: item[name] for name in PLACE if item.get(name) is not None})
        for name, value in item.items():
            if value is None or name in KNOWN or name in SAME:
                continue
            if not (name == "message_property_mappings" and value in MESSAGES) and not usual(name, value):
                found.left.append((f"datasets[{number}].{name}", value, WHY.get(name, "not offered")))
    if len(places) == 1:
        found.put("dataset_name", places[0]["path"], "datasets", "datasets there")
        for name, ours in (
            ("name", "dataset_config"),
            ("split", "dataset_train_split"),
            ("revision", "dataset_revision"),
        ):
            if name in places[0]:
                found.put(ours, places[0][name], "datasets", "datasets there")
        if "data_files" in places[0]:
            found.values.pop("dataset_name")
            found.put("dataset", places, "datasets", "datasets there")
    else:
        found.put("dataset", places, "datasets", "datasets there; without weights each row occurs once")
    if columns:
        found.put("dataset_columns", columns, "datasets", "the columns that its type reads")
    if streamed and not given.get("datasets"):
        found.put("dataset_streaming", True, "pretraining_dataset", "pretraining_dataset there")
    if found.method == "sft" and not texts:
        learnt(found, bool(given.get("train_on_inputs")), chats)


def usual(name: str, value: Any) -> bool:
    return (name, value) in (("roles_to_train", ["assistant"]), ("train_on_eos", "turn"), ("ds_type", "json"))


def learnt(found: Found, inputs: bool, chats: bool) -> None:
    """Only answers are learnt there unless train_on_inputs is set."""
    said = f"train_on_inputs: {'true' if inputs else 'false'} there"
    if chats:
        found.put("assistant_only_loss", not inputs, "train_on_inputs", said)
    elif inputs:
        found.put("completion_only_loss", False, "train_on_inputs", said)
    else:
        found.same.append("train_on_inputs")


def renames(found: Found, number: int, item: dict[str, Any], method: str | None) -> dict[str, str]:
    """The columns to rename for a type, and what its text becomes there and doesn't here."""
    kind, columns = item.get("type"), {}
    where = f"datasets[{number}].type"
    if isinstance(kind, dict):
        for name, ours in (("field_prompt", "prompt"), ("field_instruction", "prompt"), ("field_output", "completion")):
            if kind.get(name):
                columns[kind[name]] = ours
        for name, ours in (
            ("field_chosen", "chosen"),
            ("field_rejected", "rejected"),
            ("field_completion", "completion"),
        ):
            if kind.get(name):
                columns[kind[name]] = ours
        made = {name: text for name, text in kind.items() if "format" in name or name.endswith("system_prompt")}
        if made:
            found.left.append((where, made, "a text that is made of columns; write rows with that text"))
        return {theirs: ours for theirs, ours in columns.items() if theirs != ours}
    name = str(kind or "chat_template")
    base = name.partition(".")[0].partition(":")[0].partition("_chat")[0]
    if item.get("field") or item.get("text_column"):
        columns[item.get("field") or item["text_column"]] = "text"
    messages = item.get("field_messages")
    if messages:
        columns[messages] = "prompt" if method in ("dpo", "kto", "reward", "orpo", "simpo") else "messages"
    for theirs, ours in (("field_chosen", "chosen"), ("field_rejected", "rejected")):
        if item.get(theirs):
            columns[item[theirs]] = ours
    if name.replace("llama3", "chatml") in COLUMNS:
        columns |= COLUMNS[name.replace("llama3", "chatml")]
        found.left.append((where, name, "texts are put into a template there; rows of messages go through one here"))
    elif method == "grpo" and item.get("type"):
        found.left.append((where, name, "a function that makes rows; write rows with a prompt, and what rewards read"))
    elif base not in AS_THEY_ARE and method != "grpo":
        found.left.append((where, name, "a prompt of axolotl's own; write rows of messages, or prompt and completion"))
    return {theirs: ours for theirs, ours in columns.items() if theirs != ours}


def held_out(found: Found, given: dict[str, Any]) -> None:
    """What is evaluated: data sets of their own. A part of the training data isn't drawn here."""
    share = given.get("val_set_size")
    if share:
        why = (
            "not offered; eval_dataset or dataset_test_split is what is held out, such as train[:5%] beside train[5%:]"
        )
        found.left.append(("val_set_size", share, why))
    items = listed(given.get("test_datasets"))
    if items:
        places = [{name: each[name] for name in PLACE if each.get(name) is not None} for each in items]
        found.put("eval_dataset", places[0] if len(places) == 1 else places, "test_datasets", "test_datasets there")
    if not items:
        for name in ("eval_steps", "eval_strategy", "evaluation_strategy"):
            found.without(name, "what is held out has to be said first (eval_dataset, or dataset_test_split)")
    if items and "eval_strategy" not in found.values and found.value("eval_steps"):
        found.take("eval_strategy", "steps", "eval_steps")
    elif items and "eval_strategy" not in found.values:
        found.take("eval_strategy", "epoch", "test_datasets")


def listed(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value] if value else []
    return [{"path": each} if isinstance(each, str) else each for each in items]
