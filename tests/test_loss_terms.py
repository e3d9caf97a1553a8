"""The host divides: terms of a loss by the counts of the whole step, and who gives something else is named."""

from __future__ import annotations

from types import SimpleNamespace

import pluggy
import pytest
import torch

from ft_host.api import LossOutput, mean, total
from ft_host.contract.blame import HOST, owner_of
from ft_host.contract.loss import Divider, checked, divided
from ft_host.errors import HookError
from ft_host.hooks import NAME, hookimpl, loss
from ft_host.testing.invariants import lines, micro_batch_split, run_in

TWO_TERMS = """
@hookimpl
def ft_collate(rows, tokenizer, config):
    batch = ft_sft.method.ft_collate(rows=rows, tokenizer=tokenizer, config=config)
    batch.counts["rows"] = len(rows)
    return batch

@hookimpl
def ft_loss(model, batch, run):
    logps = model(batch, want=("logp",))["logp"]
    return LossOutput(terms={"tokens": -logps.sum(), "rows": 0.01 * logps.square().sum()})
"""


def plugins() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(NAME)
    manager.add_hookspecs(loss)

    @hookimpl
    def ft_loss(model, batch, run):
        return None

    manager.register(SimpleNamespace(ft_loss=ft_loss), name="method ft-sft:sft")
    return manager


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, requires_grad=True)


def test_terms_are_divided_by_the_totals_of_the_step_and_added():
    nll, odds = scalar(12.0), scalar(3.0)
    out = divided(plugins(), LossOutput(terms={"tokens": nll, "pairs": 0.5 * odds}), {"tokens": 8, "pairs": 2})
    assert out.loss.item() == 12 / 8 + 0.5 * 3 / 2
    out.loss.backward()
    assert (float(nll.grad), float(odds.grad)) == (1 / 8, 0.25)
    assert {name: metric.parts[0][1].item() for name, metric in out.metrics.items()} == {
        "loss/tokens": 1.5,
        "loss/pairs": 0.75,
    }
    assert all(not metric.parts[0][1].requires_grad for metric in out.metrics.values())


def test_one_term_is_the_loss_and_no_metric_of_its_own():
    out = divided(plugins(), LossOutput(terms={"tokens": scalar(12.0)}, metrics={"n": total(3)}), {"tokens": 8})
    assert out.loss.item() == 1.5 and list(out.metrics) == ["n"]


def test_a_loss_stays_what_the_method_made_it():
    given = LossOutput(loss=scalar(2.5))
    assert divided(plugins(), given, {"tokens": 8}) is given
    assert given.divide({}) is given.loss


