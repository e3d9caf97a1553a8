"""Which kernel a policy gets, what is said of it, and what becomes of a kernel that fails."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch

from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.models import attention as room
from ft_host.models import kernels, load_policy, probe, segments, varlen
from ft_host.models.attention import FlatMask, Layout, NotFlat, segment_attention
from ft_host.models.compiling import reason_of
from ft_host.testing.models import save_tiny, tiny_llama, tiny_moe, tiny_tokenizer

CPU = torch.device("cpu")


with_varlen = pytest.mark.skipif(varlen.missing() is not None, reason=str(varlen.missing()))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama())


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("experts"), tiny_moe())


@pytest.fixture
def as_gpu(monkeypatch):
    """The CPU takes the place of a GPU: flex is meant for it. Uncompiled, it has no gradient there, so that a call is
    sdpa's with what the test adds."""
    monkeypatch.setattr(kernels.devices, "TRITON", ("cpu",))
    monkeypatch.setitem(kernels.AUTO, "cpu", ("flex", *kernels.ELSEWHERE))

    def put(call=segments.per_segment, varlen_call=None):
        monkeypatch.setitem(room.KERNELS, "flex", call)
        monkeypatch.setitem(room.KERNELS, "varlen", varlen_call or room.KERNELS["varlen"])

    return put


def policy_of(folder, **fields: Any):
    return load_policy(RunConfig(**({"model": str(folder), "dataset": "d"} | fields)), tiny_tokenizer(), CPU)


def failing(error: BaseException):
    def call(*arguments):
        raise error

    return call


# ---------------------------------------------------------------- what is chosen, and said


def test_the_plan_names_the_kernel_where_there_is_no_other(llama):
    policy = policy_of(llama)
    assert (policy.kernel, policy.rows_kernel, policy.attention.refused) == ("sdpa", "sdpa", None)
    assert policy.attention.said == "attention: sdpa, one call a segment"


def test_the_plan_names_a_kernel_that_was_asked_for(llama):
    policy = policy_of(llama, segment_attention="none")
    assert policy.attention.said == (
        "attention: none, padded rows and the model's own attention; as segment_attention says"
    )


@with_varlen
def test_flex_first_and_varlen_for_rows_apart(llama, as_gpu):
    as_gpu(varlen_call=segments.per_segment)
    policy = policy_of(llama)
    assert (policy.kernel, policy.rows_kernel, policy.attention.refused) == ("flex", "varlen", None)
    assert policy.attention.said.startswith("attention: flex, one compiled kernel with a block mask; where rows share")


@with_varlen
def test_varlen_is_asked_for_and_cannot_be(llama, as_gpu):
    as_gpu()
    with pytest.raises(ConfigError, match="segment_attention varlen: .*on CUDA cards since Ampere; here 16"):
        policy_of(llama, segment_attention="varlen")
    policy = policy_of(llama)
    assert policy.rows_kernel == "flex" and "not varlen, since" in policy.attention.said


@with_varlen
def test_a_batch_takes_the_kernel_of_its_kind(llama, as_gpu, monkeypatch):
    as_gpu(varlen_call=segments.per_segment)
    policy, used = policy_of(llama), []
    monkeypatch.setattr("ft_host.models.policy.Layout", lambda *given: used.append(given[-1]) or Layout(*given))
    for prompt in (0, 13):
        policy(probe.forest_of(policy, [[5] * 9, [6] * 20, [7] * 5], prompt), want=("logp",))
    assert used == ["varlen", "flex"]


# ---------------------------------------------------------------- kernels that fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "no C compiler"),
        (subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"]), "it needs Python.h"),
        (FileNotFoundError(2, "No such file or directory", "gcc-99"), "no C compiler"),
        (RuntimeError("backend='inductor' raised:\nNoValidChoicesError: no choices"), "flex: NoValidChoicesError"),
        (ValueError("Invalid FlexAttention decode kernel options"), "flex: Invalid FlexAttention"),
        (NotImplementedError(), "flex: NotImplementedError"),
    ],
    ids=["no compiler", "a compiler that fails", "a compiler that isn't there", "inductor", "a value", "no text"],
)
def test_auto_goes_on_with_another_kernel_and_says_why(llama, as_gpu, error, said):
    as_gpu(failing(error))
    policy = policy_of(llama)
    assert policy.kernel == policy.rows_kernel == "sdpa"
    assert said in policy.attention.refused and policy.attention.refused in policy.attention.said
    with pytest.raises(ConfigError, match=f"segment_attention flex.*{said.removeprefix('flex: ')}"):
        policy_of(llama, segment_attention="flex")


@with_varlen
def test_an_error_of_the_system_is_nobody_elses_reason(llama, as_gpu):
    """Only what compiles may fail for a compiler."""
    as_gpu(varlen_call=failing(subprocess.CalledProcessError(1, "gcc")))
    with pytest.raises(subprocess.CalledProcessError):
        policy_of(llama)


