"""Runs the cases of the benchmark of faults and writes what was found in each: a line of OUT a run.

    python benchmarks/faults/run.py --work runs/faults --out runs/faults/found.jsonl --seeds 0 1 2 --jobs 2
    python benchmarks/faults/run.py --work runs/faults --out runs/faults/found.jsonl --seeds 0 --cases sft-leak grpo

Runs that OUT has already are not made again. `--cases` takes names and beginnings of names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import material  # noqa: E402
from case import Case  # noqa: E402
from cases import BASE, CASES  # noqa: E402

# What a method is judged by on held-out rows, the first of these that it has.
HELD_OUT = ("eval_reward", "eval_rewards/accuracies", "eval_accuracy", "eval_rewards/margins", "eval_loss")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and runs")
    parser.add_argument("--out", type=Path, required=True, help="file that a line is added to for each run")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="NAME", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="make runs again that OUT has; the last line counts")
    parser.add_argument("--keep", action="store_true", help="keep models and checkpoints of the runs")
    args = parser.parse_args(argv)

    names = [name for name in CASES if any(name.startswith(each) for each in args.cases)]
    if not names:
        parser.error(f"no case is called or begins with {', '.join(args.cases)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set() if args.again else {(each["case"], each["seed"]) for each in results(args.out)}
    waiting = [(name, seed) for seed in args.seeds for name in names if (name, seed) not in done]
    if not waiting:
        return 0
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool, args.out.open("a") as out:
        seeds = dict.fromkeys(seed for _, seed in waiting)
        for made in [pool.submit(material.make, seed_folder(args.work, seed), seed) for seed in seeds]:
            made.result()
        jobs = [pool.submit(run_case, name, args.work, seed, args.keep) for name, seed in waiting]
        for count, job in enumerate(as_completed(jobs), 1):
            result = job.result()
            out.write(json.dumps(result) + "\n")
            out.flush()
            print(f"{count}/{len(jobs)} {line(result)}", flush=True)
    return 0


def results(path: Path) -> list[dict[str, Any]]:
    """The runs that a file has; of one that was made again the last."""
    if not path.is_file():
        return []
    found = [json.loads(each) for each in path.read_text(encoding="utf-8").split("\n") if each]
    return list({(each["case"], each["seed"]): each for each in found}.values())


def line(result: dict[str, Any]) -> str:
    found = [f"{each['code']}@{each['opened']}" for each in result["findings"] if each["severity"] != "info"]
    noted = [each["code"] for each in result["findings"] if each["severity"] == "info"]
    said = f"{result['case']} seed {result['seed']}: {result['steps']} steps, {result['seconds']:.1f} s, "
    return said + (", ".join(found) or "nothing") + (f"; noted {', '.join(noted)}" if noted else "")


def seed_folder(work: Path, seed: int) -> Path:
    return Path(work) / f"seed-{seed}"


# ---------------------------------------------------------------- one run


def run_case(name: str, work: Path, seed: int, keep: bool = False, **fields: Any) -> dict[str, Any]:
    """Make a run and tell what was found. `fields` of the config are on top of the case's."""
    import torch

    torch.set_num_threads(1)
    case, folder = CASES[name], seed_folder(work, seed)
    output = folder / "runs" / name
    shutil.rmtree(output, ignore_errors=True)
    config = config_of(case, folder, seed, output, fields)
    started = time.perf_counter()
    with remembered() as watches, broken(case):
        error = attempt(config)
    seconds = time.perf_counter() - started
    lines = material.read_rows(output / "metrics.jsonl") if (output / "metrics.jsonl").is_file() else []
    if not keep:
        for part in ("model", "checkpoints", "merged", "report.html"):
            shutil.rmtree(output / part, ignore_errors=True)
    return {
        "case": name,
        "seed": seed,
        "method": case.method,
        "findings": findings_of(watches, output),
        "steps": max((each["step"] for each in lines), default=0),
        "planned": config.max_steps,
        "seconds": round(seconds, 2),
        "error": error,
        "held_out": held_out(lines),
    }


def config_of(case: Case, folder: Path, seed: int, output: Path, fields: dict[str, Any]) -> Any:
    from ft_host import registry

    values = BASE[case.method] | case.config | fields
    values = {name: placed(value, folder) for name, value in values.items()}
    for field, fault in (("dataset", case.train), ("eval_dataset", case.held_out)):
        if fault is not None:
            values[field] = str(
                spoilt(case, fault, Path(values[field]), Path(values["dataset"]), values["model"], seed)
            )
    method = registry.find("method", case.method)
    return registry.config_class(method)(**values, seed=seed, output_dir=str(output))


def placed(value: Any, folder: Path) -> Any:
    """ "@model/start" and the like as paths."""
    if isinstance(value, list):
        return [placed(each, folder) for each in value]
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    kind, _, rest = value[1:].partition("/") if "/" in value else value[1:].partition(":")
    if kind == "rewards":
        return f"{HERE / 'rewards.py'}:{rest}"
    if kind == "arithmetic":
        return f"{material.EXAMPLE / 'rewards.py'}:{rest}"
    path = folder / kind / rest
    return str(path if kind == "model" or path.suffix else path.with_suffix(".jsonl"))


def spoilt(case: Case, fault: str, path: Path, train: Path, model: str, seed: int) -> Path:
    """A file of rows with a fault, made of the one at `path`."""
    import broken_data
    from transformers import AutoTokenizer

    texts = broken_data.Texts(tokenizer=AutoTokenizer.from_pretrained(model), train=material.read_rows(train))
    rows = vars(broken_data)[fault](material.read_rows(path), random.Random(seed), texts)
    target = path.parent / "spoilt" / case.name / path.name
    material.write_rows(target, rows)
    return target


@contextlib.contextmanager
def remembered() -> Iterator[list[Any]]:
    """The watches of the runs that are made: a run that is refused has told what was found to nobody else."""
    from ft_host.training import preflight

    watches = []
    make = preflight.Monitor

    def kept(*args: Any) -> Any:
        watches.append(make(*args))
        return watches[-1]

    with patch.object(preflight, "Monitor", kept):
        yield watches


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


def findings_of(watches: list[Any], output: Path) -> list[dict[str, Any]]:
    """Each finding once: when it was first told, and how it ended. One that was muted before it was told isn't
    there."""
    told = [finding.as_dict(watch.as_dict) for watch in watches for finding in watch.unwritten]
    if (output / "findings.jsonl").is_file():
        told += material.read_rows(output / "findings.jsonl")
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
    return list(found.values())


def held_out(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The metric that the method is judged by, at the first and at the last evaluation."""
    evals = [each for each in lines if each["kind"] == "eval"]
    name = next((name for name in HELD_OUT if evals and name in evals[-1]), None)
    return {} if name is None else {"metric": name, "first": evals[0].get(name), "last": evals[-1][name]}


if __name__ == "__main__":
    sys.exit(main())
