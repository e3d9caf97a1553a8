"""What of other tools' fields belongs to one kind of methods: rewards, servers, PPO's rollouts, DPO's added loss."""

from __future__ import annotations

import math

from ft_host.config.builtin_rewards import BUILTIN
from ft_host.migrate.sources import Found

# Arguments that TRL's own scripts give to a reward of its own.
OVERLONG = {"get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256}}


def nll(found: Found) -> None:
    """`rpo_alpha`: the loss of the chosen completion as text, added to whatever the loss is."""
    alpha = found.value("rpo_alpha")
    if alpha is None:
        return
    place = found.values.pop("rpo_alpha")[1]
    kinds = found.value("loss_type", "sigmoid")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    weights = found.value("loss_weights", [1.0] * len(kinds))
    found.put("loss_type", [*kinds, "sft"], place, "with rpo_alpha there")
    found.put("loss_weights", [*weights, alpha], place, f"rpo_alpha: {alpha} there")


def rewards(found: Found) -> None:
    """Reward models before functions, functions as module:function, and arguments that a script of TRL's sets."""
    models = found.values.pop("reward_model_name_or_path", (None, ""))
    given = found.value("reward_funcs", found.value("reward"))
    items = [given] if isinstance(given, str) else list(given or [])
    named = [dotted(each) if isinstance(each, str) else each for each in items]
    if models[0] is not None:
        named.insert(0, models[0])
    if named != items:
        for name in ("reward_funcs", "reward"):
            found.values.pop(name, None)
        written = "reward_model_name_or_path there" if models[0] is not None else f"reward_funcs: {items} there"
        found.put("reward", named, models[1] or "reward_funcs", written.replace("'", ""))
    chosen = {name: kwargs for name, kwargs in OVERLONG.items() if name in named} if found.command else {}
    if chosen and found.tool == "TRL":
        found.put("reward_kwargs", chosen, "reward_funcs", "what TRL's script sets")


def dotted(name: str) -> str:
    """`my_lib.rewards.short` as `my_lib.rewards:short`; other names as they are."""
    plain = name not in BUILTIN and ":" not in name and "/" not in name and "." in name
    module, _, function = name.rpartition(".")
    return f"{module}:{function}" if plain and name.replace(".", "_").isidentifier() else name


def server(found: Found) -> None:
    """Host and port of a server of vLLM's as its address."""
    host, port = found.value("vllm_server_host"), found.value("vllm_server_port")
    if host is None and port is None or found.value("vllm_server_base_url"):
        return
    place = next(found.values.pop(name)[1] for name in ("vllm_server_host", "vllm_server_port") if name in found.values)
    found.values.pop("vllm_server_port", None)
    host = "127.0.0.1" if host in (None, "0.0.0.0") else host
    found.put("vllm_server_base_url", f"http://{host}:{port or 8000}", place, "vllm_server_host and _port there")


def older_ppo(found: Found) -> None:
    """PPO of TRL up to 0.11: a rollout is `batch_size`, a micro-batch `mini_batch_size`, and the length `steps`."""
    found.became("ppo_epochs", "num_ppo_epochs")
    found.became("init_kl_coef", "kl_coef")
    if not {"batch_size", "mini_batch_size"} & set(found.values):
        return
    found.became("steps", "total_episodes")
    found.without("reward_model", "it says nothing there but what a tracker shows; rewards are given to step()")
    rows, mini = found.value("batch_size", 128), found.value("mini_batch_size", 128)
    place = found.values.get("batch_size", found.values.get("mini_batch_size", (None, "")))[1]
    step = mini * found.value("gradient_accumulation_steps", 1)
    found.values.pop("batch_size", None)
    found.values.pop("mini_batch_size", None)
    found.put("per_device_train_batch_size", mini, place, "mini_batch_size there")
    found.put("num_mini_batches", max(1, rows // step), place, f"batch_size: {rows} there, in steps of {step}")


def episodes(found: Found) -> None:
    """PPO's length: as many rollouts as have so many completions, each of num_ppo_epochs × num_mini_batches steps."""
    total = found.value("total_episodes")
    if total is None or found.value("max_steps", -1) > 0:
        found.without("total_episodes", "max_steps, which is given too, decides")
        return
    place = found.values.pop("total_episodes")[1]
    batches = found.value("num_mini_batches", 1)
    size = found.value("per_device_train_batch_size", 8) * found.value("gradient_accumulation_steps", 1) * batches
    size *= found.value("num_processes", 1)
    rollouts = math.ceil(total / size)
    steps = rollouts * batches * found.value("num_ppo_epochs", 4)
    name, processes = found.was.get("total_episodes", "total_episodes"), found.value("num_processes", 1)
    said = f"{name}: {total} there, on {processes} process: {rollouts} rollouts of {size}"
    found.put("max_steps", steps, place, said)
