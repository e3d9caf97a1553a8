"""The head gives the values and gradients of full rows of logits, which it never makes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ft_host.batch import IGNORE, Segment, flat_batch
from ft_host.models import Policy, head, tiles
from ft_host.models.attention import install
from ft_host.models.logit_scaling import LogitScaling, logit_scaling_of
from ft_host.testing import models

N, H, V = 70, 12, 301
WANT = tiles.WANTS
SHAPES = {
    "plain": LogitScaling(),
    "softcap": LogitScaling(softcap=3.0),
    "scale": LogitScaling(scale=0.4),
    "both": LogitScaling(scale=0.3, softcap=3.0),  # beyond it, float32 no longer tells large capped logits apart
    "temperature": LogitScaling(temperature=0.7),
    "all": LogitScaling(scale=0.3, softcap=3.0, temperature=1.4),
}
# Losses of a target's log-prob.
LOSSES: dict[str, Callable] = {
    "nll": lambda logp: -logp,
    "dft": lambda logp: -logp.exp().detach() * logp,
    "some": lambda logp: -(logp > -6).to(logp.dtype) * 0.3 * logp,
    "clipped ratio": lambda logp: -torch.minimum((logp + 6).exp(), (logp + 6).exp().clamp(0.8, 1.2)),
}


def nll(values, part):
    return -values["logp"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Sixteen targets a tile: five tiles, the last one of six."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 1)
    monkeypatch.setattr(tiles, "TILE_TARGETS", 16)
    monkeypatch.setattr(head, "KEPT_BYTES", 0)
    assert len(tiles.tiles_of(N, V, 4, torch.device("cpu"))) == 5


def inputs(count: int = N, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, H, generator=generator, dtype=torch.float64).to(dtype)
    matrix = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(V, (count,), generator=generator)
    targets[: count // 2] = (hidden @ matrix.T).argmax(-1)[: count // 2]  # some hits
    return hidden.requires_grad_(), matrix.requires_grad_(), targets


def reference(hidden, matrix, targets, shape, bias=None):
    """All of it in float64, with full rows of logits."""
    logits = hidden.double() @ matrix.double().T + (0 if bias is None else bias.double())
    logits = logits * shape.scale
    if shape.softcap:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    logits = logits / shape.temperature
    logs = F.log_softmax(logits, -1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    squares = logs.exp().square().sum(-1).log()
    hits, means = logits.argmax(-1) == targets, logits.mean(-1)
    return logs.gather(1, targets[:, None]).squeeze(1), entropy, hits, means, squares, logs.mean(-1)


def close(found, expected, tolerance):
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def check_values(out, expected, tolerance):
    logp, entropy, top1, mean_logit, log_sum_sq_probs, mean_logp = expected
    close(out["mean_logp"].detach(), mean_logp.detach(), tolerance)
    close(out["logp"].detach(), logp.detach(), tolerance)
    close(out["entropy"].detach(), entropy.detach(), tolerance)
    close(out["mean_logit"], mean_logit.detach(), tolerance)
    close(out["log_sum_sq_probs"], log_sum_sq_probs.detach(), tolerance)
    assert torch.equal(out["top1"], top1) and 0 < top1.sum() < len(top1)
    assert not any(out[name].requires_grad for name in WANT if name not in tiles.SMOOTH)


# ---------------------------------------------------------------- the three ways


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_tiled_loss(shape, loss, dtype):
    hidden, matrix, targets = inputs(dtype=dtype)
    loss, shape, tolerance = LOSSES[loss], SHAPES[shape], TOLERANCE[dtype]
    expected = reference(hidden, matrix, targets, shape)
    summed = loss(expected[0]).sum()
    grads = torch.autograd.grad(-2.5 * summed, (hidden, matrix))

    out = head.tiled_loss(hidden, matrix, targets, lambda values, part: loss(values["logp"]), shape, WANT)
    check_values(out, expected, tolerance)
    close(out["loss"].detach(), summed.detach(), tolerance)
    assert not out["logp"].requires_grad and not out["entropy"].requires_grad and out["loss"].dtype == dtype
    for found, wanted in zip(torch.autograd.grad(-2.5 * out["loss"], (hidden, matrix)), grads, strict=True):
        assert found.dtype == dtype
        close(found, wanted, tolerance)


@pytest.mark.parametrize("want", [WANT, ("top1",)], ids=["all", "top1"])
@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs(shape, dtype, kept, want, monkeypatch):
    """With logits made again in the backward pass, and with probabilities kept for it."""
    monkeypatch.setattr(head, "KEPT_BYTES", kept)
    hidden, matrix, targets = inputs(dtype=dtype)
    shape, tolerance, incoming = SHAPES[shape], TOLERANCE[dtype], torch.linspace(-1, 2, N, dtype=dtype)
    expected = reference(hidden, matrix, targets, shape)
    grads = torch.autograd.grad((expected[0] * incoming).sum(), (hidden, matrix))
    out = head.log_probs(hidden, matrix, targets, shape, want)
    if want == WANT:
        check_values(out, expected, tolerance)
    close(out["logp"].detach(), expected[0].detach(), tolerance)
    for found, wanted in zip(torch.autograd.grad((out["logp"] * incoming).sum(), (hidden, matrix)), grads, strict=True):
        close(found, wanted, tolerance)


@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("with_logp", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_with_gradient(shape, with_logp, kept, monkeypatch):
    """A bonus for entropy, alone and beside a loss of log-probs, in both ways and through a head of any kind."""
    monkeypatch.setattr(head, "KEPT_BYTES", kept)
    hidden, matrix, targets = inputs(dtype=torch.float64)
    shape, incoming = SHAPES[shape], torch.linspace(-1, 2, N, dtype=torch.float64)
    module = nn.Linear(H, V, bias=False, dtype=torch.float64)
    module.weight = nn.Parameter(matrix.detach().clone())
    expected = reference(hidden, matrix, targets, shape)

    def loss(logp, entropy):
        return (entropy * incoming.flip(0)).sum() + (logp * incoming).sum() * with_logp

    grads = torch.autograd.grad(loss(*expected[:2]), (hidden, matrix))
    out = head.log_probs(hidden, matrix, targets, shape, WANT)
    for found, wanted in zip(
        torch.autograd.grad(loss(out["logp"], out["entropy"]), (hidden, matrix)), grads, strict=True
    ):
        close(found, wanted, 1e-12)
    out = head.log_probs_of_module(hidden, module, targets, V, shape, WANT)
    found = torch.autograd.grad(loss(out["logp"], out["entropy"]), (hidden, module.weight))
    for one, wanted in zip(found, grads, strict=True):
        close(one, wanted, 1e-12)

    def losses(values, part):
        return values["entropy"] * incoming.flip(0)[part] + values["logp"] * incoming[part] * with_logp

    out = head.tiled_loss(hidden, matrix, targets, losses, shape, WANT)
    for found, wanted in zip(torch.autograd.grad(out["loss"], (hidden, matrix)), grads, strict=True):
        close(found, wanted, 1e-12)


@pytest.mark.parametrize("way", ["tiles", "again", "kept", "module"])
@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_all_log_probs_with_gradient(shape, with_entropy, way, monkeypatch):
    """As smoothed labels need it: (1 - e) (- log p) - e mean log p, in every way to a gradient."""
    monkeypatch.setattr(head, "KEPT_BYTES", 2**30 if way == "kept" else 0)
    hidden, matrix, targets = inputs(dtype=torch.float64)
    shape, want = SHAPES[shape], ("mean_logp", "entropy") if with_entropy else ("mean_logp",)

    def losses(values, part=None):
        extra = 0.2 * values["entropy"] if with_entropy else 0.0
        return -0.9 * values["logp"] - 0.1 * values["mean_logp"] + extra

    logp, entropy, *_, mean_logp = reference(hidden, matrix, targets, shape)
    summed = losses({"logp": logp, "entropy": entropy, "mean_logp": mean_logp}).sum()
    grads = torch.autograd.grad(summed, (hidden, matrix))
    if way == "tiles":
        out = head.tiled_loss(hidden, matrix, targets, losses, shape, want)
        found = out["loss"]
    elif way == "module":
        module = nn.Linear(H, V, bias=False, dtype=torch.float64)
        module.weight = nn.Parameter(matrix.detach())
        out = head.log_probs_of_module(hidden, module, targets, V, shape, want)
        matrix, found = module.weight, losses(out).sum()
    else:
        out = head.log_probs(hidden, matrix, targets, shape, want)
        found = losses(out).sum()
    close(out["mean_logp"].detach(), mean_logp.detach(), 1e-13)
    close(found.detach(), summed.detach(), 1e-13)
    for one, other in zip(torch.autograd.grad(found, (hidden, matrix)), grads, strict=True):
        close(one, other, 1e-12)


def test_entropy_of_certainty_has_a_finite_gradient():
    """Probabilities that are 0 in this type add nothing, rather than 0 times infinity."""
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    out = head.log_probs(hidden, matrix, torch.tensor([0]), want=("entropy",))
    (grad,) = torch.autograd.grad(out["entropy"].sum(), hidden)
    assert out["entropy"].detach() == 0 and torch.equal(grad, torch.zeros(1, 2))


def test_a_loss_is_told_which_targets_it_is_of():
    """It can cut its own values of each target, and gets what is wanted beside the log-probs."""
    hidden, matrix, targets = inputs(dtype=torch.float64)
    weights, told = torch.linspace(-1, 2, N, dtype=torch.float64), []
    logp = reference(hidden, matrix, targets, LogitScaling(temperature=0.7))[0]
    grads = torch.autograd.grad(-(weights * logp).sum(), (hidden, matrix))

    def losses(values, part):
        told.append((part.start, part.stop, tuple(values)))
        return -weights[part] * values["logp"]

    out = head.tiled_loss(hidden, matrix, targets, losses, LogitScaling(temperature=0.7), ("top1",))
    assert told == [(start, min(start + 16, N), ("logp", "top1")) for start in range(0, N, 16)]
    for found, wanted in zip(torch.autograd.grad(out["loss"], (hidden, matrix)), grads, strict=True):
        close(found, wanted, 1e-12)


@pytest.mark.parametrize("way", ["tiles", "whole"])
@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda values, part: -values["logp"].mean(), r"loss: gives \(\) for \d+ targets; expected the loss of each"),
        (lambda values, part: 0.0, "loss: gives float for"),
        (lambda values, part: -values["logp"].detach(), "loss: gives losses without gradient"),
    ],
)
def test_a_loss_that_does_not_give_one_for_each_target_is_refused(losses, message, way):
    hidden, matrix, targets = inputs()
    with pytest.raises(ValueError, match=message):
        if way == "tiles":
            head.tiled_loss(hidden, matrix, targets, losses)
        else:
            head.loss_of_values(head.log_probs(hidden, matrix, targets), losses)


def test_a_loss_of_all_values_at_once_is_the_same():
    """Under float16, and for a head of any kind: the same formula through autograd."""
    hidden, matrix, targets = inputs(dtype=torch.float64)

    def losses(values, part):
        return values["logp"].exp() * targets[part] - values["entropy"]

    out = head.tiled_loss(hidden, matrix, targets, losses, want=("entropy",))
    whole = head.loss_of_values(head.log_probs(hidden, matrix, targets, want=("entropy",)), losses)
    assert out.keys() == whole.keys() and not whole["logp"].requires_grad and not whole["entropy"].requires_grad
    close(whole["loss"].detach(), out["loss"].detach(), 1e-12)
    grads = torch.autograd.grad(out["loss"], (hidden, matrix))
    for found, wanted in zip(torch.autograd.grad(whole["loss"], (hidden, matrix)), grads, strict=True):
        close(found, wanted, 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_of_a_module_with_a_bias(shape):
    hidden, matrix, targets = inputs()
    shape, incoming = SHAPES[shape], torch.linspace(-1, 2, N)
    module = nn.Linear(H, V)
    module.weight.data.copy_(matrix.detach())
    expected = reference(hidden, module.weight, targets, shape, module.bias)
    trained = (hidden, module.weight, module.bias)
    grads = torch.autograd.grad((expected[0] * incoming).sum(), trained)
    out = head.log_probs_of_module(hidden, module, targets, V, shape, WANT)
    check_values(out, expected, 2e-6)
    for found, wanted in zip(torch.autograd.grad((out["logp"] * incoming).sum(), trained), grads, strict=True):
        close(found, wanted, 2e-6)
    with torch.no_grad():
        check_values(head.log_probs_of_module(hidden, module, targets, V, shape, WANT), expected, 2e-6)


def test_only_what_is_wanted_is_given():
    hidden, matrix, targets = inputs()
    module = nn.Linear(H, V)
    for size in range(3):
        for want in itertools.combinations(("entropy", "top1"), size):
            names = {"logp", *want}
            assert head.log_probs(hidden, matrix, targets, want=want).keys() == names
            assert head.log_probs_of_module(hidden, module, targets, V, want=want).keys() == names
            assert head.tiled_loss(hidden, matrix, targets, nll, want=want).keys() == names | {"loss"}


def test_no_target_is_legal():
    hidden, matrix, targets = inputs(0)
    module = nn.Linear(H, V)
    loss = head.tiled_loss(hidden, matrix, targets, nll, want=WANT)["loss"]
    logp = head.log_probs(hidden, matrix, targets, want=WANT)["logp"]
    of_module = head.log_probs_of_module(hidden, module, targets, V, want=WANT)
    assert loss == 0 and logp.shape == of_module["entropy"].shape == of_module["top1"].shape == (0,)
    (loss + logp.sum() + of_module["logp"].sum()).backward()
    for tensor in (hidden, matrix, module.weight, module.bias):
        assert tensor.grad is not None and tensor.grad.shape == tensor.shape and not tensor.grad.any()


@pytest.mark.parametrize("frozen", ["matrix", "hidden"])
def test_a_frozen_side_gets_no_gradient_and_the_other_the_same(frozen):
    hidden, matrix, targets = inputs()
    expected = torch.autograd.grad(-reference(hidden, matrix, targets, LogitScaling())[0].sum(), (hidden, matrix))
    (hidden if frozen == "hidden" else matrix).requires_grad_(False)
    trained, wanted = (matrix, expected[1]) if frozen == "hidden" else (hidden, expected[0])
    for loss in (
        head.tiled_loss(hidden, matrix, targets, nll)["loss"],
        -head.log_probs(hidden, matrix, targets)["logp"].sum(),
    ):
        close(torch.autograd.grad(loss, trained)[0], wanted, 2e-6)


def test_the_gradient_is_made_once_for_one_backward():
    hidden, matrix, targets = inputs()
    loss = head.tiled_loss(hidden, matrix, targets, nll)["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_large_logits_do_not_overflow():
    hidden, matrix, targets = inputs()
    hidden = (hidden.detach() * 1000).requires_grad_()
    expected = reference(hidden, matrix, targets, LogitScaling())
    out = head.tiled_loss(hidden, matrix, targets, nll, want=WANT)
    close(out["logp"], expected[0], 1e-5)
    assert torch.isfinite(out["entropy"]).all()
    assert torch.isfinite(torch.autograd.grad(out["loss"], hidden)[0]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_autocast_is_as_near_as_full_rows_under_autocast(shape):
    """bfloat16 products, everything else in float32: no further from float64 than twice what plain code is."""
    hidden, matrix, targets = inputs()
    shape = SHAPES[shape]
    exact = reference(hidden, matrix, targets, shape)[0]
    grads = torch.autograd.grad(-exact.sum(), (hidden, matrix))
    module = nn.Linear(H, V, bias=False)
    module.weight = nn.Parameter(matrix.detach().clone())

    def plain():
        logits = F.linear(hidden, matrix).float() * shape.scale
        logits = shape.softcap * torch.tanh(logits / shape.softcap) if shape.softcap else logits
        return -F.log_softmax(logits, -1).gather(1, targets[:, None]).sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        baseline = torch.autograd.grad(plain(), (hidden, matrix))
        ways = {
            "tiled_loss": (head.tiled_loss(hidden, matrix, targets, nll, shape)["loss"], matrix),
            "log_probs": (-head.log_probs(hidden, matrix, targets, shape)["logp"].sum(), matrix),
            "module": (-head.log_probs_of_module(hidden, module, targets, V, shape)["logp"].sum(), module.weight),
        }
    for name, (loss, weight) in ways.items():
        assert loss.dtype == torch.float32, name
        close(loss.detach(), -exact.detach().sum(), 3e-3)
        found = torch.autograd.grad(loss, (hidden, weight))
        for mine, plains, wanted in zip(found, baseline, grads, strict=True):
            assert mine.dtype == torch.float32
            allowed = 2 * (plains.double() - wanted).norm() / wanted.norm()
            close(mine, wanted, allowed)


def test_weights_in_bfloat16_add_up_over_tiles():
    """Six hundred tiles added up in bfloat16 would lose the last ones; the sum is float32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9600, H, generator=generator).bfloat16().requires_grad_()
    matrix = torch.randn(V, H, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(V, (9600,), generator=generator)
    wanted = torch.autograd.grad(-reference(hidden, matrix, targets, LogitScaling())[0].sum(), matrix)[0]
    for loss in (
        head.tiled_loss(hidden, matrix, targets, nll)["loss"],
        -head.log_probs(hidden, matrix, targets)["logp"].sum(),
    ):
        close(torch.autograd.grad(loss, matrix)[0], wanted, 5e-3)


# ---------------------------------------------------------------- what a config says


def test_what_a_config_does_to_logits():
    from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

    assert logit_scaling_of(LlamaConfig()) == LogitScaling()
    assert logit_scaling_of(Gemma2Config(final_logit_softcapping=30.0)) == LogitScaling(1.0, 30.0)
    assert logit_scaling_of(Gemma2Config(final_logit_softcapping=None)) == LogitScaling()
    assert logit_scaling_of(CohereConfig(logit_scale=0.0625)) == LogitScaling(0.0625)
    assert logit_scaling_of(GraniteConfig(logits_scaling=8.0)) == LogitScaling(0.125)


MLA = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
SCALED = {
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 5.0},
    "HyperCLOVAX": {"logits_scaling": 0.4},
    "MiniCPM3": {"dim_model_base": 16, "num_key_value_heads": 4} | MLA,
}


