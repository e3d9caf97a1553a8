"""What a run that goes on has in common with the run as it began: refused, told, or allowed by the user.

Files, models and data of other content, rollouts and steps of another size, another method and a newer format are
refused by name. Versions, processes, micro-batches and a longer schedule are told.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.old_names import of_record
from ft_host.config.rollout import RolloutConfig
from ft_host.config.run import OLD_NAMES
from ft_host.errors import ConfigError
from ft_host.rundir.depends import Change, changes, refuse_changes
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import rows_per_step
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.config import RunConfig

NAMES = {"train": "dataset", "eval": "eval_dataset"}
MICRO_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens_per_micro_batch")


def check_rows_per_step(folder: RunFolder, config: RunConfig, processes: int) -> None:
    """Refuse to resume with steps of another size: neither the schedule nor the losses would continue."""
    plan = folder.manifest.get("plan")  # None where the run was stopped before its plan was written
    rows = rows_per_step(config, processes)
    if plan and plan["rows_per_step"] != rows:
        raise ConfigError(
            f"a step of {folder.path} has {plan['rows_per_step']} rows, and would now have {rows}"
            f" ({config.per_device_train_batch_size} a device × {config.gradient_accumulation_steps} accumulated ×"
            f" {processes} processes); change per_device_train_batch_size or gradient_accumulation_steps with the"
            " number of processes"
        )
    if plan and isinstance(config, RolloutConfig):
        before = plan["rollout"]  # of 0.4, without rows and whole_groups
        now = {
            name: value for name, value in dataclasses.asdict(config.rollout_plan(processes)).items() if name in before
        }
        if now != before:
            changed = ", ".join(
                f"{name} {before[name]} then and {now[name]} now" for name in now if now[name] != before[name]
            )
            raise ConfigError(
                f"rollouts would differ from those of {folder.path}: {changed}. steps_per_generation counts"
                " micro-batches: change it with per_device_train_batch_size and the number of processes"
            )


def check_same(
    folder: RunFolder, new: dict[str, Any], config: RunConfig, allowed: tuple[str, ...], step: int
) -> tuple[dict[str, Any], list[str]]:
    """Compare run.json as it is with what it would now be (`new`). Returns fields to add to it, and warnings.

    Raises ConfigError where the run depends on something that has changed and that `allowed` doesn't name.
    """
    old = folder.manifest
    _check_method(folder.path, old)
    found, said = _data_changes(old.get("data"), new["data"])
    if "depends_on" in old:
        more, told = changes(old["depends_on"], new["depends_on"])
        found, said = found + more, said + told
    else:
        said.append(
            "run.json has no fingerprints, since an earlier version of ft-host began the run: whether the model and "
            "the other files that it depends on are those that it began with can't be compared"
        )
        found += _moved_unseen(old["config"], config)
    known = [*new["depends_on"], *(NAMES[part] for part in NAMES if new["data"].get(part))]
    made = refuse_changes(folder.path, found, allowed, known)
    said += [f"{each.field} has changed since the run began, as --allow-changed says: {each.what}" for each in made]
    said += _settings(old, new, config) + _versions(old, new)
    entry = {"time": now(), "step": step}
    extra: dict[str, Any] = {}
    if made:
        records = [entry | {"field": each.field, "was": each.was, "now": each.now} for each in made]
        extra["allowed_changes"] = [*old.get("allowed_changes", []), *records]
    past = {key: old.get(key) for key in ("environment", "plugins")}
    if past != {key: new[key] for key in past}:
        extra["history"] = [*old.get("history", []), {"until_step": step, "until": now(), **past}]
    return extra, said


def check_same_start(other: RunFolder, new: dict[str, Any], config: RunConfig, allowed: tuple[str, ...]) -> list[str]:
    """Compare a run that begins with a checkpoint of `other` with that run, in what both configs say the same of.
    Returns warnings. Raises ConfigError as `check_same` does."""
    old = other.manifest
    if "depends_on" not in old:
        return [f"{other.path} has no fingerprints: whether its files are those of this run can't be compared"]
    values = dataclasses.asdict(config)
    same = {name for name in values if old["config"].get(name) == values[name]}
    was = {name: entry for name, entry in old["depends_on"].items() if name.partition("[")[0] in same}
    found, said = changes(was, {name: new["depends_on"].get(name) for name in was if name in new["depends_on"]})
    parts, told = _data_changes(old.get("data"), new["data"])
    for change in parts:
        if change.field in same:
            found.append(change)
        else:
            told.append(f"{change.field}: other data than that of {other.path} ({change.what}); its position is kept")
    made = refuse_changes(other.path, found, allowed, [*new["depends_on"], *NAMES.values()])
    said += [f"{change.field} is not that of {other.path}, as --allow-changed says: {change.what}" for change in made]
    return said + told + _versions(old, new)


def check_same_model(other: RunFolder, new: dict[str, Any]) -> list[str]:
    """Compare a run that learns from the rollouts of `other` with that run, in what they begin with. Returns warnings.
    Raises ConfigError for another model; rewards, tools and the method's own file may have been worked on."""
    old = other.manifest
    was = {name: entry for name, entry in old.get("depends_on", {}).items() if name in new["depends_on"]}
    found, said = changes(was, new["depends_on"])
    for change in found:
        if change.field == "model":
            raise ConfigError(
                f"model: {change.what}. {other.path} began with something else, and its rollouts mean nothing to this "
                "model: put it back"
            )
    for change in _data_changes(old.get("data"), new["data"])[0]:
        if change.field == "dataset" and change.was["path"] != change.now["path"]:
            raise ConfigError(f"dataset: {change.what}: {other.path} has sampled from {change.was['path']}")
        found.append(change)
    said += [f"{change.field} is not that of {other.path}: {change.what}" for change in found]
    return said + _versions(old, new)


