"""Fields that methods share: those of groups of completions, and those of a reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ft_host.api import ConfigError, GroupedRolloutConfig, ModelSpec, ReferenceConfig, RolloutPlan, RunConfig, option
from ft_host.config.fields import fields_of


@dataclass(kw_only=True)
class Compares(GroupedRolloutConfig, ReferenceConfig):
    """A method with groups and a reference."""

    num_generations: int = option(4, "Completions of a prompt.", group="rollouts", gt=1)
    ref_model_sync_steps: int = option(64, "Steps between two mixings.", gt=0)
    beta: float = option(0.1, "Weight of the KL.", ge=0)

    @property
    def no_reference(self) -> str | None:
        return None if self.beta else "with beta: 0, which holds no reference"


def test_a_method_with_both_has_the_fields_of_both_and_changes_a_default_by_declaring_it_again():
    fields = fields_of(Compares)
    assert {"steps_per_generation", "generation_batch_size", "num_iterations", "ref_model", "temperature"} <= set(
        fields
    )
    assert (fields["num_generations"].default, fields["num_generations"].help) == (4, "Completions of a prompt.")
    assert fields_of(GroupedRolloutConfig)["num_generations"].default == 8
    assert Compares().ref_model_sync_steps == 64 and fields["ref_model_sync_steps"].group == "method"
    with pytest.raises(ConfigError, match="ref_model_mixup_alpha: has no effect without sync_ref_model"):
        Compares(ref_model_mixup_alpha=0.5).check()
    Compares(ref_model_sync_steps=64).check()


def test_a_grouped_plan_comes_with_the_fields():
    config = Compares(per_device_train_batch_size=8, gradient_accumulation_steps=2, num_iterations=3)
    assert config.rollout_plan(2) == RolloutPlan(prompts=8, generations=4, steps=1, passes=3)
    with pytest.raises(ConfigError, match="num_generations: 10 .* nearest num_generations: 2 or 5"):
        Compares(per_device_train_batch_size=10).check()


def test_the_spec_of_a_reference():
    assert Compares().reference_models() == {"reference": ModelSpec(field="ref_model", sync_alpha=0.6)}
    config = Compares(ref_model="other", sync_ref_model=True, ref_model_mixup_alpha=1.0)
    spec = ModelSpec(source="other", field="ref_model", sync_steps=64, sync_alpha=1.0, precompute="rows")
    assert config.reference_models("rows") == {"reference": spec}
    assert Compares(beta=0.0).reference_models() is None


@pytest.mark.parametrize(
    "given,said",
    [
        ({"beta": 0.0, "ref_model": "m"}, "ref_model: has no effect with beta: 0, which holds no reference"),
        ({"beta": 0.0, "sync_ref_model": True}, "sync_ref_model: has no effect with beta: 0"),
        ({"ref_model_sync_steps": 5}, "ref_model_sync_steps: has no effect without sync_ref_model; set it, or leave"),
        ({"sync_ref_model": True, "use_peft": True}, "sync_ref_model: with use_peft the reference is the policy"),
        ({"model": "a", "ref_model": "a"}, "ref_model: is the model that is trained"),
        ({"ref_model": "./nowhere"}, "ref_model: ./nowhere: no such file or folder"),
    ],
)
def test_refusals_of_a_reference(given, said):
    with pytest.raises(ConfigError, match=said):
        Compares(**given).check()


def test_a_reference_alone_is_a_run_config():
    ReferenceConfig(sync_ref_model=True, ref_model_sync_steps=5).check()
    assert issubclass(ReferenceConfig, RunConfig) and not issubclass(ReferenceConfig, GroupedRolloutConfig)


def test_the_order_that_undoes_the_defaults_of_rollouts_is_refused():
    with pytest.raises(TypeError, match=r"expected class Wrong\(GroupedRolloutConfig, ReferenceConfig\)"):

        class Wrong(ReferenceConfig, GroupedRolloutConfig):
            pass
