"""Measures gradients and updates, cheaply, for the run's diagnostics.

Weights may be sharded: each rank measures its part, and the parts are combined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from ft_host.errors import FtHostError
from ft_host.models.load import dropout_of
from ft_host.models.reach import family, unreached
from ft_host.util import devices
from ft_host.util.ranks import everywhere

if TYPE_CHECKING:
    from ft_host.run import Run

EVERY = 10  # steps between two measurements of an update
TENSORS = 16  # tensors in the sample, spread over the model
ELEMENTS = 2**20 // TENSORS  # elements of each, spread over the tensor
AS_FOUND = "the policy as the run found it"
PATIENCE = 5  # steps with a gradient that a parameter may miss in a run with rollouts


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of it that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---------------------------------------------------------------- around an update


class UpdateMonitor:
    """What is looked at before and after each update of a run. All ranks must call its methods."""

    def __init__(self, run: Run):
        self.coverage = GradientCoverage(run)
        self.begun = False
        self.weights: list[torch.Tensor] | None = None

    def before_update(self, run: Run, loss: float, norm: float, rate: float) -> None:
        """`norm`: of the gradient. Raises FtHostError where loss or gradient isn't finite: the weights stay as they
        were."""
        scaled = run.accelerator.scaler is not None  # float16: the scaler skips a step that overflows, by itself
        if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
            raise everywhere(_not_finite(run, loss, norm, rate))
        if not self.begun:
            check_every_tensor(run)
            self.begun = True
        self.coverage.update(run, norm)
        self.weights = snapshot_weights(run)

    def after_update(self, run: Run) -> dict[str, float]:
        """Metrics of the update."""
        ratio = update_ratio(run, self.weights) if self.weights else None
        self.weights = None
        return {} if ratio is None else {"update_ratio": ratio}


def _not_finite(run: Run, loss: float, norm: float, rate: float) -> FtHostError:
    what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
    of, parameter, share = where_not_finite(run)
    run.record_facts(
        {
            "watch/not_finite": what,
            "watch/not_finite_value": str(value),
            "watch/not_finite_step": run.step + 1,
            "watch/not_finite_of": of,
            "watch/not_finite_parameter": parameter,
            "watch/not_finite_share": share,
        }
    )
    # Before the first update there is nothing that a rate could have done.
    mend = f"Lower learning_rate (now {rate:.3g}), add warmup_steps, or look" if run.step else "Look"
    return FtHostError(
        f"step {run.step + 1}: the {what} is {value}; the weights were not updated. {mend} at the rows of this step"
    )


def where_not_finite(run: Run) -> tuple[str, str | None, float]:
    """Where numbers aren't finite, on this rank: in a "weight" or a "gradient", the parameter, and the share of such
    gradients.

    A weight that isn't finite is the cause of all others: the first one is named. Of gradients it is the last, since
    they are made from the last parameter to the first, and each one before a broken one is broken by it. Where all of
    them are, none of them is to blame: no name.
    """
    parameters = [(name, p) for name, p in run.policy.named_parameters()]
    for name, p in parameters:
        if not bool(torch.isfinite(local(p.detach())).all()):
            return "weight", name, 1.0
    graded = [(name, bool(torch.isfinite(local(p.grad)).all())) for name, p in parameters if p.grad is not None]
    broken = [name for name, whole in graded if not whole]
    if not broken or len(broken) == len(graded):
        return "gradient", None, float(bool(broken))
    return "gradient", broken[-1], len(broken) / len(graded)


# ---------------------------------------------------------------- how large an update is


def _sample(run: Run) -> list[torch.Tensor]:
    """Return some of the trained weights, as views if possible: matrices, since vectors are few and change in other
    ways."""
    trained = [p for p in run.policy.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1] or trained
    chosen = matrices[:: math.ceil(len(matrices) / TENSORS)]
    flat = [local(p.detach()).reshape(-1) for p in chosen]
    return [weights[:: max(1, math.ceil(len(weights) / ELEMENTS))] for weights in flat]


def snapshot_weights(run: Run) -> list[torch.Tensor] | None:
    """Return a copy of the weights that `update_ratio` compares, before every tenth update; None before the others."""
    return [weights.clone() for weights in _sample(run)] if (run.step + 1) % EVERY == 0 else None


def update_ratio(run: Run, before: list[torch.Tensor]) -> float | None:
    """Return the norm of the update divided by that of the weights before it, of the same sample; with LoRA, of the
    adapter's weights. All ranks must call it. None if the weights are all 0."""
    changed = torch.zeros((), dtype=devices.widest(run.device), device=run.device)
    size = torch.zeros_like(changed)
    for old, new in zip(before, _sample(run), strict=True):
        changed += (new.float() - old.float()).square().sum()
        size += old.float().square().sum()
    sums = torch.stack([changed, size]).tolist()
    if any(isinstance(p, DTensor) for p in run.policy.parameters()):  # otherwise every rank has all of it
        sums = [sum(values) for values in zip(*run.gather(sums), strict=True)]
    return math.sqrt(sums[0] / sums[1]) if sums[1] else None