def test_a_term_without_a_count_contributes_nothing_and_must_be_nothing():
    term = scalar(0.0)
    out = divided(plugins(), LossOutput(terms={"tokens": scalar(4.0), "pairs": term}), {"tokens": 8, "pairs": 0})
    assert out.loss.item() == 0.5
    out.loss.backward()
    assert term.grad is not None and torch.isfinite(term.grad)
    for wrong in (3.0, float("nan")):
        with pytest.raises(HookError, match=r"term 'pairs' as (3|nan) in a step whose count of 'pairs' is 0; expect"):
            divided(plugins(), LossOutput(terms={"pairs": scalar(wrong)}), {"pairs": 0})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (LossOutput(terms={"pair": scalar(1.0)}), r"'pair', which is no count of ft_collate; did you mean pairs\?; the "
         r"counts of this step: pairs, tokens"),
        (LossOutput(), r"neither loss nor terms"),
        (LossOutput(loss=scalar(1.0), terms={"tokens": scalar(1.0)}), r"both loss and terms"),
        (LossOutput(terms={}), r"terms=dict \{\}; expected LossOutput\(terms="),
        (LossOutput(terms={"tokens": 3.0}), r"the term 'tokens' as float 3.0; expected a floating-point tensor"),
        (LossOutput(terms={"tokens": torch.tensor(1.0)}), r"the term 'tokens' without a gradient"),
        (LossOutput(terms={"tokens": torch.ones(3, requires_grad=True)}), r"a Tensor of shape \(3,\)"),
        (LossOutput(loss=torch.ones(3, requires_grad=True)), r"loss as a Tensor of shape \(3,\)"),
        (LossOutput(loss=1.5), r"loss as float 1.5"),
        (LossOutput(loss=torch.tensor(1.5)), r"loss without a gradient"),
        (scalar(1.0), r"returned a Tensor of shape \(\); expected LossOutput\("),
        ((scalar(1.0), {}), r"returned tuple \("),
        (None, r"returned None; expected LossOutput\("),
        (LossOutput(loss=scalar(1.0), metrics=[1]), r"metrics=list \[1\]; expected a dict"),
        (LossOutput(loss=scalar(1.0), metrics={"a": 0.5}), r"the metric 'a' as float 0.5; expected a Metric: mean\("),
        (LossOutput(loss=scalar(1.0), metrics={"a": mean(torch.ones(3), 3)}), r"'a' with a part that is a Tensor of s"),
        (LossOutput(loss=scalar(1.0), metrics={"loss": total(1)}), r"a metric 'loss', a name of the host \(.*step"),
        (LossOutput(loss=scalar(1.0), metrics={"step": total(1)}), r"a metric 'step', a name of the host"),
        (LossOutput(loss=scalar(1.0), metrics={"perf/x": total(1)}), r"a metric 'perf/x', a name of the host"),
        (LossOutput(loss=scalar(1.0), metrics={"eval_x": total(1)}), r"a metric 'eval_x', a name of the host"),
        (LossOutput(terms={"tokens": scalar(1.0), "pairs": scalar(1.0)}, metrics={"loss/pairs": total(1)}),
         r"a metric 'loss/pairs', as the host calls"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_plugin_version_and_hook(given, told):
    with pytest.raises(HookError, match=told) as error:
        divided(plugins(), given, {"tokens": 8, "pairs": 2})
    assert str(error.value).startswith("ft_loss of the method 'sft' (ft-sft ")
    assert error.value.exit_code == 3


def test_in_evaluation_no_gradient_is_asked_for():
    with torch.no_grad():
        out = divided(plugins(), LossOutput(terms={"tokens": torch.tensor(4.0)}), {"tokens": 8})
        assert out.loss.item() == 0.5


@pytest.fixture
def two_terms(config, sft_with):
    """The config of a method whose loss is a mean over tokens and one over rows."""
    return sft_with(TWO_TERMS)(**vars(config))


def test_a_run_logs_each_term_in_training_and_evaluation(two_terms):
    folder = run_in(two_terms, "terms", max_steps=2)
    for line in lines(folder):
        assert line["loss/tokens"] > 0 and line["loss/rows"] > 0
        assert line["loss"] == pytest.approx(line["loss/tokens"] + line["loss/rows"], rel=1e-6)
    for line in lines(folder, "eval"):
        assert line["eval_loss"] == pytest.approx(line["eval_loss/tokens"] + line["eval_loss/rows"], rel=1e-6)


def test_terms_do_not_depend_on_how_a_step_is_cut(two_terms):
    micro_batch_split(two_terms)


def test_wrappers_of_plugins_see_the_divided_loss_and_may_change_it():
    """As a wrapper for 0.4 did, which knew `output.loss` alone."""
    manager = pluggy.PluginManager(NAME)
    manager.add_hookspecs(loss)
    seen = []

    @hookimpl
    def ft_loss(model, batch, run):
        return LossOutput(terms={"tokens": scalar(12.0)})

    @hookimpl(wrapper=True)
    def halve(model, batch, run):
        output = yield
        seen.append(output.loss.item())
        output.loss = output.loss / 2
        return output

    manager.register(SimpleNamespace(ft_loss=ft_loss), name="method ft-sft:sft")
    manager.register(SimpleNamespace(ft_loss=halve), name="diagnostics ft-guard:guard")
    manager.register(Divider(), name=f"{HOST} Divider")
    run = SimpleNamespace(plugins=manager, totals={"tokens": 8})
    output = checked(manager, manager.hook.ft_loss(model=None, batch=None, run=run), run.totals)
    assert seen == [1.5] and output.loss.item() == 0.75
    assert owner_of(manager, "ft_loss").endswith("wrapped by the diagnostics 'guard' (ft-guard)")
