"""Chooses the layout of a model's batches: the first one that reproduces the model's own numbers for single rows.
Freezes what no batch of texts reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ft_host.batch import Batch, Segment, flat_batch
from ft_host.config.adapters import ALL_LINEAR
from ft_host.errors import ConfigError
from ft_host.models.adapters import take_off
from ft_host.models.attention import NotFlat, install, original_of
from ft_host.models.reach import backbone_of, outside_text, text_part, within, without_graph
from ft_host.models.shards import reshard, root_whole
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy


def _rows_alone(policy: Policy, rows: list[list[int]]) -> torch.Tensor:
    """Return the model's own values for each row alone, from its own attention and full logits.

    These are log-probs of the tokens after the first, or the score of a reward model.
    """
    out = []
    for row in rows:
        ids = torch.tensor([row], device=policy.device)
        with root_whole(policy):
            logits = policy.model(input_ids=ids, use_cache=False).logits[0]
        if policy.head is not None:
            out.append(logits.float())
            continue
        logs = logits[:-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        out.append(logs.gather(1, ids[0, 1:, None]).squeeze(1))
    return torch.cat(out)


def _forest_of(policy: Policy, rows: list[list[int]]) -> Batch:
    """Return a flat batch with the second row as a prompt of 13 tokens and a child, between the other two rows."""
    first, second, third = rows
    return flat_batch(
        [
            Segment(input_ids=first, labels=first, row=0),
            Segment(input_ids=second[:13], labels=second[:13], row=1),
            Segment(input_ids=second[13:], labels=second[13:], row=1, parent=1),
            Segment(input_ids=third, labels=third, row=2),
        ],
        num_rows=3,
        pad_token_id=None if policy.head is None else policy.config.pad_token_id,
    ).to(policy.device)


def probe(policy: Policy) -> tuple[float, float]:
    """Return the largest difference between a small flat batch through the policy and its rows alone, and the leak.

    The difference is in log-probs (scores, for a reward model). The leak is how much values of later rows change when
    all tokens of the first row change. It contains no rounding, so that it shows state that leaks between rows in half
    precision too.

    Runs the policy in training mode as well: what a kernel can't do only there (dropout) fails here and not in the
    first step. Restores random states and train mode.
    """
    generator = torch.Generator().manual_seed(0)
    size = policy.config.vocab_size
    rows = [torch.randint(size, (n,), generator=generator).tolist() for n in (9, 20, 5)]
    want, later = "logp", len(rows[0]) - 1
    if policy.head is not None:
        want, later = "score", 1
        rows[1][-2:] = [policy.config.pad_token_id] * 2  # reveals a model that reads its score elsewhere
    others = [[(token + size // 2) % size for token in rows[0]], *rows[1:]]
    training = policy.training
    try:
        with torch.no_grad(), devices.forked_random(policy.device):
            policy.train()
            policy(_forest_of(policy, rows), want=(want,))
            policy.eval()
            ours = policy(_forest_of(policy, rows), want=(want,))[want]
            changed = policy(_forest_of(policy, others), want=(want,))[want]
            theirs = _rows_alone(policy, rows)
    finally:
        policy.train(training)
        reshard(policy)
    return float((ours - theirs).abs().max()), float((ours - changed)[later:].abs().max())


def trial(policy: Policy) -> torch.Tensor:
    """Return values of a small batch with the graph behind them, in training mode. Restores random states and mode."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(policy.config.vocab_size, (n,), generator=generator).tolist() for n in (3, 16, 2)]
    want, training = "logp" if policy.head is None else "score", policy.training
    try:
        with torch.enable_grad(), devices.forked_random(policy.device):
            policy.train()
            return policy(_forest_of(policy, rows), want=(want,))[want].sum()
    finally:
        policy.train(training)
        reshard(policy)


