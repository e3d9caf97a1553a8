"""Numbers, times and names in a readable form, for HTML and for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ft_host.util.jsonl import json_text, visible

# Heading and unit of each metric. A metric that isn't here is shown by its key.
TITLES = {
    "loss": ("Loss", "per supervised token"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", ""),
    "entropy": ("Entropy", "nats per token"),
    "mean_token_accuracy": ("Token accuracy", "share of tokens right"),
    "eval_loss": ("Held-out loss", "per supervised token"),
    "eval_entropy": ("Held-out entropy", "nats per token"),
    "eval_mean_token_accuracy": ("Held-out token accuracy", "share of tokens right"),
    "eval_reward": ("Held-out reward", "mean over completions"),
    "reward": ("Reward", "mean over completions"),
    "eval_completions/mean_length": ("Held-out completion length", "tokens"),
    "completions/mean_length": ("Completion length", "tokens"),
    "eval_completions/clipped_ratio": ("Held-out completions cut short", "share"),
    "completions/clipped_ratio": ("Completions cut short", "share"),
    "completions/max_length": ("Longest completion", "tokens"),
    "completions/min_length": ("Shortest completion", "tokens"),
    "completions/mean_terminated_length": ("Length of completions that ended", "tokens"),
    "reward_std": ("Spread of the reward", "standard deviation"),
    "frac_reward_zero_std": ("Groups with equal rewards", "share of groups"),
    "kl": ("KL", "nats per token"),
    "objective/kl": ("KL", "nats per completion"),
    "objective/scores": ("Score", "mean over completions"),
    "objective/rlhf_reward": ("Score less KL penalty", "mean over completions"),
    "objective/non_score_reward": ("KL penalty", "mean over completions"),
    "objective/entropy": ("Surprise", "nats per completion"),
    "policy/entropy_avg": ("Entropy", "nats per token"),
    "clip_ratio/region_mean": ("Clipped", "share"),
    "clip_ratio/low_mean": ("Clipped below", "share"),
    "clip_ratio/high_mean": ("Clipped above", "share"),
    "sampling/sampling_logp_difference/mean": ("Sampler vs trainer log-prob", "nats, mean"),
    "sampling/sampling_logp_difference/max": ("Sampler vs trainer log-prob, maximum", "nats"),
    "rollouts/staleness_mean": ("Staleness", "updates since a token was sampled"),
    "rollouts/ess": ("Effective sample size", "share of tokens"),
    "rollouts/ess_rows": ("Effective sample size of completions", "share of completions"),
    "rollouts/logp_difference": ("Policy vs sampler log-prob", "nats, mean"),
    "rollouts/mismatch_mean": ("Engines with the same weights", "nats, mean"),
    "rollouts/late_length": ("Length of late groups", "tokens per completion"),
    "rollouts/late_share": ("Late groups", "share of groups"),
    "rollouts/ready": ("Groups on their way", "groups"),
    "perf/rollout_wait_time": ("Waiting for rollouts", "seconds"),
    "perf/rollout_idle_share": ("Engine without a request", "share of the time"),
    "perf/weight_update_time": ("Engine stands still for new weights", "seconds"),
    "perf/tokens_per_second": ("Tokens/s", "all tokens"),
    "perf/supervised_tokens_per_second": ("Supervised tokens/s", ""),
    "perf/generation_tokens_per_second": ("Sampled tokens/s", ""),
    "perf/step_time": ("Step time", "seconds"),
    "perf/rollout_time": ("Rollout time", "seconds"),
    "perf/generation_time": ("Generation time", "seconds"),
    "perf/reward_time": ("Reward time", "seconds"),
    "perf/weight_sync_time": ("Weight sync time", "seconds"),
    "perf/annotation_time": ("Annotation time", "seconds"),
    "perf/train_time": ("Training time", "seconds"),
    "perf/eval_time": ("Evaluation time", "seconds"),
    "perf/peak_memory_mb": ("Peak memory", "MB"),
}
LOWER, HIGHER = -1, 1


def title(metric: str) -> tuple[str, str]:
    """Return the heading of a metric and its unit; `eval_rewards/exact_match/mean` becomes `Held-out reward:
    exact_match`.
    """
    if metric in TITLES:
        return TITLES[metric]
    plain = plain_name(metric, TITLES)
    if plain is not None:
        named, unit = TITLES[plain]
        return f"{named} of {metric.removeprefix('eval_').removesuffix(plain.removeprefix('eval_')).rstrip('_')}", unit
    match = re.fullmatch(r"(eval_)?rewards/([^/]+)/(mean|std|failed)", metric)
    if match:
        start = "Held-out reward" if match[1] else "Reward"
        units = {"mean": "mean over completions", "std": "standard deviation", "failed": "completions without a value"}
        return f"{start}: {match[2]}", units[match[3]]
    return metric, ""


def plain_name(metric: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that a metric of one of several evaluation sets is of, eval_loss of eval_math_loss;
    None where it is of none."""
    if not metric.startswith("eval_"):
        return None
    known = [name for name in names if name.startswith("eval_") and name != metric]
    ends = [name for name in known if metric.endswith(f"_{name.removeprefix('eval_')}")]
    return max(ends, key=len, default=None)


