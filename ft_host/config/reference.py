"""The fields of methods that compare the policy with a frozen model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.config.paths import place_problems
from ft_host.config.rollout import RolloutConfig
from ft_host.config.run import RunConfig, option
from ft_host.config.usual import Usual
from ft_host.errors import ConfigError
from ft_host.types import ModelSpec


@dataclass(kw_only=True)
class ReferenceConfig(RunConfig):
    """The fields of a run with a reference. `reference_models` is the result of `ft_models` for it.

    A method with rollouts names it last: `class MyConfig(GroupedRolloutConfig, ReferenceConfig)`. A method changes a
    default by declaring the field again.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if issubclass(cls, RolloutConfig) and cls.__mro__.index(ReferenceConfig) < cls.__mro__.index(RolloutConfig):
            raise TypeError(
                f"{cls.__qualname__}: ReferenceConfig stands before the config of rollouts, and would undo its defaults"
                f"; expected class {cls.__name__}(GroupedRolloutConfig, ReferenceConfig)"
            )

    ref_model: str | None = option(
        None,
        "Folder or hub id of another model as the reference. Not set: the model as it was before training.",
        aliases=("ref_model_name_or_path",),
        path=True,
    )
    sync_ref_model: bool = option(False, "Let the reference follow the policy (TR-DPO, arXiv 2404.09656).")
    ref_model_mixup_alpha: float = option(
        0.6,
        "The policy's share when it is mixed into the reference; 1 copies it. 0.6 is the paper's value.",
        gt=0,
        le=1,
        usual=Usual(low=0.01, why="the reference hardly moves", source="TR-DPO, arXiv 2404.09656: 0.6"),
    )
    ref_model_sync_steps: int = option(
        512,
        "Optimizer steps between two such updates; 512 is the paper's value.",
        gt=0,
        usual=Usual(
            low=8,
            below=("no_learning", "forgetting"),
            why="the reference is nearly the policy itself, and holds it nowhere",
            source="TR-DPO, arXiv 2404.09656: 256 to 1024",
            only={"sync_ref_model": (True,)},
        ),
    )

    @property
    def no_reference(self) -> str | None:
        """Return why the run has no reference, as error messages word it ("with beta: 0, which needs no reference"), or
        None.
        """
        return None

    def reference_models(self, precompute: str | None = None) -> dict[str, ModelSpec] | None:
        """{"reference": its ModelSpec}; None where the run has none. `precompute` is that of `ModelSpec`."""
        if self.no_reference is not None:
            return None
        spec = ModelSpec(
            source=self.ref_model,
            field="ref_model",
            precompute=precompute,
            sync_steps=self.ref_model_sync_steps if self.sync_ref_model else None,
            sync_alpha=self.ref_model_mixup_alpha,
        )
        return {"reference": spec}

    def check(self) -> None:
        super().check()
        if self.no_reference is not None:
            self.refuse({"ref_model": None, "sync_ref_model": False}, self.no_reference)
        if not self.sync_ref_model:
            for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
                usual = type(self).__dataclass_fields__[name].default
                self.refuse({name: usual}, f"without sync_ref_model; set it, or leave {name} out")
        elif self.use_peft:
            raise ConfigError(
                "sync_ref_model: with use_peft the reference is the policy with its adapter off, which can't follow "
                "the policy; train all weights, or leave one of the two out"
            )
        for problem in place_problems(self.ref_model or "", ""):
            raise ConfigError(f"ref_model: {problem}")
        if self.ref_model is not None and self.ref_model == self.model:
            raise ConfigError(
                "ref_model: is the model that is trained; leave it out, the reference is that model as it was "
                "before training"
            )