# ---------------------------------------------------------------- whether gradients reach the weights


def check_every_tensor(run: Run) -> None:
    """Refuse to train tensors that a backward pass didn't come to: the loss doesn't depend on them at all, and they
    would stay as they are. All ranks must call it. Raises FtHostError, which names them.

    A gradient of zeros is one: that of an adapter's first matrix, of groups with equal rewards. Experts that had no
    token count with those of their layer that had.
    """
    if run.config.trains_in_parts:
        return
    trained = {name: parameter for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
    here = [name for name, parameter in trained.items() if parameter.grad is not None]
    left = unreached(trained, {name for names in run.gather(here) for name in names})
    if not left:
        return
    run.record_facts(without_gradient(trained, set(left)))
    named = ", ".join(name.removeprefix("model.") for name in left[:3])
    raise FtHostError(
        f"step {run.step + 1}: {len(left)} of {len(trained)} trained tensors got no gradient, so they would never "
        f"change: {named}{' …' if len(left) > 3 else ''}. The loss doesn't depend on them: freeze them, leave their "
        "modules out of lora_target_modules, or mend the method's ft_loss. (A method that trains some parts later than "
        "others says so: trains_in_parts = True in its config.)"
    )


class GradientCoverage:
    """Which trained parameters have had a gradient. It is updated after the backward pass, until it has recorded its
    facts."""

    def __init__(self, run: Run):
        self.left = {name for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
        self.asked = 0
        self.patience = (
            PATIENCE if run.rollouts else 1
        )  # groups of equal rewards give no gradient, or one for some parts only
        self.told = not self.left

    def update(self, run: Run, norm: float) -> None:
        """All ranks must call it. A step without any gradient doesn't count: no completion was better than another."""
        if self.told or norm == 0:
            return
        parameters = dict(run.policy.named_parameters())
        graded = [name for name in parameters if name in self.left and parameters[name].grad is not None]
        here = {name for name, some in zip(graded, _any_nonzero([parameters[name].grad for name in graded])) if some}
        families = {family(name) for names in run.gather(here) for name in names}
        self.left = {name for name in self.left if family(name) not in families}
        self.asked += 1
        if self.left and self.asked < self.patience:
            return
        self.told = True
        run.record_facts(without_gradient({name: p for name, p in parameters.items() if p.requires_grad}, self.left))


def _any_nonzero(gradients: list[Any]) -> list[bool]:
    """Return which of them have an element that isn't 0, in one look at the device."""
    return torch.stack([local(each).any() for each in gradients]).tolist() if gradients else []


def without_gradient(trained: dict[str, torch.nn.Parameter], left: set[str]) -> dict[str, Any]:
    """Facts of the trained parameters, by name, of which those in `left` get no gradient."""
    whole = sum(parameter.numel() for parameter in trained.values())
    facts: dict[str, Any] = {"probe/zero_grad_parameters": sum(trained[name].numel() for name in left) / whole}
    if left:
        facts["probe/zero_grad_example"] = next(name for name in trained if name in left)
    return facts


def adapter_share(run: Run) -> float | None:
    """The share of an adapter's own weights that is trained; None without one."""
    adapter = [parameter for name, parameter in run.policy.named_parameters() if ".lora_" in name]
    whole = sum(parameter.numel() for parameter in adapter)
    return sum(parameter.numel() for parameter in adapter if parameter.requires_grad) / whole if whole else None


def reference_of(run: Run) -> str | None:
    """Return the model that the policy is compared with: the one in the role "reference", or one that is the policy as
    it was before training, whatever its role. None without a reference."""
    named = run.models.get("reference")
    if named is not None and named.spec.source is not None:
        return named.spec.source
    specs = [model.spec for model in run.models.values()]
    has_initial = any(spec.source is None and spec.head is None and not spec.current_policy for spec in specs)
    return AS_FOUND if has_initial else None


def model_facts(run: Run) -> dict[str, Any]:
    """Return facts about the model: trained weights and their share, the reference, the result of the layout probe, and
    the number of experts."""
    sizes = [(p.numel(), p.requires_grad) for p in run.policy.parameters()]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    facts = {
        "probe/trainable": trained,
        "probe/trainable_share": trained / (sum(size for size, _ in sizes) - run.policy.unreached),
    }
    layout: dict[str, Any] = {
        "probe/packing_difference": run.policy.layout_difference,
        "probe/packing_leak": run.policy.layout_leak,
    }
    layout |= {"model/reference": reference_of(run), "probe/adapter_share": adapter_share(run)}
    layout["model/dropout"] = dropout_of(run.policy)
    facts |= {name: value for name, value in layout.items() if value is not None}
    if run.policy.counts_routing:
        experts, chosen = run.policy.experts
        facts |= {"model/experts": experts, "model/experts_per_token": chosen}
        facts["model/router_aux_loss_coef"] = run.policy.router_aux_loss_coef  # the model's own, where none is set
    return facts
