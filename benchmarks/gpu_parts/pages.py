"""The figures of a side, and the page of what came out."""

from __future__ import annotations

import statistics
from typing import Any

from gpu_parts.cards import Model, flops_of

Result = dict[str, Any]

# The rows of a job's table: how a figure is called, and the format of its value.
FIGURES = {
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "completions_per_second": ("completions/s", "{:.2f}"),
    "sampled_per_second": ("sampled tokens/s, in generation", "{:,.0f}"),
    "seconds_per_step": ("s/step, median", "{:.3f}"),
    "mfu": ("MFU", "{:.1%}"),
    "peak_gib": ("peak of the device's memory, GiB", "{:.2f}"),
    "estimated_gib": ("the same as estimated before the first step, GiB", "{:.2f}"),
    "over_start_gib": ("peak over start, GiB", "{:.2f}"),
    "reserved_gib": ("taken by the allocator, GiB", "{:.2f}"),
    "process_mib": ("peak of the process, MiB", "{:,.0f}"),
    "first_step_s": ("first step, s", "{:.1f}"),
    "kernel": ("attention", "{}"),
    "decoding": ("decoding", "{}"),
    "seen": ("attention that ran (trace)", "{}"),
    "busy": ("device at work (traced step)", "{:.0%}"),
    "launches": ("kernels and copies (traced step)", "{:,}"),
    "difference": ("losses differ by (relative)", "{:.1e}"),
}
LAYER_FIGURES = {"ms": 3, "peak_mib": 1, "gb_per_s": 0}  # digits after the point
# Where a step with a rollout goes, in the words of ft-host's metrics; TRL's are measured around its methods.
PARTS = {
    "perf/generation_time": "generation",
    "perf/weight_sync_time": "weights to the engine",
    "perf/reward_time": "rewards",
    "perf/annotation_time": "log-probs of policy and reference before the update",
    "perf/train_time": "training",
}


def figures_of(
    seen: dict[str, Any],
    model: Model,
    facts: dict[str, float],
    skip: int,
    *,
    peak: float | None,
    frozen: bool,
    method: str,
) -> dict[str, Any]:
    """The figures of one run, of the steps after the first `skip`. `facts`: `context` and `supervised`, the share of
    tokens that go through the head. `peak`: the card's, in TFLOP/s.

    MFU is of the whole step, but of training alone where completions are sampled.
    """
    seconds, parts = seen["seconds"][skip:], seen["parts"][skip:]
    tokens = sum(seen["tokens"][skip:])
    device, before = seen["device_peak"], seen["device_before"]
    found: dict[str, Any] = {
        "tokens_per_second": tokens / sum(seconds),
        "seconds_per_step": statistics.median(seconds),
        "process_mib": seen["peak_mb"],
        "first_step_s": seen["first_step_s"],
        "kernel": seen["kernel"],
        "decoding": seen["decoding"],
        "losses": seen["losses"],
        "seconds": seen["seconds"],
        "notes": seen["notes"],
        "trace": seen["trace"],
    }
    if device:
        found["peak_gib"] = device["peak_mb"] / 1024
        found["estimated_gib"] = None if seen["estimate"] is None else seen["estimate"] / 1024
        found["over_start_gib"] = (device["peak_mb"] - before["now_mb"]) / 1024
        found["reserved_gib"] = device["reserved_mb"] / 1024
    learning = sum(seconds)
    if method == "grpo":
        sampled = sum(seen["supervised"][skip:])
        generating = sum(part["generation"] for part in parts)
        found["completions_per_second"] = sum(seen["rows"][skip:]) / sum(seconds)
        found["sampled_per_second"] = sampled / generating
        found["step_parts"] = parts_of(seconds, parts)
        learning -= sum(part["rollout"] for part in parts)
        facts = facts | {"supervised": sampled / tokens}
    flops = flops_of(
        model, tokens, facts["supervised"] * tokens, facts["context"], frozen=frozen, reference=method == "dpo"
    )
    found["tflops_per_second"] = flops / learning / 1e12
    if peak is not None:
        found["mfu"] = found["tflops_per_second"] / peak
    if seen["trace"]:
        found["seen"] = ", ".join(seen["trace"]["attention"][:3])
        found |= {name: seen["trace"][name] for name in ("busy", "launches")}
    return found


