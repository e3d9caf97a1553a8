"""From the record of a run to a config: of the run as it goes on, or of one that learns from its rollouts again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.config import old_names
from ft_host.config.adapters import take_adapter
from ft_host.config.fields import Field, Mismatch, fields_of, fit, flag_of
from ft_host.config.flags import read_flags
from ft_host.config.resolve import Resolved, check_whole, refuse

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig

# What may change when a run is resumed: its length, its output and what it keeps, never the sequence of updates
# already begun. Processes and micro-batches change speed and memory, not the gradient, as long as a step has as many
# rows as before: the launch refuses another number.
RESUMABLE = (
    "max_steps",
    "num_train_epochs",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "progress",
    "report_to",
    "eval_steps",
    "num_processes",
    "dataloader_num_workers",
    "max_tokens_per_micro_batch",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "rules_select",
    "rules_ignore",
    "stop_on",
    "fail_on",
    "locked_fields",
    "record_rollouts",
    "rollout_timeout",
    "rollout_retries",
    "rollout_device",
    "max_set_aside",
)


def resolve_resumed(
    config_class: type[RunConfig], recorded: dict[str, Any], origins: dict[str, str], where: str, flags: list[str]
) -> Resolved:
    """Return the config of a resumed run: as recorded in its run.json (`where`), except for flags in `RESUMABLE`.

    Raises ConfigError for a flag that would change what the run has already done, and for a record that the installed
    method can't read.
    """
    fields = fields_of(config_class)
    values, given, problems = read_record(config_class, recorded, where, flags)
    for name in given:
        usual = values.get(name, fields[name].default)
        if name not in RESUMABLE and given[name] != usual and not may_move(fields[name], usual, given[name]):
            problems.append(
                f"{flag_of(name)} can't change when a run is resumed; these can: "
                + ", ".join(flag_of(each) for each in RESUMABLE if each in fields)
            )
    refuse(problems)
    return resolved(config_class, values, given, origins, where)


def resolve_replay(
    config_class: type[RunConfig],
    recorded: dict[str, Any],
    origins: dict[str, str],
    where: str,
    run: str,
    flags: list[str],
) -> Resolved:
    """Return the config of a run that learns from the rollouts of `run`: as recorded in its run.json (`where`), with
    flags, in a folder of its own.

    Raises ConfigError as `resolve` does, and for a record that the installed method can't read. Which fields may differ
    is checked with the run's preflight, for configs made in Python too.
    """
    values, given, problems = read_record(config_class, recorded, where, flags)
    if "replay" not in fields_of(config_class):
        problems.append(f"--replay {run}: its method has no rollouts")
    refuse(problems)
    values |= {"output_dir": "", "replay": run, "parent_run": run}
    origins = origins | {"output_dir": "default"} | dict.fromkeys(("replay", "parent_run"), "flag --replay")
    return resolved(config_class, values, given, origins, where)


def read_record(
    config_class: type[RunConfig], recorded: dict[str, Any], where: str, flags: list[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the values of a run.json by the fields' current names, those of flags, and the problems of both."""
    fields = fields_of(config_class)
    values, problems = {}, []
    old = old_names.of_record(recorded, old_names.old_names(config_class))
    for name, value in recorded.items():
        name = old.get(name, name)
        if name not in fields:
            problems.append(f"{where}: the installed method has no field {name}; the run began with another version")
            continue
        try:
            values[name] = fit(fields[name], value)
        except Mismatch as error:
            problems.append(f"{where}: {name}: {error}")
    given, wrong = read_flags(flags, fields)
    return values, given, problems + wrong


def resolved(
    config_class: type[RunConfig], values: dict[str, Any], given: dict[str, Any], origins: dict[str, str], where: str
) -> Resolved:
    """Return the config of recorded values and those of flags, checked."""
    fields, old = fields_of(config_class), old_names.of_record(origins, old_names.old_names(config_class))
    origins = {old.get(name, name): said for name, said in origins.items()}
    origins = dict.fromkeys(fields, "default") | {name: said for name, said in origins.items() if name in fields}
    origins |= {name: f"flag {flag_of(name)}" for name in given if given[name] != values.get(name)}
    config = config_class(**(values | given))
    places = {name: said if said.startswith("flag ") and name in given else where for name, said in origins.items()}
    check_whole(config, places)
    take_adapter(config, origins)
    return Resolved(config, origins)


def may_move(field: Field, before: Any, now: Any) -> bool:
    """Return whether a field names a place, which may be another when a run is resumed: the launch compares what is
    there. A revision may be given, so that a hub model is the one of before, and the place of an adapter's base."""
    if field.name.endswith("_revision") or field.name == "lora_base_model":
        return isinstance(now, str)
    return field.path and field.compared and isinstance(before, str) and isinstance(now, str) and bool(before and now)