def better(metric: str, declared: dict[str, str] | None = None) -> int:
    """Return HIGHER where more is better, LOWER where less is, 0 where neither is, or that isn't known.

    `declared`: what the method says, {name without eval_: "lower", "higher" or "neither"}; otherwise the name tells.
    """
    plain = metric.removeprefix("eval_")
    of_sets = [name for name in declared or () if metric.startswith("eval_") and plain.endswith(f"_{name}")]
    own = plain if plain in (declared or {}) else max(of_sets, key=len, default=None)
    if declared and own is not None:
        return {"lower": LOWER, "higher": HIGHER}.get(declared[own], 0)
    if metric.endswith(("/std", "_std", "/failed")):
        return 0
    words = set(re.split(r"[/_]", metric))
    if words & {"loss", "perplexity"}:
        return LOWER
    if words & {"reward", "rewards", "scores", "accuracy", "accuracies"}:
        return HIGHER
    return 0


def _exponent(text: str) -> str:
    """Write an exponent without a leading zero: 2e-05 becomes 2e-5."""
    return re.sub(r"(?:\.0+)?e([+-])0*(\d+)", lambda m: "e" + m[1].strip("+") + m[2], text)


def number(value: float | None) -> str:
    """Format four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, int) and abs(value) > 1e300:  # more digits than a float can have
        value = math.inf if value > 0 else -math.inf
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return _exponent(f"{value:.4g}" if abs(value) < 1 else f"{value:.3e}")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: float | None) -> str:
    """Format a count: 950, 45.3k, 1.21M."""
    if value is None or not math.isfinite(value):
        return number(value)
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            return f"{value / min(scale, 1e3 if letter == 'k' else scale):.3g}{letter}"
    return f"{value:,.0f}"


def change(before: float, after: float) -> str:
    """Return the difference with its sign, and as a share of the value before where that is at most all of it."""
    difference = after - before
    if not math.isfinite(difference):
        return ""
    if difference == 0:
        return "same"
    sign = "+" if difference > 0 else "−"
    share = abs(difference) / before if before > 0 else math.inf
    if not 0.0005 <= share <= 1:
        return sign + number(abs(difference))
    return f"{sign}{number(abs(difference))} ({sign}{share:.{0 if share >= 0.0995 else 1}%})"


def duration(seconds: float | None) -> str:
    """Format seconds: 41.3 s, 3 min 41 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def memory(megabytes: float | None) -> str:
    """Format megabytes as MB or GB."""
    if megabytes is None or not math.isfinite(megabytes):
        return "–"
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def moment(when: datetime | None) -> str:
    """Format date and time in the zone that they were written in."""
    if when is None:
        return "–"
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when:%Y-%m-%d %H:%M}{zone}"


def value(thing: Any) -> str:
    """Format a config value as in a run file."""
    if isinstance(thing, str):
        return thing if thing.strip() == thing and thing else json_text(thing, words=False)
    if isinstance(thing, float) and math.isfinite(thing):
        return _exponent(repr(thing)) if "e" in repr(thing) else repr(thing)
    return json_text(thing, words=False)


def yaml_value(thing: Any) -> str:
    """Return JSON, which is YAML too, except for floats: YAML 1.1 reads 1e-05 without a point as text."""
    if isinstance(thing, float):
        if not math.isfinite(thing):
            return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[repr(thing)]
        text = repr(thing)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(thing, list):
        return "[" + ", ".join(yaml_value(item) for item in thing) + "]"
    if isinstance(thing, dict):
        return "{" + ", ".join(f"{json_text(str(key))}: {yaml_value(item)}" for key, item in thing.items()) + "}"
    return json_text(thing)


def plain(thing: Any) -> Any:
    """Return the value for strict JSON: numbers that aren't finite become null."""
    if isinstance(thing, float):
        return thing if math.isfinite(thing) else None
    if isinstance(thing, dict):
        return {key: plain(item) for key, item in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [plain(item) for item in thing]
    return thing


def flat(thing: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"train": {"rows": 3}} becomes {"train.rows": 3}."""
    if not isinstance(thing, dict) or not thing:
        return {prefix: thing} if prefix else {}
    out: dict[str, Any] = {}
    for key, item in thing.items():
        out.update(flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return out


def table(header: list[str], rows: list[list[str]], right: set[int] = frozenset()) -> str:
    """Return aligned columns for a terminal; `right` holds the columns that are aligned to the right."""
    lines = [[visible(cell).replace("\n", "\\n") for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    out = []
    for line in lines:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)
