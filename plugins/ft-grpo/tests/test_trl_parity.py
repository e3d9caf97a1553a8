"""The numbers of this package beside those of TRL's GRPOTrainer, on the same completions, rewards and weights: loss,
gradient and every metric of a step, of each loss and option.

TRL's trainer is made once. Each case sets what its config would have set, hands it the completions (`rollout_func`),
and calls what makes advantages and ratios of them, and then its loss. Where TRL is wrong, both numbers are shown, and
ours is compared with one computed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ft_grpo.config import CLIPPED, LOSS_TYPES, GRPOConfig

from ft_host.testing import forget_accelerate, tiny_llama

TEMPERATURE = 0.9
AT_HAND: dict[str, Any] = {}  # what TRL's rollout_func and rewards give


def rollout_func(prompts: list[str], trainer: Any) -> dict[str, list]:
    now = AT_HAND["now"]
    size = now.config.num_generations
    found = {
        "prompt_ids": [row["prompt_ids"] for row in now.prompts for _ in range(size)],
        "completion_ids": [each.token_ids for each in now.completions],
        "logprobs": [each.logprobs for each in now.completions],
    }
    if any(each.sampled for each in now.completions):
        found["env_mask"] = [[int(own) for own in each.sampled] for each in now.completions]
    return found


def right(prompts: list[str], **columns: Any) -> list[float | None]:
    return [each[0] for each in AT_HAND["now"].values]


def short(prompts: list[str], **columns: Any) -> list[float | None]:
    return [each[1] for each in AT_HAND["now"].values]


@pytest.fixture(scope="module")
def trainer(llama, reference, tmp_path_factory) -> Iterator[Any]:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(llama),
        reward_funcs=[right, short],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            temperature=TEMPERATURE,
            beta=0.1,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "p"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(llama),
        rollout_func=rollout_func,
    )
    trainer.ref_model.load_state_dict(AutoModelForCausalLM.from_pretrained(reference).state_dict())
    trainer.current_gradient_accumulation_steps = 1
    trainer._last_loaded_step = 0  # or, with use_vllm, it would ask an engine that isn't there
    trainer.begun = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    yield trainer
    forget_accelerate()


def set_up(trainer: Any, config: GRPOConfig) -> None:
    """What TRL's trainer takes from its config."""
    args = trainer.args
    for name in (
        "beta",
        "loss_type",
        "importance_sampling_level",
        "scale_rewards",
        "multi_objective_aggregation",
        "mask_truncated_completions",
        "off_policy_mask_threshold",
        "top_entropy_quantile",
        "entropy_coef",
        "use_adaptive_entropy",
        "num_iterations",
    ):
        setattr(trainer, name, getattr(config, name))
    for name in (
        "delta",
        "use_bias_correction_kl",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "vespo_k_pos",
        "vespo_lambda_pos",
        "vespo_k_neg",
        "vespo_lambda_neg",
        "entropy_coef_min",
        "entropy_coef_max",
        "entropy_coef_delta",
        "entropy_target",
    ):
        setattr(args, name, getattr(config, name))
    trainer.epsilon_low = config.epsilon
    trainer.epsilon_high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    trainer._entropy_bonus_enabled = config.entropy_bonus
    trainer._last_world_entropy = math.inf
    trainer.reward_weights = torch.tensor(config.reward_weights or [1.0, 1.0])
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = config.correction != "none"
    trainer.vllm_importance_sampling_mode = config.correction
    trainer.vllm_importance_sampling_clip_max = config.importance_sampling_clip_max
    trainer.vllm_importance_sampling_clip_min = config.importance_sampling_clip_min


@pytest.fixture
def theirs(trainer, known):
    def made_by_trl(config: GRPOConfig, given: Any, steps: int = 1) -> Any:
        """What TRL makes of the completions, at the same weights as `known.made`, which must run first: accelerate's
        state is forgotten between tests."""
        set_up(trainer, config)
        AT_HAND["now"] = given
        trainer.model.load_state_dict(trainer.begun)
        trainer.model.train()
        trainer._metrics["train"].clear()
        inputs = trainer._generate_and_score_completions(
            [{"prompt": row["prompt"]} for row in given.prompts for _ in range(config.num_generations)]
        )
        for step in range(steps):
            if config.num_iterations > 1 or step:
                known.nudge(trainer.model)
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
        return known.Made(float(loss.detach()), known.gradient(trainer.model).clone(), metrics, [])

    return made_by_trl