def parts_of(seconds: list[float], parts: list[dict[str, float]]) -> dict[str, float]:
    """The mean seconds of each part of a step with a rollout."""
    if "perf/train_time" in parts[0]:
        named = {word: statistics.fmean(part.get(name, 0.0) for part in parts) for name, word in PARTS.items()}
        return named | {"rest": statistics.fmean(seconds) - sum(named.values())}
    generation, rollout = (statistics.fmean(part[name] for part in parts) for name in ("generation", "rollout"))
    return {
        "generation (weights to the engine included)": generation,
        "rewards, log-probs before the update": rollout - generation,
        "training": statistics.fmean(seconds) - rollout,
    }


# ---------------------------------------------------------------- the page


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows)]


def page(result: Result) -> str:
    """All that came out, as Markdown."""
    machine = result["machine"]
    device = f"{machine['name']}, {machine['memory_gib']:.0f} GiB" if machine["memory_gib"] else machine["name"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    lacking = ", ".join(name for name, version in machine["packages"].items() if not version)
    lines = [f"# ft-host on {device}", ""]
    if result["tiny"]:
        lines += [
            "**A rehearsal: models of a few thousand parameters. No figure on this page says how fast anything is.**"
        ]
        lines += [""]
    lines += [
        f"{versions}. Not installed: {lacking or 'nothing'}.",
        f"TRL's attention: {machine['attention'] or 'sdpa'} ({machine['attention_why']}).",
        result["peak"],
        f"{result['took_s']:.0f} s of {result['limit_s']:.0f} s.",
        "",
    ]
    if result["tests"]:
        lines += ["## Tests marked gpu", "", result["tests"]["said"], ""]
    if result["layers"]:
        lines += ["## Norms and gated MLPs alone", "", *layer_lines(result["layers"]), ""]
    for job in result["jobs"]:
        lines += [f"## {job['title']}", "", *job_lines(job), ""]
    return "\n".join(lines)


def layer_lines(layers: Result) -> list[str]:
    """A table of each layer, and why a way of it isn't there."""
    if "failed" in layers:
        return [f"Not measured: {layers['failed']}."]
    lines = [
        f"{layers['tokens']:,} tokens, forward and backward. Peak: over the inputs. GB/s: of what has to be read and "
        "written at the least."
    ]
    for case in layers["cases"]:
        done = {label: way for label, way in case["ways"].items() if "failed" not in way}
        rows = [
            [label, *("" if way[key] is None else f"{way[key]:,.{digits}f}" for key, digits in LAYER_FIGURES.items())]
            for label, way in done.items()
        ]
        lines += ["", f"**{case['title']}**", "", *table(["", "ms", "peak, MiB", "GB/s"], rows)]
        left = [f"{label}: {way['failed']}." for label, way in case["ways"].items() if label not in done]
        lines += ["", " ".join(left)] if left else []
    return lines


def job_lines(job: Result) -> list[str]:
    if job["refused"]:
        return [f"Not run: {job['refused']}."]
    done = {label: side["figures"] for label, side in job["sides"].items() if "figures" in side}
    lines = [f"{label}: {side['failed']}" for label, side in job["sides"].items() if "failed" in side]
    if not done:
        return lines
    if lines:
        lines.append("")
    rows = []
    for key, (word, form) in FIGURES.items():
        values = [figures.get(key) for figures in done.values()]
        if any(value not in (None, "") for value in values):
            rows.append([word, *("" if value in (None, "") else form.format(value) for value in values)])
    lines += table(["", *done], rows)
    for label, figures in done.items():
        if "other_work" in figures:
            lines += ["", f"{label}: {figures['other_work']}"]
        if "step_parts" in figures:
            whole = sum(figures["step_parts"].values())
            said = [f"{word} {took:.3f} s ({took / whole:.0%})" for word, took in figures["step_parts"].items()]
            lines += ["", f"Where a step of {label} goes: {'; '.join(said)}."]
        if figures["trace"]:
            lines += ["", f"{label}, a step of {figures['trace']['seconds']:.3f} s in {figures['trace']['file']}:", ""]
            kernels = figures["trace"]["kernels"]
            rows = [
                [f"`{each['name'][:100]}`", f"{each['seconds'] * 1e3:.2f}", f"{each['count']:,}"] for each in kernels
            ]
            lines += table(["kernel" if figures["busy"] is not None else "operator", "ms", "times"], rows)
    return lines