def _check_method(run: Path, old: dict[str, Any]) -> None:
    """Refuse a run.json whose two names of the method disagree: it was edited by hand."""
    reference = str(old["reference"])
    named = Path(reference).stem if reference.endswith(".py") else reference.rpartition(":")[2]
    if old.get("method") != named:
        raise ConfigError(
            f"{run / 'run.json'}: method is {old.get('method')!r} and reference {reference!r}: they name two methods, "
            "so the file was edited. Write back the method that the run began with, or start a new run"
        )


# ---------------------------------------------------------------- data


def _data_changes(old: Any, new: dict[str, Any]) -> tuple[list[Change], list[str]]:
    if not isinstance(old, dict):
        return [], ["run.json says nothing of the data any more: whether it is the same can't be compared"]
    found, said = [], []
    for part, field in NAMES.items():
        was, is_now = old.get(part), new.get(part)
        if was is None or is_now is None:  # the config evaluates, or no longer does: the training is the same
            continue
        if "content" in was:
            what = _data_change(was, is_now)
        elif _shape(was) != _shape(is_now):
            what = _sizes(was, is_now)
        else:
            what = None
            said.append(
                f"{field}: an earlier version of ft-host began the run; {is_now['path']} has as many rows and the same "
                "columns as then, whether they are the same rows can't be compared"
            )
        if what is not None:
            found.append(Change(field, f"{is_now['path']} has {what}", was, is_now))
        elif was["path"] != is_now["path"]:
            said.append(f"{field}: {was['path']} has moved to {is_now['path']}; the rows are the same")
    return found, said


def _data_change(was: dict[str, Any], is_now: dict[str, Any]) -> str | None:
    """Return how the content of data differs, in words; None where it is the same."""
    old, new = was["content"], is_now["content"]
    if old == new:
        return None
    if old["of"] == new["of"] == "sources" and len(old["sources"]) == len(new["sources"]):
        parts = zip(was["sources"], is_now["sources"], old["sources"], new["sources"], strict=True)
        words = [
            f"{after['path']}: {_data_change(before | {'content': one}, after | {'content': two})}"
            for before, after, one, two in parts
            if one != two
        ]
        return "; ".join(words)
    if _shape(was) != _shape(is_now):
        return _sizes(was, is_now)
    if old["of"] != "rows" or new["of"] != "rows":
        return f"other content (digest {old.get('ordered', '')[:8]} then, {new.get('ordered', '')[:8]} now)"
    if old["unordered"] == new["unordered"]:
        return "the same rows in another order"
    differing = sum(a != b for a, b in zip(old["sample"], new["sample"], strict=False))
    if differing == len(old["sample"]):
        return "wholly other rows, as many as before"
    some = f"{differing} of the {len(old['sample'])}" if differing else f"few, none of the {len(old['sample'])}"
    return f"rows that differ: {some} that were looked at"


