"""Makes one run of the benchmark of faults, and tells what was found in it."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from case import Case
from cases import CASES
from families import FAMILIES
from material import read_rows, write_rows


def seed_folder(work: Path, family: str, seed: int) -> Path:
    return Path(work) / family / f"seed-{seed}"


def run_case(
    name: str, work: Path, seed: int, keep: bool = False, kind: str = "run", fields: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make a run and tell what was found. `fields` are on top of the case's; a reference is the case without its
    fault."""
    import torch

    torch.set_num_threads(1)
    case = CASES[name]
    if kind == "reference":
        case = without_fault(case)
    folder = seed_folder(work, case.family, seed)
    output = folder / "runs" / (case.id.replace("/", "-") + ("" if kind == "run" else f".{kind}"))
    shutil.rmtree(output, ignore_errors=True)
    config = config_of(case, folder, seed, output, fields or {})
    started = time.perf_counter()
    with broken(case):
        error = attempt(config)
    seconds = time.perf_counter() - started
    lines = read_rows(output / "metrics.jsonl") if (output / "metrics.jsonl").is_file() else []
    if not keep:
        for part in ("model", "checkpoints", "merged", "report.html"):
            shutil.rmtree(output / part, ignore_errors=True)
    return {
        "kind": kind,
        "case": name,
        "seed": seed,
        "fields": fields or {},
        "findings": findings_of(output),
        "steps": max((each["step"] for each in lines), default=0),
        "planned": config.max_steps,
        "seconds": round(seconds, 2),
        "error": error,
        "held_out": held_out(case, lines),
    }


def without_fault(case: Case) -> Case:
    fields = {name: value for name, value in case.config.items() if name not in case.at_fault}
    return replace(case, config=fields, train=None, held_out=None, patch=None)


def config_of(case: Case, folder: Path, seed: int, output: Path, fields: dict[str, Any]) -> Any:
    from ft_host import registry

    method = registry.find("method", case.method)
    values = values_of(case, folder, seed) | fields
    return registry.config_class(method)(**values, seed=seed, output_dir=str(output))


def values_of(case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """The fields of a case, with its files made."""
    family = FAMILIES[case.family]
    values = {name: placed(value, folder, family) for name, value in (family.BASE[case.method] | case.config).items()}
    for field, fault in (("dataset", case.train), ("eval_dataset", case.held_out)):
        if fault is not None:
            values[field] = str(
                spoilt(case, fault, Path(values[field]), Path(values["dataset"]), values["model"], seed)
            )
    return values


def placed(value: Any, folder: Path, family: Any) -> Any:
    """ "@model/start", "@data/train" and "@rewards:NAME" as paths, within lists and mappings too."""
    if isinstance(value, list):
        return [placed(each, folder, family) for each in value]
    if isinstance(value, dict):
        return {name: placed(each, folder, family) for name, each in value.items()}
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    if value.startswith("@rewards:"):
        return f"{family.REWARDS}:{value.removeprefix('@rewards:')}"
    kind, _, rest = value[1:].partition("/")
    path = folder / kind / rest
    return str(path if kind == "model" or path.suffix else path.with_suffix(".jsonl"))


def spoilt(case: Case, fault: str, path: Path, train: Path, model: str, seed: int) -> Path:
    """A file of rows with a fault, made of the one at `path`."""
    import broken_data
    from transformers import AutoTokenizer

    texts = broken_data.Texts(tokenizer=AutoTokenizer.from_pretrained(model), train=read_rows(train))
    rows = vars(broken_data)[fault](read_rows(path), random.Random(seed), texts)
    target = path.parent / "spoilt" / case.id.replace("/", "-") / path.name
    write_rows(target, rows)
    return target


def broken(case: Case) -> contextlib.AbstractContextManager:
    if case.patch is None:
        return contextlib.nullcontext()
    import broken_parts

    name, arguments = case.patch
    return vars(broken_parts)[name](**arguments)


def attempt(config: Any) -> str | None:
    """Why the run ended early, if it did. An error that isn't the host's is one that a case may have as its fault,
    too."""
    from ft_host.training.launch import train

    try:
        config.check()
        train(config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def findings_of(output: Path) -> list[dict[str, Any]]:
    """Each finding once: when it was first told, how it ended, and the fields that its patches move, best first. One
    that was muted before it was told isn't there."""
    told = read_rows(output / "findings.jsonl") if (output / "findings.jsonl").is_file() else []
    found: dict[str, dict[str, Any]] = {}
    for each in told:
        known = found.get(each["fingerprint"])
        if known is None and each["state"] != "open":
            continue
        if known is None:
            found[each["fingerprint"]] = known = {
                "code": each["code"],
                "fingerprint": each["fingerprint"],
                "severity": each["severity"],
                "opened": each["step"],
                "message": each["message"],
            }
        if each["state"] == "open" and each["severity"] == "error":
            known["severity"] = "error"
        known["state"] = each["state"]
        known["patches"] = [
            {change["path"].removeprefix("/"): change["value"] for change in remedy["patch"]}
            for remedy in each["remedies"]
            if remedy["patch"]
        ]
    return list(found.values())


def held_out(case: Case, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The figure that the case is judged by, at the first and at the last evaluation."""
    name, way = case.held_out_metric
    values = [each[name] for each in lines if each["kind"] == "eval" and isinstance(each.get(name), int | float)]
    return {"metric": name, "way": way, "first": values[0], "last": values[-1]} if values else {}