@pytest.mark.parametrize("family", SCALED)
def test_models_that_scale_their_logits(family):
    import transformers

    config = getattr(transformers, f"{family}Config")(**models.SIZES | SCALED[family])
    assert logit_scaling_of(config) != LogitScaling()
    model = models._make(config, 0)
    row = list(range(5, 30))
    logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None]).squeeze(1)
    install(model)
    batch = flat_batch([Segment(input_ids=row, labels=row, row=0)], num_rows=1)
    torch.testing.assert_close(Policy(model)(batch)["logp"], expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- within the policy


class Largest(TorchDispatchMode):
    """The largest tensor that any operation inside gives, and its shape."""

    numel, shape = 0, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.shape = tensor.numel(), tuple(tensor.shape)
        return out


def batch_of(*lengths: int):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 4000, (length,), generator=generator).tolist() for length in lengths]
    segments = [Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(rows)]
    return flat_batch(segments, num_rows=len(rows))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", ["nll", "dft", "logp", "lora head"])
def test_full_rows_of_logits_never_exist(way, tied):
    """Nor a third of them: 600 targets of 4,000 tokens, in the forward and in the backward."""
    vocabulary = 4000
    model = models.tiny_llama(vocab_size=vocabulary, tie_word_embeddings=tied)
    install(model)
    if way == "lora head":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    policy = Policy(model).train()
    batch = batch_of(150, 250, 203)
    with Largest() as largest:
        if way in LOSSES:
            policy(batch, loss=lambda values, part: LOSSES[way](values["logp"]))["loss"].backward()
        else:
            (-policy(batch)["logp"].sum()).backward()
    assert len(batch.targets) == 600
    assert largest.numel >= vocabulary * 64 or way == "lora head", "the watcher saw no matrix of the head"
    assert largest.numel <= 600 * vocabulary / 3, f"a tensor of {largest.shape}"


