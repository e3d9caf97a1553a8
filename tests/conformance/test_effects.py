"""Checks about what a loss touches: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import effects

SUMS = '    """Sums over the rows of the batch, each named by the count that divides it."""\n'
CALL = '    out = model(batch, want=("logp", "top1"))\n'
WRONG = [
    Wrong(
        name="a column is changed in place",
        old=CALL,
        new=f'{CALL}    batch.columns["sizes"].mul_(2)\n',
        fails="loss-batch-kept",
    ),
    Wrong(
        name="log-probs are left in the batch",
        old=CALL,
        new=f'{CALL}    batch.columns["logp"] = out["logp"].detach()\n',
        fails="loss-batch-kept",
    ),
    Wrong(
        name="the reference is trained along",
        old=f"@hookimpl\ndef ft_loss(model, batch, run):\n{SUMS}{CALL}",
        new="@hookimpl\ndef ft_models(config):\n"
        "    from ft_host.api import ModelSpec\n\n"
        '    return {"reference": ModelSpec(source=config.model)}\n\n\n'
        f"@hookimpl\ndef ft_loss(model, batch, run):\n{CALL}"
        '    reference = run.models["reference"].held.requires_grad_(True)\n'
        '    out["logp"] = out["logp"] - 0.1 * reference(batch, want=("logp",))["logp"]\n',
        fails="loss-frozen",
    ),
    Wrong(
        name="the base below an adapter is trained along",
        old=CALL,
        new="    for name, each in run.policy.named_parameters():\n"
        f'        each.requires_grad_("norm" in name or "lora" in name)\n{CALL}',
        fails="loss-frozen",
    ),
    Wrong(
        name="a metric of log-probs as they are",
        old='"mean_token_accuracy": mean(out["top1"].sum(),',
        new='"mean_token_accuracy": mean(out["logp"].exp().sum(),',
        fails="loss-metrics-detached",
    ),
    Wrong(
        name="noise from torch's random state",
        old=CALL,
        new=f'{CALL}    out["logp"] = out["logp"] + 1e-3 * torch.randn_like(out["logp"])\n',
        fails="loss-random",
    ),
    Wrong(
        name="rows are shuffled with Python's random state where they are collated",
        old="    segments = [Segment(",
        new="    import random\n\n    random.shuffle(rows)\n    segments = [Segment(",
        fails="loss-random",
        also=("loss-batch-kept",),
    ),
    Wrong(
        name="an accuracy as a Python number",
        old='mean(out["top1"].sum(),',
        new='mean(out["top1"].sum().item(),',
        fails="loss-waits",
    ),
    Wrong(
        name="a mask as an index",
        old='-(weights * out["logp"]).sum()',
        new='-(weights * out["logp"])[out["logp"] < 0].sum()',
        fails="loss-waits",
    ),
    Wrong(
        name="a tensor of numbers that the host has",
        old='-(weights * out["logp"]).sum()',
        new='-(weights * out["logp"]).sum() * torch.tensor(run.config.length_power, device=weights.device)',
        fails="loss-waits",
    ),
    Wrong(
        name="sums in a tensor that is made on the host",
        old='-(weights * out["logp"]).sum()',
        new='-torch.zeros(batch.num_rows).index_add(0, batch.rows, weights * out["logp"]).sum()',
        fails="loss-device",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(effects.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(effects.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in effects.CHECKS} == {wrong.fails for wrong in WRONG}
