"""The policy: a transformers model, called with a batch of segments, giving values per target.

Everything runs inside one `forward`: called from outside the wrapped module, DDP would skip its all-reduce and FSDP2
would refuse.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ft_host.batch import Batch
from ft_host.models import head
from ft_host.models.attention import flat
from ft_host.models.experts import Routing, routing_of, times_shared
from ft_host.models.layout import Choice, Layout
from ft_host.models.lean import Found
from ft_host.models.lean.remaking import remaking
from ft_host.models.logit_scaling import logit_scaling_of
from ft_host.models.masks import padded
from ft_host.models.neftune import EmbeddingNoise, noisy, row_lengths
from ft_host.models.reach import backbone_of
from ft_host.models.rectangle import rectangle, unshared
from ft_host.models.tiled_divergence import Head, TiledDivergence, tiled_divergence
from ft_host.models.tiles import WANTS

Places = Callable[[torch.Tensor], torch.Tensor]


class Policy(nn.Module):
    """`policy(batch, want=("logp", "entropy", "top1"))` gives a dict of (N,) tensors, one value a target. `logp`,
    `entropy` and `mean_logp` have a gradient; nothing else of a language model does.

    `temperature` divides the logits, so that log-probs and entropy are of what is sampled at it.

    `loss`: a function of such a dict for some targets, `logp` and what is wanted, and of which of the batch's targets
    they are, a slice; to the loss of each, (n,). It must treat each target by itself: it is called tile by tile, and
    differentiated by those three there and then, so tensors of its own are constants. The dict then holds `loss`, the
    sum, a scalar with gradient, and what is wanted without.

    `hidden` (N, H), with gradient, is the state that each target is predicted from, and `logits_head` makes logits of
    it: what another model's are compared with. `divergence`: such a comparison; the dict then holds the scalar
    `divergence` with gradient, and the values of its function without (see `ft_host.models.tiled_divergence`).

    `value` (N,), with gradient, is the prediction of a trained value model at the state before each target.
    `companions` holds the models that are trained beside the policy, inside it, so that one forward runs all.

    `model` is the transformers (or peft) model itself; `notes` is what the plan must say about it. With a router loss
    on, `aux_loss` is the load-balancing loss of the last forward's tokens, unweighted: the host adds it, so that no
    method has to know of experts. With `counts_routing`, `routing` is how the last forward in training spread tokens
    over experts. `waiting`: what is done once the policy is sharded, whose weights were cut when they were loaded.

    `rows_kernel`: `kernel` of batches in which no prompt is shared; `layout_difference`, `layout_leak`: of `probe`.
    """

    def __init__(
        self, model: nn.Module, *, kernel: str = "sdpa", router_aux_loss_coef: float = 0.0, head: str | None = None
    ):
        """`kernel`: "sdpa" or "flex" for flat batches (attention.install(model) has been called), "none" for a padded
        rectangle. `head`: None for a language model; "reward" and "value" for a sequence classifier of one label, read
        at the end of each row, or before each target."""
        super().__init__()
        self.model = model
        self.companions = nn.ModuleDict()
        self.head = head
        self.kernel = self.rows_kernel = kernel
        self.attention = Choice()
        self.router_aux_loss_coef = router_aux_loss_coef
        self.notes: list[str] = []
        self.aux_loss: torch.Tensor | None = None
        self.counts_routing = False
        self.recomputes = False  # gradient checkpointing
        self.routing: Routing | None = None
        self.noise: EmbeddingNoise | None = None
        self.lean = Found()
        self.unreached = 0  # parameters that no text goes through: frozen
        self.waiting: list[Callable[[], None]] = []
        self.layout_difference: float | None = None
        self.layout_leak: float | None = None

    # -- parts of the model

    @property
    def causal_lm(self) -> Any:
        """The transformers model, without peft's wrapper."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> Any:
        """The model's text config."""
        return self.causal_lm.config.get_text_config()

    @property
    def experts(self) -> tuple[int, int]:
        """How many experts a mixture has, and how many a token goes to."""
        # a vision-language model has them in its config alone
        where = self.causal_lm if "num_experts" in vars(self.causal_lm) else self.config
        return where.num_experts, where.num_experts_per_tok

    @property
    def gives(self) -> tuple[str, ...]:
        """What can be wanted of it."""
        if self.head is not None:
            return ("score",) if self.head == "reward" else ("value",)
        return (*WANTS, "hidden", *self.companions)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- forward

    def forward(
        self,
        batch: Batch,
        want: tuple[str, ...] = WANTS,
        *,
        loss: head.Loss | None = None,
        divergence: TiledDivergence | None = None,
        temperature: float = 1.0,
        weight: Any = None,
        against: TiledDivergence | None = None,
    ) -> dict[str, torch.Tensor]:
        """Raises ValueError where this model doesn't give what is asked for. `weight` and `against` are what `loss` and
        `divergence` were in 0.4; they go with 1.0."""
        if weight is not None or against is not None:
            return self._by_names_of_04(batch, want, temperature, weight, against)
        unknown = set(want) - set(self.gives)
        if unknown or ((loss is not None or divergence is not None) and self.head is not None):
            what = "a language model" if self.head is None else f"a {self.head} model"
            given = [name for name, value in (("loss", loss), ("divergence", divergence)) if value is not None]
            named = f"want: {', '.join(sorted(unknown))}" if unknown else ", ".join(given)
            raise ValueError(f"{named}: nothing that {what} gives; it gives {', '.join(self.gives)}")
        # Balance is of tokens as the router sees them: a shared prompt would count once where full sequences have it
        # once each. A rectangle holds full sequences anyway.
        if self.router_aux_loss_coef and self.kernel != "none" and any(parent >= 0 for parent in batch.parents):
            batch = unshared(batch)
        states, places, router_logits, mask = self._states(batch)
        if self.head == "reward":
            out = {"score": self._score(states.index_select(0, places(batch.ends)))}
        elif self.head == "value":
            out = {"value": self._score(states.index_select(0, places(batch.sources)))}
        else:
            hidden = states.index_select(0, places(batch.sources))
            out = self._per_target(hidden, batch.targets, tuple(want), loss, divergence, temperature)
            if "value" in want:
                companion = self.companions["value"]
                out |= companion(batch, want=("value",)) if isinstance(companion, Policy) else companion(hidden)
        self.aux_loss = self._aux_loss(router_logits, mask) if self.router_aux_loss_coef else None
        if router_logits and self._learns:  # a reference that is the policy without its adapter leaves it
            self.routing = self._routing(router_logits, batch, mask)
        return out

    def _states(self, batch: Batch) -> tuple[torch.Tensor, Places, Any, torch.Tensor | None]:
        """The last hidden states, flattened, (T, H); a function from places in `batch.input_ids` to places in them;
        router logits where asked for; and the rectangle's mask."""
        backbone = backbone_of(self.causal_lm, self.head)
        asked = self.router_aux_loss_coef or (self.counts_routing and self._learns)
        routing = {"output_router_logits": True} if asked else {}
        layers = not (self.recomputes and self.training)
        if self.kernel == "none":
            input_ids, mask, where, hides = rectangle(batch)
            noise = noisy(self.noise, self._learns, lambda: mask.sum(1, keepdim=True).expand_as(mask))
            with remaking(layers), noise, padded(hides=hides):
                out = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False, **routing)
            states, places = out.last_hidden_state.flatten(0, 1), where.__getitem__
        else:
            kernel = self.rows_kernel if max(batch.parents) < 0 else self.kernel
            layout = Layout(batch.lengths, batch.parents, batch.input_ids.device, kernel)
            # transformers looks for packed rows itself where there is no 2-D mask; ours says all that there is to say
            mask, places = None, _same
            with remaking(layers), flat(layout), noisy(self.noise, self._learns, lambda: row_lengths(batch)):
                out = backbone(
                    input_ids=batch.input_ids[None],
                    attention_mask=torch.ones_like(batch.input_ids)[None],
                    position_ids=batch.position_ids[None],
                    use_cache=False,
                    **routing,
                )
            states = out.last_hidden_state[0]
        return states, places, out.router_logits if routing else None, mask

    def _score(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, H) hidden states of the rows' ends to (R,) scores, by the model's own head.

        In the type that the head is held in: a product with one row costs nothing, and bfloat16 would leave a score of
        5 no more than two digits, when what counts is the difference of two.
        """
        head = self.causal_lm.score
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype)).squeeze(1).float()

    def logits_head(self, temperature: float = 1.0) -> Head:
        """The head with its scale and soft cap. Of a sharded policy its matrix is gathered: all ranks must call it."""
        module = self.causal_lm.get_output_embeddings()
        shape = replace(logit_scaling_of(self.config), temperature=temperature)
        if not head.is_plain(module):
            return Head(None, module, shape, self.config.vocab_size)
        matrix = module.weight
        if isinstance(matrix, DTensor):
            matrix = matrix.full_tensor()
        return Head(matrix, None, shape, self.config.vocab_size)

    def _per_target(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        want: tuple[str, ...],
        loss: head.Loss | None,
        divergence: TiledDivergence | None,
        temperature: float,
    ) -> dict[str, torch.Tensor]:
        """What is wanted of the hidden states of targets; log-probs and the like only where they are."""
        out: dict[str, torch.Tensor] = {"hidden": hidden} if "hidden" in want else {}
        if divergence is not None:
            ours = self.logits_head(temperature)
            ahead = ours.matrix is not None and not head.loss_is_scaled(hidden, ours.matrix)
            summed, values = tiled_divergence(hidden, ours, divergence, ahead)
            taken = values.keys() & {"loss", "divergence", *want}
            if taken:
                raise ValueError(f"divergence: its function names a value {min(taken)}, which the model gives itself")
            out |= {"divergence": summed, **values}
        rest = tuple(name for name in want if name in WANTS)
        if rest or loss is not None or not out:
            out |= self._head(hidden, targets, rest, loss, temperature)
        return out

    def _head(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        want: tuple[str, ...],
        loss: head.Loss | None,
        temperature: float,
    ) -> dict[str, torch.Tensor]:
        module = self.causal_lm.get_output_embeddings()
        shape = replace(logit_scaling_of(self.config), temperature=temperature)
        if not head.is_plain(module):
            out = head.log_probs_of_module(hidden, module, targets, self.config.vocab_size, shape, want)
        elif loss is None or not torch.is_grad_enabled() or head.loss_is_scaled(hidden, module.weight):
            out = head.log_probs(hidden, module.weight, targets, shape, want)
        else:
            return head.tiled_loss(hidden, module.weight, targets, loss, shape, want)
        return out if loss is None else head.loss_of_values(out, loss)

    def _by_names_of_04(
        self, batch: Batch, want: tuple[str, ...], temperature: float, weight: Any, against: TiledDivergence | None
    ) -> dict[str, torch.Tensor]:
        """`weight`, which gave `nll`, the sum of weight(logp) * -logp with constant weights; `against`, which gave what
        `divergence` gives."""
        renamed = "weight=) is loss=" if weight is not None else "against=) is divergence="
        warnings.warn(f"model(..., {renamed} since ft-host 0.5; docs/hooks.md has it under ft_loss", FutureWarning, 2)

        def nll(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
            logp = values["logp"]
            weights = weight[part] if isinstance(weight, torch.Tensor) else weight(logp.detach())
            return -weights.to(logp.dtype) * logp

        def function(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            summed, values = against.function(*args)
            return summed, {f"value/{name}": value for name, value in values.items()}  # could be called divergence

        loss = None if weight is None else nll
        divergence = None if against is None else replace(against, function=function)
        out = self.forward(batch, want, loss=loss, divergence=divergence, temperature=temperature)
        names = {"loss": "nll", "divergence": "against"}
        return {names.get(name, name.removeprefix("value/")): value for name, value in out.items()}

    @property
    def _learns(self) -> bool:
        """Whether this forward is one of training."""
        return self.training and torch.is_grad_enabled()

    def _routing(self, router_logits: Any, batch: Batch, mask: torch.Tensor | None) -> Routing:
        if mask is None:
            weight = times_shared(batch)
        else:
            weight = mask if not batch.empty else torch.zeros_like(mask)
        return routing_of(router_logits, weight, self.experts[1])

    def _aux_loss(self, router_logits: Any, mask: torch.Tensor | None) -> torch.Tensor:
        balance = sys.modules[type(self.causal_lm).__module__].load_balancing_loss_func
        return balance(router_logits, *self.experts, mask)


def _same(places: torch.Tensor) -> torch.Tensor:
    return places
