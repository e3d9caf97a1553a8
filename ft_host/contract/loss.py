"""Checks what `ft_loss` returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ft_host.contract.blame import fault, shown
from ft_host.hooks import hookimpl
from ft_host.metrics import Metric, total
from ft_host.types import LossOutput

if TYPE_CHECKING:
    from pluggy import PluginManager

HOOK = "ft_loss"
EXPECTED = "expected LossOutput(terms={count: sum over the rows}, metrics=...), or LossOutput(loss=...)"
# Names that the host uses for entries of a step, of an evaluation or of a sum of terms.
RESERVED = frozenset(
    "kind step epoch loss grad_norm learning_rate num_tokens aux_loss update_ratio update_skipped".split()
)
PREFIXES = ("perf/", "moe/", "eval_")


class Divider:
    """The innermost wrapper of `ft_loss` in every run: to the wrappers of plugins a loss of either form is divided."""

    @hookimpl(wrapper=True, trylast=True)
    def ft_loss(self, model, batch, run):
        output = yield
        return divided(run.plugins, output, run.totals)


def checked(plugins: PluginManager, output: Any, totals: dict[str, float]) -> LossOutput:
    """Return what came out of `ft_loss` and its wrappers, with its loss divided. Raises what `divided` does."""
    if not isinstance(output, LossOutput) or output.loss is None:
        return divided(plugins, output, totals)
    check_metrics(plugins, HOOK, output.metrics)
    _check_scalar(plugins, "loss", output.loss)
    return output


def divided(plugins: PluginManager, output: Any, totals: dict[str, float]) -> LossOutput:
    """Return the output of `ft_loss` with its loss divided by the totals, and with the metrics of several terms.

    Raises HookError for a value that isn't as `LossOutput` documents.
    """
    if not isinstance(output, LossOutput):
        raise fault(plugins, HOOK, f"returned {shown(output)}; {EXPECTED}")
    if (output.loss is None) == (output.terms is None):
        fields = "neither loss nor terms" if output.loss is None else "both loss and terms"
        raise fault(plugins, HOOK, f"returned a LossOutput with {fields}; {EXPECTED}")
    check_metrics(plugins, HOOK, output.metrics)
    if output.terms is None:
        _check_scalar(plugins, "loss", output.loss)
        return output
    if not isinstance(output.terms, dict) or not output.terms:
        raise fault(plugins, HOOK, f"returned terms={shown(output.terms)}; {EXPECTED}")
    for name, term in output.terms.items():
        _check_scalar(plugins, f"the term {name!r}", term)
        if f"loss/{name}" in output.metrics:
            raise fault(plugins, HOOK, f"returned a metric 'loss/{name}', as the host calls the share of a term")
    try:
        shares = output.shares(totals)
    except ValueError as error:
        raise fault(plugins, HOOK, f"returned {error}") from error
    metrics = {f"loss/{name}": total(share.detach()) for name, share in shares.items()} if len(shares) > 1 else {}
    return dataclasses.replace(output, loss=sum(shares.values()), metrics=output.metrics | metrics)


def _check_scalar(plugins: PluginManager, what: str, value: Any) -> None:
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() or not value.is_floating_point():
        raise fault(plugins, HOOK, f"returned {what} as {shown(value)}; expected a floating-point tensor of shape ()")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise fault(
            plugins,
            HOOK,
            f"returned {what} without a gradient; expected one that depends on what `model(batch, ...)` returned, "
            "not detached and not computed under torch.no_grad",
        )


def check_metrics(plugins: PluginManager, hook: str, metrics: Any) -> None:
    """Raises HookError for what isn't a dict of Metric, with names that the host doesn't use."""
    import torch

    if not isinstance(metrics, dict):
        raise fault(plugins, hook, f"returned metrics={shown(metrics)}; expected a dict of name to Metric")
    for name, metric in metrics.items():
        if not isinstance(name, str) or name in RESERVED or name.startswith(PREFIXES):
            reserved = f"{', '.join(sorted(RESERVED))} and what begins with {', '.join(PREFIXES)}"
            raise fault(plugins, hook, f"returned a metric {name!r}, a name of the host ({reserved}); use another one")
        if not isinstance(metric, Metric):
            raise fault(
                plugins,
                hook,
                f"returned the metric {name!r} as {shown(metric)}; expected a Metric: mean(sum, count), total(value), "
                "... of ft_host.api",
            )
        for _, value in metric.parts:
            if not isinstance(value, (bool, int, float)) and not (isinstance(value, torch.Tensor) and not value.dim()):
                raise fault(
                    plugins,
                    hook,
                    f"returned the metric {name!r} with a part that is {shown(value)}; expected numbers and tensors "
                    "of shape ()",
                )