def test_memory_that_runs_out_is_no_reason_for_another_kernel(llama, as_gpu):
    as_gpu(failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")))
    with pytest.raises(torch.OutOfMemoryError):
        policy_of(llama)


def test_the_first_line_that_says_something():
    assert (
        reason_of(RuntimeError("backend='inductor' raised:\n\n  LoweringException: x\nmore")) == "LoweringException: x"
    )
    assert reason_of(RuntimeError("")) == "RuntimeError"


# ---------------------------------------------------------------- a wrong backward pass


class Backward(torch.autograd.Function):
    """Values as they are, and a gradient that the test changes."""

    @staticmethod
    def forward(ctx, values, change):
        ctx.change = change
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def changed(change):
    """sdpa whose keys get another gradient."""

    def call(query, key, value, *rest):
        return segments.per_segment(query, Backward.apply(key, change), Backward.apply(value, change), *rest)

    return call


def to_the_next_row(gradient: torch.Tensor) -> torch.Tensor:
    return gradient + 1e-3 * gradient.roll(-9, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.zeros_like, "gradients differ by"),
        (lambda gradient: gradient * float("nan"), "gradients differ by nan %"),
        (to_the_next_row, "a row changes the log-probs of another one by"),
    ],
    ids=["none for keys", "not a number", "to another row"],
)
def test_gradients_are_looked_at(llama, as_gpu, change, said):
    """Values alone are right in each of these."""
    as_gpu(changed(change))
    policy = policy_of(llama)
    assert policy.kernel == "sdpa" and said in policy.attention.refused


def test_what_is_frozen_has_no_backward_pass(llama, as_gpu):
    from ft_host.models import load_frozen

    as_gpu(changed(failing(AssertionError("a backward pass"))))
    assert load_frozen(RunConfig(model=str(llama), dataset="d"), str(llama), CPU).kernel == "flex"


def test_the_probe_leaves_no_gradient(llama):
    assert all(parameter.grad is None for parameter in policy_of(llama).parameters())


# ---------------------------------------------------------------- what counts as rounding


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, (1e-3, 1e-5)), ({"bf16": True}, (0.5, kernels.ROUNDING)), ({"dtype": "bfloat16"}, (0.5, kernels.ROUNDING))],
    ids=["float32", "autocast", "bfloat16"],
)
def test_tolerances_go_by_the_type_of_the_maths(llama, fields, expected):
    from ft_host.models.held import maths

    config = RunConfig(model=str(llama), dataset="d", **fields)
    policy = policy_of(llama, **fields)
    with maths(config, CPU):
        assert kernels._tolerances(policy, config) == expected
    assert policy.layout_leak == 0


def test_experts_round_by_how_many_tokens_they_have(experts):
    config = RunConfig(model=str(experts), dataset="d", dtype="bfloat16")
    policy = policy_of(experts, dtype="bfloat16")
    assert kernels._tolerances(policy, config) == (0.5, 0.1)
    assert policy.layout_leak is None, "a leak by rounding is no finding"
    assert kernels._tolerances(policy_of(experts), RunConfig(model=str(experts), dataset="d")) == (1e-3, 1e-5)


# ---------------------------------------------------------------- varlen


def by_pairs(query, key, value, ends, ends_of_keys, longest, longest_key, *, scale, window_size, enable_gqa):
    """torch's varlen_attn by its documentation: (T, heads, D), rows by their ends, `window_size` keys to either side of
    the query beside its own, -1 for all."""
    assert torch.equal(ends, ends_of_keys) and ends.dtype == torch.int32 and longest == longest_key
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    left, right = window_size
    assert right == 0
    rows = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:]):
        assert end - start <= longest
        at = torch.arange(end - start)
        seen = at[:, None] >= at[None]
        if left >= 0:
            seen &= at[:, None] - at[None] <= left
        one = [each[start:end].transpose(0, 1) for each in (query, key, value)]
        scores = (one[0] @ one[1].transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        rows.append((scores.softmax(-1) @ one[2]).transpose(0, 1))
    return torch.cat(rows)


@with_varlen
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("keys", [4, 2])
def test_varlen_is_asked_for_what_sdpa_gives(keys, window, monkeypatch):
    from torch.nn.attention import varlen as torchs

    monkeypatch.setattr(torchs, "varlen_attn", by_pairs)
    monkeypatch.setattr(varlen, "flash_takes", lambda *tensors: True)
    noise = torch.Generator().manual_seed(0)
    query, *others = (torch.randn(1, count, 40, 8, generator=noise) for count in (4, keys, keys))
    outputs = [
        segment_attention(
            torch.nn.Identity(),
            query,
            *others,
            FlatMask(Layout([9, 20, 1, 10], [-1] * 4, CPU, kernel), window),
            scaling=0.3,
        )
        for kernel in ("sdpa", "varlen")
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"dropout": 0.1}, "dropout"), ({"softcap": 5.0}, "soft caps"), ({"s_aux": torch.zeros(2)}, "sinks")],
    ids=["dropout", "softcap", "sinks"],
)
def test_what_varlen_lacks_is_named(arguments, named, monkeypatch):
    monkeypatch.setattr(varlen, "flash_takes", lambda *tensors: True)
    tensor = torch.zeros(1, 2, 6, 8)
    with pytest.raises(NotFlat, match=named):
        segment_attention(
            torch.nn.Identity(), tensor, tensor, tensor, FlatMask(Layout([6], [-1], CPU, "varlen"), None), **arguments
        )


@with_varlen
def test_a_torch_without_windows_has_no_varlen(monkeypatch):
    from torch.nn.attention import varlen as torchs

    assert varlen.missing() is None
    varlen.missing.cache_clear()
    monkeypatch.setattr(torchs, "varlen_attn", lambda query, key, value, is_causal=False: None)
    assert "no windows or no shared heads" in varlen.missing()
    varlen.missing.cache_clear()


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_attention_is_in_autocasts_type(kernel):
    """As a model with norms of float32 on queries and keys has them: values alone come in bfloat16."""
    noise = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 16, generator=noise) for _ in range(3))
    mask = FlatMask(Layout([6], [-1], CPU, kernel), None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = segment_attention(torch.nn.Identity(), query, key, value.bfloat16(), mask)
    with torch.no_grad():
        plain = segment_attention(torch.nn.Identity(), query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, plain)