def assert_same(ours: Any, other: Any, skip: tuple[str, ...] = ()) -> None:
    """Losses are sums of terms of both signs, of 1 to 5 (log-probs of vespo): that is what round-off is relative to."""
    assert math.isclose(ours.loss, other.loss, rel_tol=1e-5, abs_tol=1e-5), (ours.loss, other.loss)
    assert other.grad.norm() > 1e-4, "there is no gradient to compare"
    assert (ours.grad - other.grad).norm() <= 1e-4 * other.grad.norm()
    for name, value in other.metrics.items():
        if name not in skip:
            assert ours.metrics[name] == pytest.approx(value, rel=1e-4, abs=2e-6), name


@pytest.fixture
def compare(make, prompts, theirs, known):
    """Both, of a config with these fields, compared. Gives ours."""

    def compared(skip: tuple[str, ...] = (), steps: int = 1, given: Any = known.answers, **fields: Any) -> Any:
        config = make(prompts, temperature=TEMPERATURE, **fields)
        found = known.made(config, given(config), steps=steps)
        assert_same(found, theirs(config, given(config), steps), skip)
        return found

    return compared


def test_defaults_are_those_of_trl():
    """Of the fields that are called the same. Two differ on purpose."""
    import dataclasses

    import trl

    from ft_host.api import RolloutConfig

    known = {each.name: each.default for each in dataclasses.fields(trl.GRPOConfig)}
    shared = {each.name for each in dataclasses.fields(RolloutConfig)}
    found = {each.name: each.default for each in dataclasses.fields(GRPOConfig) if each.name in known}
    found = {name: value for name, value in found.items() if name not in shared or name == "learning_rate"}
    assert len(found) > 30
    different = {name for name, value in found.items() if value != known[name]}
    assert different <= {"disable_dropout"}, different


# ---------------------------------------------------------------- losses


OFF = {"num_iterations": 2}


@pytest.mark.parametrize("off", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", LOSS_TYPES)
def test_loss(compare, name, level, off):
    if name == "vespo" and level == "sequence":
        pytest.skip("refused: it has no effect")
    capped = {"epsilon_high": 1.3} if name == "cispo" else {}
    ours = compare(loss_type=name, importance_sampling_level=level, **capped, **(OFF if off else {}))
    if name in CLIPPED:
        assert (ours.metrics["clip_ratio/region_mean"] > 0) is (off and level == "token")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("dapo", {"epsilon": 0.1, "epsilon_high": 0.28}),
        ("grpo", {"delta": 1.25}),
        ("grpo", {"importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2, "delta": 1.05}),
        ("luspo", {"importance_sampling_level": "sequence", "epsilon": 3e-2}),
        ("sapo", {"sapo_temperature_neg": 2.0, "sapo_temperature_pos": 0.7}),
        ("vespo", {"vespo_k_pos": 1.0, "vespo_lambda_pos": 2.0, "vespo_k_neg": 1.5, "vespo_lambda_neg": 4.0}),
    ],
)
def test_fields_of_losses(compare, name, fields):
    ours = compare(loss_type=name, **fields, **OFF)
    assert ours.loss != compare(loss_type=name, **OFF).loss


@pytest.mark.parametrize("off", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"loss_type": "vespo"},
        {"loss_type": "luspo"},
    ],
)
def test_reference(compare, reference, fields, corrected, off):
    ours = compare(
        beta=0.3, ref_model=str(reference), use_bias_correction_kl=corrected, **fields, **(OFF if off else {})
    )
    assert ours.metrics["kl"] > 1e-2


@pytest.mark.parametrize("quantile", [0.2, 0.5])
@pytest.mark.parametrize(
    "fields", [{}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}, OFF, {"entropy_coef": 0.1}]
)
def test_top_entropy_quantile(compare, quantile, fields):
    ours = compare(top_entropy_quantile=quantile, **fields)
    kept = [each for row in ours.rows for each in row["kept"]]
    assert sum(kept) == pytest.approx(quantile * len(kept), abs=1)


