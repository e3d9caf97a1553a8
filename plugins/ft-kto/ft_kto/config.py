"""The fields of KTO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import ConfigError, ReferenceConfig, Usual, option


@dataclass(kw_only=True)
class KTOConfig(ReferenceConfig):
    """KTO: raise the likelihood of completions marked good and lower that of those marked bad."""

    state_keys: ClassVar[tuple[str, ...]] = ("desirable", "undesirable", "balance_said")
    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "kl",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "logits/chosen",
        "logits/rejected",
    )
    formats: ClassVar[tuple[str, ...]] = ("unpaired preference", "preference")
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "train_sampling_strategy": ("sequential", "TRL's KL pairs need the order of the rows")
    }
    # Rewards of a side move with the other's: margins and accuracies tell what is better.
    metric_directions: ClassVar[dict[str, str]] = {"rewards/chosen": "neither", "rewards/rejected": "neither"}

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that policy and reference differ only by training.",
        group="model",
    )
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 for all weights: with a beta of 0.1 models seldom tolerate much more. LoRA "
        "takes about 10 times that.",
        gt=0,
    )
    loss_type: str = option(
        "kto",
        "'kto' compares a completion with the KL estimate of its step (arXiv 2402.01306); 'apo_zero_unpaired' "
        "with zero (arXiv 2408.06266).",
        choices=("kto", "apo_zero_unpaired"),
    )
    beta: float = option(
        0.1,
        "How fast the loss levels off as policy and reference move apart; 0.1 as in the paper's experiments.",
        gt=0,
        usual=Usual(
            low=0.005,
            high=1,
            below=("divergence", "forgetting", "no_learning"),
            above=("saturation", "divergence", "no_learning", "no_signal"),
            why=("nothing holds the policy to the reference", "a completion is settled by a single update"),
            source="KTO, arXiv 2402.01306: 0.01 to 0.5",
        ),
    )
    desirable_weight: float = option(
        1.0,
        "Weight of the losses of good completions.",
        gt=0,
        usual=Usual(
            far=30,
            low=0.05,
            high=20,
            below=("no_learning",),
            above=("no_learning", "divergence"),
            why=(
                "this label counts for nothing beside the other",
                "the other label counts for nothing beside this one",
            ),
            source="KTO, arXiv 2402.01306: the two labels weighed to 1 : 1 up to 4 : 3",
        ),
    )
    undesirable_weight: float = option(
        1.0,
        "Weight of the losses of bad completions. The run says so when the two don't balance the labels.",
        gt=0,
        usual=Usual(
            far=30,
            low=0.05,
            high=20,
            below=("no_learning",),
            above=("no_learning", "divergence"),
            why=(
                "this label counts for nothing beside the other",
                "the other label counts for nothing beside this one",
            ),
            source="KTO, arXiv 2402.01306: the two labels weighed to 1 : 1 up to 4 : 3",
        ),
    )
    kl_scope: str = option(
        "step",
        "Rows of one KL estimate: 'step' is the whole optimizer step, over micro-batches and processes; "
        "'micro_batch' is TRL's, which depends on how rows are split and ordered, for comparison only.",
        choices=("step", "micro_batch"),
    )
    precompute_ref_log_probs: bool | None = option(
        None,
        "Compute the reference's log-probs once, before training, keep them on disk and hold no reference model. "
        "Not set: only if no KL is estimated (apo_zero_unpaired) and neither use_peft, dataset_streaming nor "
        "sync_ref_model is set.",
    )

    @property
    def estimates_kl(self) -> bool:
        return self.loss_type == "kto"

    @property
    def reference_is_made_ahead(self) -> bool:
        """The effective value of `precompute_ref_log_probs`."""
        if self.precompute_ref_log_probs is not None:
            return self.precompute_ref_log_probs
        return not (self.estimates_kl or self.use_peft or self.dataset_streaming or self.sync_ref_model)

    def check(self) -> None:
        super().check()
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ConfigError(
                "sync_ref_model and precompute_ref_log_probs: precomputed log-probs are those of a fixed reference, "
                "which sync_ref_model changes; set one of them"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy: {self.packing_strategy} splits rows, but a completion must stay whole; use bfd"
            )
        if self.kl_scope == "micro_batch":
            self._check_micro_batch_scope()
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes
        if self.estimates_kl and rows == 1 and not self.packing:
            raise ConfigError(
                "per_device_train_batch_size × gradient_accumulation_steps × num_processes: a step of one row has no "
                "other completion to estimate the KL with; make it 2 or more, or use loss_type: apo_zero_unpaired"
            )

    def _check_micro_batch_scope(self) -> None:
        if not self.estimates_kl:
            raise ConfigError(f"kl_scope: micro_batch has no effect with loss_type: {self.loss_type}, which has no KL")
        if self.per_device_train_batch_size == 1:
            raise ConfigError(
                "per_device_train_batch_size: with kl_scope: micro_batch a micro-batch needs 2 rows or more, since one "
                "row has no other completion to be paired with; raise it, or use kl_scope: step"
            )
        cutting = {
            "packing": self.packing,
            "train_sampling_strategy: group_by_length": self.train_sampling_strategy == "group_by_length",
            "max_tokens_per_micro_batch": self.max_tokens_per_micro_batch is not None,
        }
        for name, given in cutting.items():
            if given:
                raise ConfigError(
                    f"{name} and kl_scope: micro_batch: it estimates the KL over per_device_train_batch_size rows as "
                    f"they come, and {name.partition(':')[0]} makes micro-batches another way; use kl_scope: step"
                )
