"""Tokens on the device are the CPU's, and what is waited for is the reading of them."""

from __future__ import annotations

import pytest

from device import decoding

LOOK = "ft_host/generation/looks.py: both = torch.stack([tokens.to(logprobs.dtype), logprobs], 1).tolist()"


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["qwen", "mistral"])  # mistral has a window
def test_tokens_are_those_of_the_cpu_and_only_reading_them_waits(name, graphs, on_device):
    found = on_device(decoding.on_both, name, graphs)
    for (tokens, logprobs), (others, there) in zip(found["cpu"], found["cuda"], strict=True):
        assert tokens == others
        assert logprobs == pytest.approx(there, abs=1e-4)
    # One look at the first tokens, one for each eight after them; a model's first frame is compared once.
    assert found["waits"].pop(LOOK) == 1 + 4
    compared = [line for line in found["waits"] if "float((found - expected)" in line]
    assert len(compared) == graphs and found["waits"].keys() == set(compared)
    assert (found["replays"] >= 16) == graphs


def test_a_device_that_captures_nothing_decodes_and_says_so(on_device):
    way, tokens = on_device(decoding.without_graphs)
    assert way.startswith("one by one: a step can't be captured (") and tokens == 6 * decoding.LIMIT


@pytest.mark.parametrize("name", ["qwen", "moe"])
def test_through_generate_the_host_itself_waits_once_a_batch(name, on_device):
    """Prompts, masks and noise go to the device in one copy. The rest is transformers': it looks at each token for the
    end, and at the mask of rows that are padded."""
    found = on_device(decoding.through_generate, name)
    for (tokens, logprobs), (others, there) in zip(found["cpu"], found["cuda"], strict=True):
        assert tokens == others
        assert logprobs == pytest.approx(there, abs=1e-4)
    assert found["waits"].pop(LOOK) == 1
    ((line, times),) = found["waits"].items()
    assert line == "ft_host/generation/static.py: policy.causal_lm.generate(**arguments)"
    assert times <= 2 * decoding.LIMIT + 16