@pytest.mark.parametrize("fields", [{}, OFF, {"loss_type": "luspo"}, {"loss_type": "dr_grpo"}])
def test_entropy_bonus(compare, fields):
    ours = compare(entropy_coef=0.2, **fields)
    assert ours.loss == pytest.approx(ours.metrics["policy_loss"] - 0.2 * ours.metrics["entropy"], rel=1e-5)
    assert ours.metrics["entropy_coef"] == pytest.approx(0.2)


@pytest.mark.parametrize("target", [0.5, 10.0])
@pytest.mark.parametrize("quantile", [1.0, 0.4])
def test_adaptive_entropy(compare, target, quantile):
    """Three steps: the first applies nothing, later ones what the step before has led to. The rows are those of one
    rollout throughout, which has more steps than one."""
    fields = {
        "use_adaptive_entropy": True,
        "entropy_coef": 0.1,
        "entropy_coef_delta": 0.04,
        "entropy_target": target,
        "top_entropy_quantile": quantile,
        **OFF,
    }
    found = [compare(steps=steps, **fields).metrics["entropy_coef"] for steps in (1, 2, 3)]
    up = 1 if target == 10.0 else -1
    assert found == pytest.approx([0.1 + up * 0.04, 0.1 + up * 0.08, max(0.1 + up * 0.12, 0.0)])


@pytest.mark.parametrize("off", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("threshold", [0.05, 0.6])
def test_off_policy_mask(compare, threshold, off):
    compare(off_policy_mask_threshold=threshold, **(OFF if off else {}))


MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize("off", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("mode", MODES)
def test_corrections(compare, mode, off):
    fields = {"importance_sampling_correction": mode, "importance_sampling_clip_min": 0.2}
    ours = compare(**fields, **(OFF if off else {}))
    assert 0 < ours.metrics["sampling/effective_sample_size"] < 1
    assert ours.loss != compare(**(OFF if off else {})).loss


@pytest.mark.parametrize(
    ("name", "mode", "fields"),
    [
        ("vespo", "token_truncate", {}),
        ("vespo", "token_mask", {"importance_sampling_clip_min": 0.2}),
        ("luspo", "token_truncate", {"importance_sampling_level": "sequence"}),
        ("grpo", "sequence_mask", {"importance_sampling_level": "sequence"}),
        ("cispo", "token_mask", {"epsilon_high": 1.3}),
        ("sapo", "sequence_truncate", {"importance_sampling_clip_max": None, "importance_sampling_clip_min": 0.5}),
    ],
)
def test_corrections_of_other_losses(compare, name, mode, fields):
    compare(loss_type=name, importance_sampling_correction=mode, **fields, **OFF)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "fields",
    [
        {},
        OFF,
        {"loss_type": "grpo", "importance_sampling_level": "sequence", **OFF},
        {"importance_sampling_correction": "sequence_truncate"},
    ],
)
def test_tools(compare, known, fields):
    """What tools said is seen by the model and is no target."""
    ours = compare(given=lambda config: known.answers(config, tools=True), **fields)
    assert not all(all(row["sampled"]) for row in ours.rows)


def unscored(given: Any) -> Any:
    """Two completions without any reward, two with one only."""
    given.values[1] = given.values[6] = [None, None]
    given.values[3][0] = given.values[4][1] = None
    return given


@pytest.mark.parametrize("missing", [False, True], ids=["all", "some missing"])
@pytest.mark.parametrize(
    "fields",
    [
        {"scale_rewards": "group"},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
)
def test_advantages(compare, known, fields, missing):
    """Where the spread isn't of groups, TRL's share of groups without any is 0 or 1."""
    grouped = fields.get("scale_rewards") in ("group", "none")
    skip = () if grouped else ("frac_reward_zero_std",)
    answers = known.answers
    given = (lambda config: unscored(answers(config))) if missing else answers
    compare(given=given, reward_weights=[1.0, 0.3], skip=skip, **fields)


def test_groups_that_all_earn_the_same(compare, known):
    def given(config: GRPOConfig) -> Any:
        found = known.answers(config)
        found.values[4:] = [[0.1, 0.7]] * 4
        return found

    ours = compare(given=given)
    assert ours.metrics["frac_reward_zero_std"] == 0.5
    assert [row["advantage"] for row in ours.rows[4:]] == pytest.approx([0.0] * 4, abs=1e-9)


@pytest.mark.parametrize("name", ["dapo", "bnpo", "cispo", "vespo"])
@pytest.mark.parametrize("fields", [{}, OFF])
def test_truncated_completions_are_left_out_of_means_over_tokens(compare, name, fields):
    """cispo at a cap that TRL is told. Of vespo and ratios TRL's mean counts the masked rows, too."""
    capped = {"epsilon_high": 1.3} if name == "cispo" else {}
    ours = compare(loss_type=name, mask_truncated_completions=True, skip=("vespo/phi_seq_mean",), **capped, **fields)
    assert sum(not any(row["sampled"]) for row in ours.rows) == 2


# ---------------------------------------------------------------- where TRL is wrong


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "luspo", "sapo"])
def test_truncated_completions_stay_in_trls_means_over_rows(make, prompts, theirs, known, name):
    """It divides by 8 rows where 6 are trained on. By hand: what its sum is without the two, over 6."""
    config = make(prompts, temperature=TEMPERATURE, loss_type=name, mask_truncated_completions=True)
    ours, other = known.made(config, known.answers(config)), theirs(config, known.answers(config))
    assert ours.loss == pytest.approx(8 / 6 * other.loss, rel=1e-5)
    assert (ours.grad - 8 / 6 * other.grad).norm() <= 1e-4 * ours.grad.norm()
    # on policy each token's value is -A (sapo: -2 A / T), so that the loss is known without a model
    gains = [row["advantage"] for row in ours.rows]
    sizes = [len(row["completion_ids"]) if any(row["sampled"]) else 0 for row in ours.rows]
    by_hand = 0.0
    for gain, size in zip(gains, sizes, strict=True):
        value = -2 * gain / (1.0 if gain > 0 else 1.05) if name == "sapo" else -gain
        by_hand += value * {"grpo": size > 0, "sapo": size > 0, "luspo": size, "dr_grpo": size / 12}[name]
    assert ours.loss == pytest.approx(by_hand / 6, rel=1e-5)
    assert other.loss == pytest.approx(by_hand / 8, rel=1e-5)