def freeze_unreached(policy: Policy, config: RunConfig) -> None:
    """Freeze the trained parameters that no text reaches: towers and projectors of a vision-language model, layers for
    its images. Raises ConfigError for an adapter there, of which nothing would be trained.

    Otherwise DDP would wait for their gradients, and an optimizer decay them.
    """
    outside = outside_text(policy.causal_lm, policy.head)
    for name, parameter in policy.causal_lm.named_parameters():
        if within(name, outside):
            parameter.requires_grad_(False)
    left = without_graph(policy, trial(policy))
    adapted = [name for name in left if "lora_" in name]
    if adapted and config.lora_target_modules == ALL_LINEAR:
        off = take_off(policy.model, [name.removeprefix("model.") for name in adapted])
        policy.notes.append(
            f"all-linear leaves out {', '.join(off[:3])}{' …' if len(off) > 3 else ''} ({len(off)} modules): no text "
            "would go through an adapter there"
        )
        left = [name for name in left if name not in adapted]
    elif adapted:
        raise ConfigError(
            f"lora_target_modules: no text goes through {len(adapted)} of the adapter's tensors, so they would not be "
            f"trained, for instance {adapted[0].removeprefix('model.')}; leave those modules out"
        )
    parameters = {f"model.{name}": parameter for name, parameter in policy.model.named_parameters()}
    for name in left:
        parameters[name].requires_grad_(False)
    names = outside + [name.removeprefix("model.") for name in left]
    if not names:
        return
    whole = sum(p.numel() for p in parameters.values())
    policy.unreached = sum(p.numel() for name, p in policy.causal_lm.named_parameters() if within(name, outside))
    policy.unreached += sum(parameters[name].numel() for name in left)
    share = 100 * policy.unreached / whole
    named = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''} ({share:.1f} % of the weights)"
    adapter = policy.model is not policy.causal_lm
    policy.notes.append(
        f"no text goes through {named}: {'no adapter is put there' if adapter else 'frozen, and saved as it is'}"
    )


def _tolerances(policy: Policy, config: RunConfig) -> tuple[float, float]:
    """Return the largest difference that is rounding, and the largest leak, by the type of the maths.

    A product in 8 bits takes the columns that stand out in any of its rows at full precision: what a row gives does
    depend on the others, within the rounding.
    """
    if config.load_in_8bit:
        return 0.5, 0.5
    wide = next(p.dtype for p in policy.model.parameters() if p.is_floating_point())
    narrow = torch.is_autocast_enabled(policy.device.type) or wide not in (torch.float32, torch.float64)
    return (0.5, 5e-3) if narrow else (1e-3, 1e-5)


def _mixes_otherwise(policy: Policy) -> str | None:
    """Return what in the model is known to mix tokens other than by attention, or None."""
    kinds = policy.config.to_dict().get("layer_types") or ()
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        return f"it has layers of type {', '.join(others)}"
    for name, module in backbone_of(policy.causal_lm, policy.head).named_modules():
        if isinstance(module, nn.Conv1d):
            return f"{name} is a convolution over tokens"
    return None


def choose_layout(policy: Policy, config: RunConfig) -> None:
    """Set `policy.kernel` to the first allowed layout that gives the model's own log-probs or scores.

    Raises ConfigError where none does: the head isn't supported, or the requested layout doesn't work.
    """
    auto = ("flex", "sdpa", "none") if policy.device.type == "cuda" else ("sdpa", "none")
    ways = auto if config.segment_attention == "auto" else (config.segment_attention,)
    model, reasons = policy.causal_lm, []
    tolerance, leaking = _tolerances(policy, config)
    values = "log-probs" if policy.head is None else "scores"
    part = text_part(model)
    original = original_of(part.config)
    for kernel in ways:
        try:
            if kernel == "flex" and policy.device.type != "cuda":
                raise NotFlat("torch has a backward pass of flex_attention on CUDA only")
            if kernel != "none":
                mixer = _mixes_otherwise(policy)
                if mixer:
                    raise NotFlat(mixer)
                install(model)
            policy.kernel = kernel
            difference, leak = probe(policy)
        except (NotFlat, RuntimeError, TypeError, AttributeError) as error:  # it may read its mask, for instance
            difference, reason = float("inf"), str(error).splitlines()[0]
        else:
            reason = f"{values} differ by {difference:.2g} from those of single rows"
            if kernel != "none" and leak > leaking:
                difference, reason = float("inf"), f"a row changes the {values} of another one by {leak:.2g}"
        if difference <= tolerance:
            policy.layout_difference, policy.layout_leak = difference, None if kernel == "none" else leak
            if kernel == "none":
                why = f" ({reasons[0]})" if reasons else ""
                policy.notes.append(f"{type(model).__name__} takes padded batches: it can't take flat ones{why}")
            return
        reasons.append(f"{kernel}: {reason}")
        if original_of(part.config) != part.config._attn_implementation:
            part.set_attn_implementation(original)
    broken = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if broken is not None:
        raise ConfigError(
            f"model: {broken} has NaN or infinite values, so all outputs of the model have",
            facts={
                "watch/not_finite": "weight",
                "watch/not_finite_value": "nan",
                "watch/not_finite_step": 0,
                "watch/not_finite_of": "weight",
                "watch/not_finite_parameter": broken,
            },
        )
    raise ConfigError(
        f"model: {type(model).__name__} does not give its own {values} through segment_attention "
        f"{config.segment_attention} ({'; '.join(reasons)})"
    )
