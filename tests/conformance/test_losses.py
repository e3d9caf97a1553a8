"""Checks about losses: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import losses

PAIRS = "pair_losses(chosen, rejected, beta)"
WRONG = [
    Wrong(
        name="a sum that nothing divides",
        kind="pairs",
        old=f'terms={{"pairs": {PAIRS}.sum()}}',
        new=f"loss={PAIRS}.sum()",
        fails="loss-additive",
    ),
    Wrong(
        name="a loss divided by counts of the micro-batch",
        kind="pairs",
        old=f'terms={{"pairs": {PAIRS}.sum()}}',
        new=f"loss={PAIRS}.sum() / max(pairs, 1)",
        fails="loss-additive",
    ),
    Wrong(
        name="a loss without a gradient",
        kind="pairs",
        old=f"{PAIRS}.sum()}}",
        new=f"({PAIRS} * 0).sum()}}",
        fails="loss-finite",
        also=("loss-additive", "loss-row-order", "loss-padding", "loss-bf16"),
    ),
    Wrong(
        name="every second pair counts twice",
        kind="pairs",
        old=f"{PAIRS}.sum()}}",
        new=f"({PAIRS} * (1 + torch.arange(pairs) % 2)).sum()}}",
        fails="loss-row-order",
    ),
    Wrong(
        name="the size of hidden states is held down, of padding too",
        old='    out = model(batch, want=("logp", "top1"))\n',
        new="    states = []\n"
        "    layers = run.policy.causal_lm.model.register_forward_hook(lambda *each: states.append(each[-1][0]))\n"
        '    out = model(batch, want=("logp", "top1"))\n'
        "    layers.remove()\n"
        '    out["logp"] = out["logp"] - (0 if batch.empty else states[0].square().sum() / len(out["logp"]) / 100)\n',
        fails="loss-padding",
        also=("loss-additive",),
    ),
    Wrong(
        name="the prompt is supervised", old="completion_only=None", new="completion_only=False", fails="loss-prompt"
    ),
    Wrong(
        name="a mean over the pairs of a batch, times their number",
        kind="pairs",
        old=f"{PAIRS}.sum()}}",
        new=f"{PAIRS}.mean() * pairs}}",
        fails="loss-nothing",
    ),
    Wrong(
        name="an empty batch doesn't call the model",
        old='    out = model(batch, want=("logp", "top1"))\n',
        new="    if batch.empty:\n"
        "        return LossOutput(loss=torch.zeros((), requires_grad=True))\n"
        '    out = model(batch, want=("logp", "top1"))\n',
        fails="loss-nothing",
    ),
    Wrong(
        name="an empty batch is asked of the model twice",
        old='    out = model(batch, want=("logp", "top1"))\n',
        new="    if batch.empty:\n"
        '        return LossOutput(terms={"rows": model(batch)["logp"].sum() + model(batch)["logp"].sum()})\n'
        '    out = model(batch, want=("logp", "top1"))\n',
        fails="loss-nothing",
    ),
    Wrong(
        name="what autocast has made bfloat16 is added to sums in float32",
        old='    out = model(batch, want=("logp", "top1"))\n',
        new='    out = model(batch, want=("logp", "top1", "hidden"))\n'
        '    products = out["hidden"] @ out["hidden"].new_ones(out["hidden"].shape[1], 1)\n'
        "    sums = torch.zeros(batch.num_rows).scatter_add(0, batch.rows, products[:, 0])\n"
        '    out["logp"] = out["logp"] + 1e-6 * sums[batch.rows]\n',
        fails="loss-bf16",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(losses.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(losses.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in losses.CHECKS} == {wrong.fails for wrong in WRONG}
