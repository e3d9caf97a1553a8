"""ft-host on one GPU, beside TRL: tests marked gpu, layers alone, SFT, DPO and GRPO, in ten minutes at most.

    python benchmarks/gpu.py                            all of it; what came out is in runs/gpu/gpu.md and gpu.json
    python benchmarks/gpu.py --only sft grpo --minutes 5
    python benchmarks/gpu.py --device cpu --tiny        a rehearsal, under a minute, of which no figure means anything

Needs Linux. Nothing is fetched: models have random weights, and rows are made up. What isn't installed (TRL, vLLM,
liger-kernel, flash-attn) is left out and said. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import work
from gpu_parts.cards import Model, peak_of
from gpu_parts.jobs import ON_A_CARD, REHEARSAL, Job, Place, Scale, Side, jobs
from gpu_parts.models import make_model
from gpu_parts.pages import figures_of, page
from turns import OtherWork, SideFailed, check_same_work, run_limited, run_side
from warm import Warm

HERE = Path(__file__).resolve().parent
TESTS = 120  # seconds that the tests may take
LAYERS = 90  # and layers alone, most of which is compilation
LONGEST = 5  # times what a side may need: one that hangs must leave time for the others
TOLERANCE = 0.02  # of losses in bfloat16, relative
PARTS = ("tests", "layers", "sft", "dpo", "grpo")

RunSide = Callable[[str, dict[str, Any], float, Path], dict[str, Any]]


class Clock:
    """What is left of the time."""

    def __init__(self, seconds: float):
        self.began = time.monotonic()
        self.limit = seconds

    @property
    def took(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.limit - self.took


def say(text: str, clock: Clock) -> None:
    print(f"{clock.took:4.0f} s  {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the machine, the tests


def machine_of(device: str) -> dict[str, Any]:
    """What `machine.describe` found, in a process of its own. Raises SystemExit with what it says."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(HERE / "gpu_parts" / "machine.py"), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"machine.py ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def marked_tests() -> list[str]:
    """The files of tests that have one marked gpu."""
    places = (*HERE.parent.glob("tests/**/test_*.py"), *HERE.parent.glob("plugins/*/tests/test_*.py"))
    return sorted(str(path) for path in places if "mark.gpu" in path.read_text(encoding="utf-8"))


def run_tests(out: Path, clock: Clock) -> dict[str, Any]:
    """The tests marked gpu: how many passed, and which failed."""
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    limit = max(1.0, min(TESTS, clock.left))
    code, said = run_limited(
        [sys.executable, "-m", "pytest", *options, *marked_tests()], dict(os.environ), limit, cwd=HERE.parent
    )
    (out / "tests.log").write_text(said)
    return {"code": code} | tests_in(said, None if code is not None else limit)