def test_the_watcher_sees_full_rows():
    model = models.tiny_llama(vocab_size=4000)
    batch = batch_of(600)
    with Largest() as largest:
        model(input_ids=batch.input_ids[None]).logits.sum().backward()
    assert largest.numel == 600 * 4000


@pytest.mark.parametrize("make", [models.tiny_qwen, models.tiny_llama, models.tiny_gemma])
@pytest.mark.parametrize("frozen", [False, True])
def test_both_ways_of_the_policy_are_full_rows(make, frozen):
    """Tied (one tensor's gradient from both ends) and untied, trained and frozen."""
    model = make().train()
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    row = torch.randint(3, 256, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    labels = [token if at % 4 else IGNORE for at, token in enumerate(row)]
    logs = model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
    kept = torch.tensor(labels[1:]) != IGNORE
    logp = logs[kept].gather(1, torch.tensor(row[1:])[kept][:, None]).squeeze(1)
    (-(logp.detach().exp() * logp).sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    install(model)
    policy = Policy(model)
    batch = flat_batch([Segment(input_ids=row, labels=labels, row=0)], num_rows=1)
    for gradient_in_forward in (True, False):
        model.zero_grad()
        if gradient_in_forward:
            policy(batch, loss=lambda values, part: LOSSES["dft"](values["logp"]))["loss"].backward()
        else:
            out = policy(batch)["logp"]
            (-(out.detach().exp() * out).sum()).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert grads.keys() == expected.keys()
        for name, wanted in expected.items():
            assert (grads[name] - wanted).norm() <= 2e-5 * wanted.norm() + 1e-6, name


def test_an_unknown_want_is_refused():
    with pytest.raises(ValueError, match="perplexity"):
        Policy(models.tiny_llama())(batch_of(4), want=("perplexity",))


# ---------------------------------------------------------------- what 0.4 called them


@pytest.mark.parametrize("kind", ["function", "tensor"])
def test_weight_of_04_is_a_loss(kind):
    """`weight=`, a function of log-probs or a tensor, gives `nll` and its gradient, and says what it is now."""
    model = models.tiny_llama()
    install(model)
    policy = Policy(model)
    batch = flat_batch([Segment(input_ids=list(range(5, 45)), labels=list(range(5, 45)), row=0)], num_rows=1)
    weights = torch.linspace(0, 1, len(batch.targets))

    def losses(values, part):
        return -(values["logp"].detach().exp() if kind == "function" else weights[part]) * values["logp"]

    wanted = policy(batch, want=("entropy",), loss=losses)
    wanted["loss"].backward()
    gradient = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    with pytest.warns(FutureWarning, match=r"model\(..., weight=\) is loss= since ft-host 0.5"):
        found = policy(batch, want=("entropy",), weight=torch.exp if kind == "function" else weights)
    found["nll"].backward()
    assert found.keys() == {"nll", "logp", "entropy"} and not found["logp"].requires_grad
    assert float(found["nll"].detach()) == pytest.approx(float(wanted["loss"].detach()), rel=1e-6)
    close(model.get_output_embeddings().weight.grad, gradient, 1e-6)