def test_cispo_without_a_cap(make, prompts, theirs, known):
    """TRL takes the 0.2 of epsilon for the largest ratio: every token weighs a fifth. Ours has a cap of 5, under which
    a ratio of 1 weighs 1: by hand, the loss is - A log p over tokens."""
    config = make(prompts, temperature=TEMPERATURE, loss_type="cispo")
    ours, other = known.made(config, known.answers(config)), theirs(config, known.answers(config))
    assert other.loss == pytest.approx(0.2 * ours.loss, rel=1e-5)
    assert float(other.grad.norm()) == pytest.approx(0.2 * float(ours.grad.norm()), rel=1e-4)
    total, count = 0.0, 0
    model = tiny_llama()
    for row in ours.rows:
        ids, start = row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])
        with torch.no_grad():
            logs = (model(torch.tensor([ids])).logits[0] / TEMPERATURE).log_softmax(-1)
        total -= row["advantage"] * sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids)))
        count += len(ids) - start
    assert ours.loss == pytest.approx(total / count, rel=1e-5)


def test_bnpo_is_a_mean_over_the_step(make, prompts, trainer, known):
    """TRL's is one of each micro-batch: cut in two, it is another loss. Ours is the same, and is dapo's."""
    config = make(prompts, temperature=TEMPERATURE, loss_type="bnpo")
    whole = known.made(config, known.answers(config))
    assert (
        whole.loss == known.made(make(prompts, temperature=TEMPERATURE, loss_type="dapo"), known.answers(config)).loss
    )
    set_up(trainer, config)
    AT_HAND["now"] = known.answers(config)
    trainer.model.load_state_dict(trainer.begun)
    inputs = trainer._generate_and_score_completions([{"prompt": "p"}] * 8)
    halves = [
        {name: value[part] if value.dim() else value for name, value in inputs.items()}
        for part in (slice(0, 4), slice(4, 8))
    ]
    split = sum(float(trainer._compute_loss(trainer.model, half).detach()) for half in halves) / 2
    assert abs(split - whole.loss) > 1e-3