def _shape(described: dict[str, Any]) -> tuple[Any, list[str]]:
    return described["rows"], sorted(described["columns"])


def _sizes(was: dict[str, Any], is_now: dict[str, Any]) -> str:
    def words(part: dict[str, Any]) -> str:
        rows = "rows" if part["rows"] is None else f"{part['rows']} rows"
        return f"{rows} with {', '.join(part['columns'])}"

    return f"{words(is_now)}, was {words(was)}"


def _moved_unseen(old: dict[str, Any], config: RunConfig) -> list[Change]:
    """Return the fields that now name another place, where no fingerprint says that it holds the same."""
    names = of_record(old, OLD_NAMES)
    found = []
    for name, value in old.items():
        name = names.get(name, name)
        is_now = getattr(config, name, value)
        if isinstance(value, str) and value != is_now and name in ("model", "ref_model", "chat_template_path"):
            found.append(Change(name, f"{value} then, {is_now} now, and run.json has no fingerprint", value, is_now))
    return found


# ---------------------------------------------------------------- what is told


def _settings(old: dict[str, Any], new: dict[str, Any], config: RunConfig) -> list[str]:
    """Return a sentence for each setting that differs and matters, and for fields that run.json lacks."""
    names = of_record(old["config"], OLD_NAMES)
    was = {names.get(name, name): value for name, value in old["config"].items()}
    said = []
    lacking = sorted(new["config"].keys() - was.keys())
    if lacking:
        said.append(
            f"run.json lacks {', '.join(lacking)}: another version of ft-host began the run, or the lines were "
            "removed; the defaults are taken"
        )
    changed = [name for name in MICRO_BATCHES if name in was and was[name] != getattr(config, name)]
    if changed:
        words = ", ".join(f"{name} {was[name]} then and {getattr(config, name)} now" for name in changed)
        said.append(f"other micro-batches ({words}): sums are added up in another order, and differ by round-off")
    before = _length(was.get("max_steps", config.max_steps), was.get("num_train_epochs", config.num_train_epochs))
    length = _length(config.max_steps, config.num_train_epochs)
    if before != length and config.lr_scheduler_type != "constant":
        said.append(
            f"the run is {length} long, was {before}: the learning rates of the steps that are left are those of the "
            "new length"
        )
    processes = [part["environment"].get("world_size") for part in (old, new) if part.get("environment")]
    if len(set(processes)) > 1:
        said.append(
            f"{processes[1]} processes, was {processes[0]}: random states can't be carried over, so dropout and "
            "sampling differ from those of a run that never stopped"
        )
    return said


def _length(steps: int, epochs: float) -> str:
    return f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"


def _versions(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a sentence with every version that differs."""
    was, is_now = dict(old.get("environment") or {}), dict(new["environment"])
    for part in (was, is_now):
        for name in ("world_size", "devices", "platform"):
            part.pop(name, None)
    for part, plugins in ((was, old.get("plugins") or []), (is_now, new["plugins"])):
        versions: dict[str, set[str]] = {}
        for each in plugins:
            if each.get("distribution"):
                versions.setdefault(each["distribution"], set()).add(str(each.get("version")))
        part |= {name: ", ".join(sorted(found)) for name, found in versions.items()}
    changed = [
        f"{name} was {was.get(name, 'not recorded')} and is {is_now.get(name, 'not used')}"
        for name in sorted(was.keys() | is_now.keys())
        if was.get(name) != is_now.get(name)
    ]
    if not changed:
        return []
    return [f"other versions than when the run began or last went on: {', '.join(changed)}; numbers may differ"]
