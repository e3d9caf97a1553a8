"""A flat batch of segments gives each row the log-probs and gradients that the model gives it alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ft_host.batch import IGNORE, Batch, Segment, flat_batch
from ft_host.errors import ConfigError
from ft_host.models import Policy
from ft_host.models import attention as room
from ft_host.models.attention import FlatMask, Layout, NotFlat, install, segment_attention
from ft_host.models.flex import flex_segments
from ft_host.testing import models

MODELS = ["tiny_llama", "tiny_qwen", "tiny_mistral", "tiny_gemma", "tiny_gpt2", "tiny_moe", "tiny_gpt_oss"]
LENGTHS = (9, 17, 2, 12)
SHARED = 7  # tokens of the second row that are a prompt of their own where segments have children

Grads = dict[str, torch.Tensor]


def made(name: str) -> Any:
    return getattr(models, name)()


def some_rows(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in lengths]


def labels_of(row: list[int], index: int) -> list[int]:
    """Every third token is not supervised, another one in each row."""
    return [IGNORE if (at + index) % 3 == 2 else token for at, token in enumerate(row)]


def roots(rows: list[list[int]]) -> Batch:
    segments = [Segment(input_ids=row, labels=labels_of(row, index), row=index) for index, row in enumerate(rows)]
    return flat_batch(segments, num_rows=len(rows))


def weigh(count: int) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, count)


def plain(model: Any, rows: list[list[int]], labels: list[list[int]]) -> tuple[torch.Tensor, Grads]:
    """Log-probs of the supervised tokens of each row, alone, by the untouched model and its full logits, and the
    gradient of their weighted sum."""
    logps = []
    for row, wanted in zip(rows, labels, strict=True):
        ids, targets = torch.tensor([row]), torch.tensor(wanted[1:])
        logs = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        kept = targets != IGNORE
        logps.append(logs[kept].gather(1, targets[kept][:, None]).squeeze(1))
    logp = torch.cat(logps)
    return logp.detach(), grads_of(model, (weigh(len(logp)) * logp).sum())


def grads_of(model: Any, value: torch.Tensor) -> Grads:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: tuple[torch.Tensor, Grads], expected: tuple[torch.Tensor, Grads]) -> None:
    """Equal to float32 round-off: 3e-6 of a log-prob, and for each parameter 1e-5 of its gradient's norm, of which a
    hundredth of the whole gradient's is a floor (keys of an attention have a bias gradient that is exactly zero)."""
    (logp, grads), (wanted, references) = found, expected
    torch.testing.assert_close(logp, wanted, rtol=3e-6, atol=3e-6)
    assert grads.keys() == references.keys()
    floor = 0.01 * torch.stack([g.norm() for g in references.values()]).norm()
    for name, reference in references.items():
        error = (grads[name] - reference).norm() / torch.maximum(reference.norm(), floor)
        assert error < 1e-5, f"{name}: gradients differ by {error:.2g}"


def flat_policy(model: Any, kernel: str = "sdpa", checkpointed: bool = False) -> Policy:
    model = copy.deepcopy(model)
    install(model)
    policy = Policy(model, kernel=kernel)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy.train()


def through(policy: Policy, *batches: Batch) -> tuple[torch.Tensor, Grads]:
    """As `plain`, by the policy, one forward a batch."""
    logp = torch.cat([policy(batch, want=("logp",))["logp"] for batch in batches])
    return logp.detach(), grads_of(policy.model, (weigh(len(logp)) * logp).sum())


# ---------------------------------------------------------------- rows, together and alone


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_together_are_as_each_alone(name, checkpointed):
    model, rows = made(name).train(), some_rows(*LENGTHS)
    expected = plain(model, rows, [labels_of(row, index) for index, row in enumerate(rows)])
    assert expected[0].std() > 0.5, "the model says about the same of every token: a wrong mask wouldn't show"
    policy = flat_policy(model, checkpointed=checkpointed)

    assert_close(through(policy, roots(rows)), expected)

    singles = [
        flat_batch([Segment(input_ids=row, labels=labels_of(row, index), row=0)], num_rows=1)
        for index, row in enumerate(rows)
    ]
    assert_close(through(policy, *singles), expected)

    # packed: the documents of a block are segments too, of one row
    packed = [Segment(input_ids=row, labels=labels_of(row, index), row=0) for index, row in enumerate(rows)]
    assert_close(through(policy, flat_batch(packed[:2], num_rows=1), flat_batch(packed[2:], num_rows=1)), expected)

    # the same as a padded rectangle
    policy.kernel = "none"
    assert_close(through(policy, roots(rows)), expected)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", MODELS)
