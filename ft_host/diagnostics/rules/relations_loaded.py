"""Relations between settings and what is loaded, adapters, models and rollouts, as `relations` has those of every run.
Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ft_host.diagnostics.suspects import Suspect, shown
from ft_host.diagnostics.view import View, short

# ---------------------------------------------------------------- adapters


def lora_scale(view: View) -> Iterator[Suspect]:
    """lora_alpha / lora_r: 0.05 to 8 (lora_alpha / sqrt(lora_r) with use_rslora: 0.05 to 32); of an adapter that is
    loaded, what its adapter_config.json has, patterns too (arXiv 2106.09685; TRL LoRA without regret; arXiv
    2312.03732)."""
    config, folder = view.config, view.get("model/adapter")
    if not config.use_peft:
        return
    root = view.get("model/adapter_rslora", False) if folder else config.use_rslora
    ranks = view.get("model/adapter_ranks", {}) if folder else {"": [config.lora_r, config.lora_alpha]}
    low, high, fits = 0.05, 32.0 if root else 8.0, 4 if root else 2
    worst = max(ranks, key=lambda part: off_by(scale_of(*ranks[part], root), low, high), default=None)
    if worst is None or low <= scale_of(*ranks[worst], root) <= high:
        return
    rank, alpha = ranks[worst]
    scale, size = scale_of(rank, alpha, root), math.sqrt(rank) if root else rank
    far, new = off_by(scale, low, high), max(1, round(fits * size))
    place = f"{folder}/adapter_config.json"
    whose = f" of {worst or 'all parts'} in {place}" if folder else ""
    formula = "lora_alpha / sqrt(lora_r)" if root else "lora_alpha / lora_r"
    yield Suspect(
        field="lora_alpha",
        value=alpha,
        usual=f"a scale of {short(low)} to {short(high)}",
        explains=(("no_learning",) if scale < low else ("divergence", "forgetting"))
        + (("bad_start",) if folder else ()),
        source="arXiv 2106.09685; TRL LoRA without regret",
        new=new,
        patch={} if folder else None,
        said=(
            f"lora_alpha {shown(alpha)} and lora_r {rank}{whose} scale the adapter by {short(scale)} ({formula}; usual:"
            f" {short(low)} to {short(high)})"
        ),
        why="what an adapter adds, and how far each update goes, is multiplied by that",
        remedy=f"Correct lora_alpha{f' of {worst}' if worst else ''} in {place}: {new} is usual for its rank"
        if folder
        else "",
        certain=far >= (1 if folder else 2),
        distance=far,
    )


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query", "key", "value", "query_key_value"}


def adapters_on_attention(config: Any) -> bool:
    """Whether adapters are on layers of attention alone."""
    names = config.lora_target_modules
    return config.use_peft and bool(names) and set(names) <= ATTENTION


def scale_of(rank: int, alpha: float, root: bool) -> float:
    return alpha / (math.sqrt(rank) if root else rank)


def off_by(scale: float, low: float, high: float) -> float:
    """How far a scale is beyond what is usual, in powers of ten; 9 at 0."""
    if scale <= 0:
        return 9.0
    return max(math.log10(low / scale), math.log10(scale / high), 0.0)


# ---------------------------------------------------------------- what the model's own config has

EPS, DROPOUT = "norm_eps", "dropout"
# {part of a name: (low, high, symptoms)}; the first that fits is taken.
OF_MODELS: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "jitter": (0.0, 0.2, ("imbalance",)),
    "softcapping": (10.0, 1000.0, ("no_learning", "bad_start")),
    "rope_theta": (1e3, 1e9, ("bad_start",)),
    "initializer_range": (1e-3, 0.2, ("bad_start",)),
    "eps": (1e-13, 1e-3, ("bad_start", "no_learning")),
    "pdrop": (0.0, 0.3, ("no_learning",)),
    "dropout": (0.0, 0.3, ("no_learning",)),
}


def model_settings(view: View) -> Iterator[Suspect]:
    """The model's config.json: dropout at most 0.3, eps of norms 1e-13 to 1e-3, rope_theta 1e3 to 1e9, soft caps of
    logits 10 or more, initializer_range 0.001 to 0.2 (published models)."""
    for name, value in view.get("model/settings", {}).items():
        low, high, symptoms = next(bounds for part, bounds in OF_MODELS.items() if part in name)
        drops = part_of_dropout(name)
        if low <= value <= high or (drops and view.config.disable_dropout):
            continue
        off = {"disable_dropout": True} if drops else {}
        yield Suspect(
            field=f"model.{name}",
            value=value,
            usual=f"{short(low)} to {short(high)}",
            explains=symptoms,
            source="config.json of published models",
            patch=off,
            said=f"the model's config.json has {name} {short(value)} (usual: {short(low)} to {short(high)})",
            why="noise in the model's own layers outweighs what is learnt" if drops else "it computes something else",
            remedy="Set disable_dropout: train without the model's own dropout"
            if off
            else f"Correct {name} in the model's config.json, and compare it with the one it was published with",
            distance=1.0,
        )


def part_of_dropout(name: str) -> bool:
    return "dropout" in name or "pdrop" in name


def balance_of_experts(view: View) -> Iterator[Suspect]:
    """router_aux_loss_coef, or the model's own: 1e-4 to 0.1 (arXiv 2101.03961: 0.01; OLMoE, Mixtral: 0.001 to 0.02)."""
    if "model/experts" not in view.facts:
        return
    given = view.config.router_aux_loss_coef
    now = view.get("model/router_aux_loss_coef", 0.0) if given is None else given
    if 1e-4 <= now <= 0.1:
        return
    new, whose = 0.01 if now < 1e-4 else 1e-3, "" if given is not None else ", the model's own value,"
    yield Suspect(
        field="router_aux_loss_coef",
        value=now,
        usual="1e-4 to 0.1",
        explains=("imbalance",) if now < 1e-4 else ("no_learning",),
        source="arXiv 2101.03961; configs of published models",
        new=new,
        remedy=f"{'Raise' if new > now else 'Lower'} router_aux_loss_coef from {short(now)}{whose} to {short(new)}",
        noted=now > 0.1,  # 0 turns it off, and a pretrained model may do without
        distance=9.0 if not now else abs(math.log10(now / (1e-4 if now < 1e-4 else 0.1))),
    )


