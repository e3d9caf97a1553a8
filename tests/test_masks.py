"""Masks of padded rows, which are transformers' own, made without a look at the device."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from counted_waits import Waits
from transformers import AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from ft_host.batch import Segment, flat_batch
from ft_host.models import masks
from ft_host.models.policy import Policy
from ft_host.testing import models

WINDOWS = (None, 3, 7, 8)


def arguments_of(window: int | None, mask: torch.Tensor) -> dict[str, Any]:
    """What transformers hands to the function that makes a mask."""
    function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    arguments = {"mask_function": function, "attention_mask": mask, "dtype": torch.float32, "device": "cpu"}
    return arguments if window is None else arguments | {"local_size": window}


@pytest.mark.parametrize("name", masks.NAMES)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_of_a_token_is_the_one_that_transformers_makes(name, window):
    hidden = torch.arange(7) >= torch.tensor([0, 2, 6])[:, None]
    arguments = arguments_of(window, hidden)
    with masks.padded():
        ours = AttentionMaskInterface._global_mapping[name]
        sizes = {"batch_size": 3, "q_length": 1, "kv_length": 7, "q_offset": 6}
        expected = ours.original(**sizes, **arguments)
        with Waits() as waits:
            mask = ours(**sizes, **arguments)
        torch.testing.assert_close(mask, expected)
        sizes = {"batch_size": 3, "q_length": 7, "kv_length": 7}
        torch.testing.assert_close(ours(**sizes, **arguments), ours.original(**sizes, **arguments))
    assert not waits.count
    assert ours(**sizes, **arguments | {"attention_mask": hidden.new_ones(3, 7)}) is None or name == "eager" or window


@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize("name", masks.NAMES)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_of_padded_rows_is_the_one_that_transformers_makes(window, name, hides):
    """Padded on the right, or not at all: then there is none where transformers leaves it out."""
    seen = torch.arange(7) < torch.tensor([7, 5, 2] if hides else [7, 7, 7])[:, None]
    sizes = {"batch_size": 3, "q_length": 7, "kv_length": 7}
    with masks.padded(hides=hides):
        ours = AttentionMaskInterface._global_mapping[name]
        expected = ours.original(**sizes, **arguments_of(window, seen))
        with Waits() as waits:
            mask = ours(**sizes, **arguments_of(window, seen))
    assert not waits.count and (mask is None) == (name == "sdpa" and not hides and window in (None, 8))
    torch.testing.assert_close(mask, expected)


def test_a_model_that_adds_a_mask_of_its_own_gets_it():
    hidden = torch.arange(7) >= torch.tensor([0, 2])[:, None]

    def every_second(batch, head, query, key):
        return (key <= query) & (key % 2 == 0)

    arguments = {"mask_function": every_second, "attention_mask": hidden, "use_vmap": True, "device": "cpu"}
    with masks.padded():
        mask = AttentionMaskInterface._global_mapping["sdpa"](
            batch_size=2, q_length=1, kv_length=7, q_offset=6, **arguments
        )
    assert mask[:, 0, 0].tolist() == [[True, False] * 3 + [True], [False, False] + [True, False] * 2 + [True]]


@pytest.mark.parametrize("lengths", [(9, 4, 7), (6, 6, 6)], ids=["uneven", "even"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "mistral"])  # mistral has a window
def test_a_rectangle_is_what_it_was_when_transformers_looked_at_its_mask(name, attention, lengths):
    rows = [list(range(5 + length, 5 + 2 * length)) for length in lengths]
    batch = flat_batch([Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(rows)], num_rows=3)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = models.FAMILIES[name]()
        model.set_attn_implementation(attention)
        policy = Policy(model, kernel="none")
        logp = policy(batch, want=("logp",))["logp"]
        return logp, list(torch.autograd.grad(logp.sum(), list(model.parameters())))

    def looking(**_: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    with mock.patch("ft_host.models.policy.padded", looking), Waits() as looks:
        expected, slopes = run()
    with Waits() as waits:
        found, gradients = run()
    plain = name == "llama" and attention == "sdpa"  # other masks are made anyway
    assert looks.count - waits.count == plain * (1 if len(set(lengths)) == 1 else 2)
    assert torch.equal(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, slopes, strict=True))