def test_children_share_their_prompt(name, checkpointed):
    """A prompt with three completions, one of them with a further child, beside another root."""
    model = made(name).train()
    prompt, one, two, three, more, other = some_rows(7, 6, 1, 9, 8, 5, seed=1)
    mute = [IGNORE] * len(prompt)
    batch = flat_batch(
        [
            Segment(input_ids=prompt, labels=mute, row=0),
            Segment(input_ids=one, labels=one, row=0, parent=0),
            Segment(input_ids=other, labels=other, row=1),
            Segment(input_ids=two, labels=two, row=2, parent=0),
            Segment(input_ids=three, labels=[IGNORE] * len(three), row=3, parent=0),
            Segment(input_ids=more, labels=more, row=3, parent=4),
        ],
        num_rows=4,
    )
    rows = [prompt + one, other, prompt + two, prompt + three + more]
    labels = [mute + one, other, mute + two, mute + [IGNORE] * len(three) + more]
    expected = plain(model, rows, labels)
    policy = flat_policy(model, checkpointed=checkpointed)
    assert_close(through(policy, batch), expected)
    policy.kernel = "none"
    assert_close(through(policy, batch), expected)


def test_supervised_tokens_of_a_shared_prompt_count_once():
    model = models.tiny_llama().train()
    prompt, one, two = some_rows(6, 5, 4)
    batch = flat_batch(
        [
            Segment(input_ids=prompt, labels=prompt, row=0),
            Segment(input_ids=one, labels=one, row=0, parent=0),
            Segment(input_ids=two, labels=two, row=1, parent=0),
        ],
        num_rows=2,
    )
    expected = plain(model, [prompt + one, prompt + two], [prompt + one, [IGNORE] * len(prompt) + two])
    policy = flat_policy(model)
    assert_close(through(policy, batch), expected)
    policy.kernel = "none"
    assert_close(through(policy, batch), expected)


@pytest.mark.parametrize("kernel", ["sdpa", "none"])
def test_no_row_is_a_batch_too(kernel):
    """What a rank calls that has nothing left in a step."""
    policy = flat_policy(models.tiny_qwen(), kernel)
    out = policy(flat_batch([], num_rows=0), loss=lambda values, part: -values["logp"])
    assert out["loss"] == 0 and out["logp"].shape == out["entropy"].shape == out["top1"].shape == (0,)
    out["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


# ---------------------------------------------------------------- the model as it was


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_mistral", "tiny_gemma", "tiny_gpt_oss"])
def test_generation_is_as_if_we_were_not_there(name):
    """Before a flat forward and after one, padded on the left, with the cache."""
    model = made(name).eval()
    ids = torch.tensor(some_rows(8, 8))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **asked)
    policy = flat_policy(model).eval()
    assert torch.equal(policy.model.generate(ids, **asked), expected)
    logits = model(input_ids=ids, attention_mask=mask).logits
    policy.train()
    through(policy, roots(some_rows(*LENGTHS)))
    policy.eval()
    assert torch.equal(policy.model.generate(ids, **asked), expected)
    torch.testing.assert_close(policy.model(input_ids=ids, attention_mask=mask).logits, logits, rtol=0, atol=0)


def test_the_layout_is_forgotten_when_a_forward_fails():
    policy = flat_policy(models.tiny_llama())
    with pytest.raises(IndexError):
        policy(roots([[1, 2, 3, 999]]))
    assert room._layout.get() is None


def test_installing_twice_changes_nothing():
    model = models.tiny_llama()
    install(model)
    name = model.config._attn_implementation
    install(model)
    assert model.config._attn_implementation == name == "ft_segments_sdpa"
    assert room.original_of(model.config) == "sdpa"


def test_an_implementation_that_reads_its_own_name_is_refused():
    model = models.tiny_llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2"):
        install(model)


# ---------------------------------------------------------------- what can't be flat


