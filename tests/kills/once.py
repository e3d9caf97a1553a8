"""Whether a run whose rollouts don't wait for training learnt from each prompt once, from no token that was too old,
and from the tokens that its checkpoints held."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kills.harness import Kill, killed_and_finished, wait_for_file
from kills.settings import Setting, config_of
from transformers import AutoTokenizer

from ft_host.config.rollout import RolloutConfig
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.recorded import file_of, recorded
from ft_host.scheduling.packed import read_packed

Tokens = list[tuple[int, float, int]]  # id, log-prob, version of the weights


@dataclass
class Held:
    """What a checkpoint had of prompts that weren't learnt from yet: by prompt and request, the tokens so far."""

    checkpoint: str
    requests: dict[tuple[int, str], Tokens]
    under_way: int  # requests that had some tokens and hadn't ended


def moment_of_rollouts(process: BaseProcess, folder: Path, noise: random.Random) -> str:
    """Wait for a moment of a run of 15 rollouts: while it starts, near a rollout, or within a checkpoint. Files say
    how far it is, so that moments don't depend on how busy the machine is. Returns which it is."""
    where, late = noise.choice(["start", "rollout", "rollout", "rollout", "checkpoint"]), noise.uniform(0, 0.3)
    if where == "start":
        process.join(late * 20)
        return f"{late * 20:.2f} s after the start"
    number = noise.randrange(15)
    if where == "rollout":
        path = file_of(folder, number, 0)
    else:
        number, late = noise.choice([3, 6, 9, 12]), late / 8
        path = folder / "checkpoints" / f".step-{number}.tmp"
    wait_for_file(process, path)
    time.sleep(late)
    return f"{late:.3f} s after {path.name}"


def held(run: Path) -> Held:
    """Read what the newest checkpoint has of prompts under way."""
    found: dict[tuple[int, str], Tokens] = {}
    under_way = 0
    steps = sorted(run.glob("checkpoints/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    for path in sorted(steps[-1].glob("buffer-*.json")) if steps else ():
        for unit in json.loads(path.read_text(encoding="utf-8"))["ahead"]["ledger"]["units"]:
            for key, begun in unit["begun"].items():
                tokens = list(zip(begun["token_ids"], begun["logprobs"], begun["versions"], strict=True))
                found[unit["number"], key] = tokens
                under_way += bool(tokens) and begun["finish_reason"] is None
    return Held(steps[-1].name if steps else "none", found, under_way)


def trial(setting: Setting, shared: Path, folder: Path, seed: int) -> tuple[list[Kill], list[Held], list[str]]:
    """Kill a run of `AHEAD` in `folder` once or more, and go on until it is finished. Returns the kills, what the
    checkpoints held that it went on from, and what is wrong."""
    checkpoints: list[Held] = []
    kills = killed_and_finished(
        setting, shared, folder, seed, moment_of_rollouts, lambda run: checkpoints.append(held(run))
    )
    return kills, checkpoints, problems(folder, config_of(setting, shared, folder), checkpoints)


def problems(run: Path, config: RolloutConfig, checkpoints: list[Held]) -> list[str]:
    """Return what is wrong with a finished run of one epoch, which began with each of `checkpoints` again."""
    numbers = recorded(run)
    steps = [line["step"] for line in RunFolder(run).read("metrics.jsonl") if line["kind"] == "train"]
    found = []
    if numbers != list(range(len(numbers))) or steps != list(range(1, len(numbers) + 1)):
        found.append(f"rollouts {numbers}, steps {steps}")
    learnt: Counter[int] = Counter()
    texts: Counter[str] = Counter()
    tokens: dict[tuple[int, str], Tokens] = {}
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    for number in numbers:
        parts = [read_packed(path) for path in sorted(file_of(run, number, 0).parent.glob(f"{number}-*.safetensors"))]
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in (row for part in parts for row in part["rows"]):
            rows.setdefault(row["group"], []).append(row)
        for unit in (unit for part in parts for unit in part["prompts"]):
            learnt[unit["number"]] += 1
            mine = rows.pop(unit["number"], [])
            if len(mine) != config.num_generations:
                found.append(f"rollout {number}: {len(mine)} rows of prompt {unit['number']}")
            texts.update({tokenizer.decode(row["prompt_ids"]) for row in mine})
            for key, row in zip(in_order(unit["versions"]), mine, strict=False):
                versions = [version for version, count in unit["versions"][key] for _ in range(count)]
                tokens[unit["number"], key] = list(
                    zip(row["completion_ids"], row["sampling_logps"], versions, strict=True)
                )
                if not all(number - config.max_staleness <= version <= number for version in versions):
                    found.append(f"rollout {number}: prompt {unit['number']} has tokens of {sorted(set(versions))}")
        found += [f"rollout {number}: rows of {group}, which it didn't take" for group in rows]
    prompts = [json.loads(line)["prompt"] for line in Path(config.dataset).read_text(encoding="utf-8").splitlines()]
    if learnt != Counter(range(len(prompts))) or texts != Counter(prompts):
        found.append(
            f"learnt from {learnt}; texts {texts - Counter(prompts)} too often, {Counter(prompts) - texts} not"
        )
    for checkpoint in checkpoints:
        for request, had in checkpoint.requests.items():
            if tokens.get(request, [])[: len(had)] != had:
                found.append(
                    f"{checkpoint.checkpoint} held {had} of {request}, and {tokens.get(request)} was learnt from"
                )
    return found


def in_order(versions: dict[str, Any]) -> list[str]:
    """Return the keys of a unit's requests by their numbers, as its rows are."""
    return sorted(versions, key=lambda key: int(key.split()[2]))