# ---------------------------------------------------------------- rollouts


def reuse_of_rollouts(view: View) -> Iterator[Suspect]:
    """steps_per_generation, num_mini_batches: at most 32 updates with one rollout; max_staleness: at most 8 rollouts
    (PPO implementations; AReaL, arXiv 2505.24298)."""
    updates, config = view.get("plan/updates", 1), vars(view.config)
    field = next((name for name in ("steps_per_generation", "num_mini_batches") if (config.get(name) or 1) > 32), None)
    if field is not None and updates > 32:
        yield Suspect(
            field=field,
            value=config[field],
            usual="at most 32 updates with one rollout",
            explains=("divergence", "forgetting"),
            source="implementations of policy gradients",
            new=None if field == "steps_per_generation" else 1,
            why="the later updates learn from completions that the policy would no longer write",
            distance=math.log10(updates / 32),
        )
    staleness = config.get("max_staleness") or 0
    if staleness > 8 * updates:
        yield Suspect(
            field="max_staleness",
            value=staleness,
            usual=f"at most 8 rollouts, which are {8 * updates} steps",
            explains=("divergence", "forgetting"),
            source="AReaL, arXiv 2505.24298",
            new=updates,
            why="completions are of weights that are long gone",
            distance=math.log10(staleness / (8 * updates)),
        )


def weights_of_rewards(view: View) -> Iterator[Suspect]:
    """reward_weights: not all 0, and none a hundred times another (own judgement)."""
    weights = vars(view.config).get("reward_weights") or []
    sizes = [abs(each) for each in weights if each]
    if not weights or (sizes and max(sizes) <= 100 * min(sizes)):
        return
    yield Suspect(
        field="reward_weights",
        value=weights,
        usual="within a factor of 100 of each other",
        explains=("no_signal", "no_learning"),
        source="own judgement",
        new=[1.0] * len(weights),
        why="rewards of a small weight count for nothing" if sizes else "no reward counts",
        certain=not sizes,
        distance=math.log10(max(sizes) / min(sizes)) - 2 if sizes else 9.0,
    )