def tests_in(said: str, ended_after: float | None) -> dict[str, Any]:
    """What the output of `pytest -v` says: in one line, and the names of tests that failed. `ended_after`: seconds
    after which it was ended, in the middle of a test."""
    ends = dict(re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", said, re.MULTILINE))
    failed = [name for name, end in ends.items() if end in ("FAILED", "ERROR")]
    counts = {end: list(ends.values()).count(end) for end in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    words = [", ".join(f"{count} {end.lower()}" for end, count in counts.items() if count) or "none ran"]
    if ended_after is not None:
        begun = re.search(r"^(\S+::.+?)\s*\Z", said, re.MULTILINE)
        in_test = f" in {begun[1]}" if begun and begun[1] not in ends and "%]" not in begun[1] else ""
        words.append(f"ended after {ended_after:.0f} s{in_test}")
    elif not ends:
        words.append((said.strip().splitlines() or ["pytest said nothing"])[-1].strip("= "))
    return {"said": "; ".join([*words, *(f"failed: {name}" for name in failed)]), "failed": failed}


def run_layers(scale: Scale, device: str, out: Path, cache: Path, clock: Clock) -> dict[str, Any]:
    """What `layers.measure` found of norms and MLPs, or why it failed."""
    spec = {"device": device, "tokens": scale.layer_tokens, "repeats": scale.layer_repeats, "shapes": scale.shapes}
    found, limit = out / "layers.json", max(1.0, min(LAYERS, clock.left))
    found.unlink(missing_ok=True)
    command = [sys.executable, "-P", str(HERE / "gpu_parts" / "layers.py"), json.dumps(spec), str(found)]
    code, said = run_limited(command, {**os.environ, **caches(cache), "HF_HUB_OFFLINE": "1"}, limit)
    if code == 0:
        cases = json.loads(found.read_text(encoding="utf-8"))
        found.unlink()
        return {"tokens": scale.layer_tokens, "cases": cases}
    (out / "layers.log").write_text(said)
    why = f"ended after {limit:.0f} s" if code is None else what_failed(f"it ended with {code}", said)
    return {"failed": f"{why} (see layers.log)"}


def caches(folder: Path) -> dict[str, str]:
    """Variables by which processes find what others have compiled."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


# ---------------------------------------------------------------- the work


class Material:
    """Rows and models, made when a job first needs them."""

    def __init__(self, at: Path, scale: Scale, steps: int):
        self.at, self.scale = at, scale
        self.made: set[str] = set()  # models
        self.known_facts: dict[str, dict[str, float]] = {}  # by job
        count = steps * max(scale.rows, scale.pairs, scale.prompts)
        pairs = [row for row in work.made_pairs(count, scale.pair) if row["chosen"] != row["rejected"]]
        self.rows = {
            "rows": work.made_rows(count, 0, *scale.row),
            "pairs": pairs,
            "prompts": work.made_prompts(count, scale.prompt_words),
        }
        self.known = work.make_tokenizer(self.rows["rows"], scale.tokens_known)
        for name in ("rows", "pairs"):  # both sides leave longer ones out or cut them, each in its own way
            lengths = work.lengths_of(self.rows[name], self.known)
            self.rows[name] = [
                row for row, length in zip(self.rows[name], lengths, strict=True) if length <= scale.max_length
            ]

    def file(self, job: Job, steps: int) -> Path:
        path = self.at / f"{job.rows}-{steps}.jsonl"
        if not path.exists():
            rows = self.rows[job.rows]
            need = steps * job.rows_a_step
            work.write_rows(path, (rows * (need // len(rows) + 1))[:need])
        return path

    def model(self, job: Job) -> Path:
        path = self.at / job.model
        if job.model not in self.made:
            shape = self.scale.shapes[job.model]
            tokenizer = work.filled(self.known, shape["vocab_size"], "other")
            make_model(path, shape, tokenizer)
            self.made.add(job.model)
        return path

    def facts(self, job: Job) -> dict[str, float]:
        """`context` and the share of supervised tokens of a job's rows (see figures_of)."""
        if job.name not in self.known_facts:
            self.known_facts[job.name] = self._facts(job)
        return self.known_facts[job.name]

    def _facts(self, job: Job) -> dict[str, float]:
        rows = self.rows[job.rows]
        if job.rows == "prompts":
            prompt = statistics.fmean(len(ids) for ids in self.known([row["prompt"] for row in rows])["input_ids"])
            return {"context": prompt + job.both["max_completion_length"], "supervised": 0.0}
        names = ("chosen", "rejected") if job.rows == "pairs" else ("completion",)
        whole, said = [], 0
        for name in names:
            prompts = self.known([row["prompt"] for row in rows])["input_ids"]
            texts = self.known([row["prompt"] + row[name] for row in rows])["input_ids"]
            whole += [len(text) + 1 for text in texts]
            said += sum(len(text) + 1 - len(prompt) for text, prompt in zip(texts, prompts, strict=True))
        return {"context": sum(n * n for n in whole) / sum(whole), "supervised": said / sum(whole)}


def spec_of(job: Job, side: Side, place: Place, material: Material, out: Path) -> dict[str, Any]:
    """What a side is told (see sides.py)."""
    steps = job.skip + job.measured
    spec = {
        "method": job.method,
        "model": str(material.model(job)),
        "rows": str(material.file(job, steps + 1)),
        "steps": steps,
        "device": place.device,
        "both": job.both | side.both,
        side.side: side.fields,
    }
    if job.lora:
        spec["lora"] = job.lora
    if side.traced:
        spec["trace"] = str(out / f"trace-{job.name}.json.gz")
    return spec


def do(
    job: Job,
    place: Place,
    material: Material,
    scale: Scale,
    *,
    peak: float | None,
    out: Path,
    run: RunSide,
    clock: Clock,
) -> dict[str, Any]:
    """A job, side by side: its figures, or why there are none. `run`: does what a spec says, within so many seconds,
    and keeps what was written in a file."""
    result: dict[str, Any] = {"name": job.name, "title": job.title, "refused": job.refused, "sides": {}}
    if job.refused:
        return result
    ours = None
    for side in job.sides:
        found: dict[str, Any] = {"fields": job.both | side.both | side.fields}
        result["sides"][side.label] = found
        if side.side == "trl" and not place.packages["trl"]:
            found["failed"] = "not run: TRL isn't installed"
            continue
        if clock.left < job.needs:
            found["failed"] = f"not run: {clock.left:.0f} s are left, and it may need {job.needs:.0f}"
            continue
        spec = spec_of(job, side, place, material, out)
        log = out / f"{job.name}-{side.label.replace(', ', '-')}.log"
        try:
            limit = clock.left if place.device == "cpu" else min(clock.left, LONGEST * job.needs)
            seen = run(side.side, spec, max(1.0, limit), log)
        except SideFailed as error:
            found["failed"] = f"failed: {what_failed(str(error), log.read_text())} (see {log.name})"
            say(f"{job.name}, {side.label}: {found['failed']}", clock)
            continue
        log.unlink()
        model, facts = Model.of(scale.shapes[job.model]), material.facts(job)
        found["figures"] = figures_of(seen, model, facts, job.skip, peak=peak, frozen=bool(job.lora), method=job.method)
        if side.side == "ours":
            ours = seen
        elif ours is not None and side.same_rows:
            found["figures"] |= compared(ours, seen)
        say(f"{job.name}, {side.label}: {found['figures']['tokens_per_second']:,.0f} tokens/s", clock)
    return result


def fresh(cache: Path) -> RunSide:
    """Sides in fresh processes. What one of them compiles, the next ones find."""

    def run(side: str, spec: dict[str, Any], limit: float, log: Path) -> dict[str, Any]:
        return run_side(side, caches(cache), spec, cache, limit, log)

    return run


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far the losses of the same steps are apart, or what wasn't the same."""
    try:
        return {"difference": check_same_work(ours, theirs, TOLERANCE)}
    except OtherWork as error:
        return {"other_work": str(error)}


def what_failed(error: str, log: str) -> str:
    """In a line, why a side gave nothing: the error after the last traceback of its log, and without one the first line
    of what is said of it."""
    _, found, last = log.rpartition("Traceback (most recent call last):")
    lines = last.splitlines() if found else error.splitlines()
    return next(line for line in lines if line.strip() and not line.startswith(" "))[:300].rstrip(":")


# ---------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="as torch calls it: cuda, xpu, cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: tiny models, a step or two")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="the most that it may take (default: %(default)s)")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="of a card that gpu_parts/cards.py doesn't know")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu: only with --tiny, which is a rehearsal")

    clock = Clock(60 * args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    machine = machine_of(args.device)
    known = (args.peak, "--peak") if args.peak else peak_of(machine["name"])
    peak, source = known or (None, "")
    said = (
        f"MFU is the share of {peak:,.1f} TFLOP/s in bfloat16 ({source})."
        if peak
        else f"No peak of {machine['name']} is known, so that no MFU is said; --peak names one."
    )
    scale = REHEARSAL if args.tiny else ON_A_CARD
    place = Place(
        device=args.device,
        memory_gib=None if args.tiny else machine["memory_gib"],
        packages=machine["packages"],
        attention=machine["attention"],
        attention_why=machine["attention_why"],
    )
    result: dict[str, Any] = {"machine": machine, "tiny": args.tiny, "peak": said, "tests": None, "layers": None}
    result["jobs"] = []
    result["limit_s"] = clock.limit

    def write() -> None:
        """After each part, so that what was measured is kept if the time ends."""
        result["took_s"] = clock.took
        (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.out / "gpu.md").write_text(page(result), encoding="utf-8")

    say(f"{machine['name']}, TRL's attention: {place.attention or 'sdpa'} ({place.attention_why})", clock)
    if "tests" in args.only:
        result["tests"] = run_tests(args.out, clock)
        say(f"tests: {result['tests']['said']}", clock)
        write()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "layers" in args.only:
            result["layers"] = run_layers(scale, args.device, args.out, folder / "cache", clock)
            say(f"layers: {result['layers'].get('failed', 'done')}", clock)
            write()
        material = Material(folder, scale, scale.skip + scale.measured + 1)
        run = stack.enter_context(Warm(folder / "cache")).run if args.device == "cpu" else fresh(folder / "cache")
        for job in jobs(scale, place):
            if job.method in args.only:
                found = do(job, place, material, scale, peak=peak, out=args.out, run=run, clock=clock)
                result["jobs"].append(found)
                write()
    write()
    print(page(result))


if __name__ == "__main__":
    main()