def attend(**arguments: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 6, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 6, 8, generator=generator)
    mask = FlatMask(Layout([6], [-1], torch.device("cpu")), None)
    return segment_attention(torch.nn.Identity(), query, key, value, mask, **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alibi_bias": torch.ones(1)}, "alibi_bias"),
        ({"position_bias": torch.ones(1), "position_ids": torch.ones(1)}, "position_bias"),
        ({"is_causal": False}, "causal"),
        ({"sliding_window": 3}, "window of 3"),
        ({"output_attentions": True}, "attention weights"),
    ],
)
def test_what_the_attention_does_not_know_is_refused_by_name(arguments, named):
    with pytest.raises(NotFlat, match=named):
        attend(**arguments)


def test_arguments_that_say_nothing_are_taken():
    torch.testing.assert_close(attend(alibi_bias=None, position_ids=torch.arange(6), output_attentions=False), attend())


def test_a_mask_that_is_neither_causal_nor_a_window_is_refused():
    from transformers.masking_utils import (
        causal_mask_function,
        chunked_causal_mask_function,
        sliding_window_causal_mask_function,
    )

    room._check_mask(causal_mask_function, None, False)
    room._check_mask(sliding_window_causal_mask_function(7), 7, False)
    chunked = chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.long))
    with pytest.raises(NotFlat, match="neither causal nor"):
        room._check_mask(chunked, 7, False)
    with pytest.raises(NotFlat, match="neither causal nor"):
        room._check_mask(lambda batch, head, query, key: torch.tensor(True), None, False)
    with pytest.raises(NotFlat, match="its own"):
        room._check_mask(causal_mask_function, None, True)


# ---------------------------------------------------------------- the flex kernel


def forest_layout(kernel: str, device: str = "cpu") -> Layout:
    return Layout([7, 6, 150, 5, 9], [-1, 0, -1, 0, 3], torch.device(device), kernel)


EXTRAS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "softcap": lambda: {"softcap": 2.0},
    "sinks": lambda: {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "scaled": lambda: {"scaling": 0.7},
}


@pytest.mark.parametrize("window", [None, 4, 40])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("extra", EXTRAS)
def test_flex_attends_as_sdpa_does(extra, heads, window):
    """The kernel run eagerly; a CPU has no backward for it."""
    generator = torch.Generator().manual_seed(0)
    total = sum(forest_layout("sdpa").lengths)
    query = torch.randn(1, 4, total, 8, generator=generator) * 2
    key, value = torch.randn(2, 1, heads, total, 8, generator=generator)
    arguments = EXTRAS[extra]()
    outputs = [
        segment_attention(torch.nn.Identity(), query, key, value, FlatMask(forest_layout(kernel), window), **arguments)
        for kernel in ("sdpa", "flex")
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_flex_gives_the_log_probs_of_rows_alone(name):
    model, rows = made(name).train(), some_rows(*LENGTHS)
    expected, _ = plain(model, rows, [labels_of(row, index) for index, row in enumerate(rows)])
    policy = flat_policy(model, "flex")
    with torch.no_grad():
        logp = policy(roots(rows), want=("logp",))["logp"]
    torch.testing.assert_close(logp, expected, rtol=3e-6, atol=3e-6)


def test_flex_refuses_dropout():
    tensor = torch.zeros(1, 1, 177, 4)
    with pytest.raises(NotFlat, match="dropout"):
        flex_segments(tensor, tensor, tensor, FlatMask(forest_layout("flex"), None), None, 0.1, None, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_flex_on_a_gpu(name):
    """Log-probs and gradients of the compiled kernel, in float32 without TF32, of rows and of a shared prompt. The
    kernel adds up in another order: 1e-4."""
    prompt, one, two, other = some_rows(70, 30, 9, 150)
    mute = [IGNORE] * len(prompt)
    batch = flat_batch(
        [
            Segment(input_ids=prompt, labels=mute, row=0),
            Segment(input_ids=one, labels=one, row=0, parent=0),
            Segment(input_ids=two, labels=two, row=1, parent=0),
            Segment(input_ids=other, labels=other, row=2),
        ],
        num_rows=3,
    ).to("cuda")
    model = made(name).train().cuda()
    policies = {kernel: flat_policy(model, kernel) for kernel in ("sdpa", "flex")}
    results = {}
    for kernel, policy in policies.items():
        logp = policy(batch, want=("logp",))["logp"]
        results[kernel] = logp.detach(), grads_of(policy.model, logp.sum())
    (logp, grads), (wanted, references) = results["flex"], results["sdpa"]
    torch.testing.assert_close(logp, wanted, rtol=1e-4, atol=1e-4)
    for key, reference in references.items():
        assert (grads[key] - reference).norm() <= 1e-3 * reference.norm() + 1e-4, key
