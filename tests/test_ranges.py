"""Usual ranges of fields, relations between them, and what they make of a finding."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
from ft_dpo.config import DPOConfig
from ft_grpo.config import GRPOConfig
from ft_grpo.rules import RULES as GRPO_RULES

from ft_host import registry
from ft_host.config import RunConfig, Usual, option
from ft_host.config.fields import fields_of
from ft_host.config.usual import SYMPTOMS
from ft_host.diagnostics import Remedy, Rule
from ft_host.diagnostics.collect import installed_rules, own_diagnostics, suspects_of
from ft_host.diagnostics.engine import Engine
from ft_host.diagnostics.rules import RULES, relations
from ft_host.errors import PluginBroken
from ft_host.monitor.watch import Monitor
from ft_host.testing.rules import Told, findings, steps

METHODS = [info.name for info in registry.catalog() if info.kind == "method" and info.distribution.startswith("ft-")]


def note(config, facts=None, kind=RunConfig, suspects=()):
    """What CFG010 says of a run: {field: (severity, patch of its first remedy)}."""
    told = Told(config=config, facts=facts or {"plan/device": "cpu"})
    found = findings(relations.RULES, told, kind, suspects)
    return {each.cause: (each.severity, each.remedies[0].patch) for each in found if each.state == "open"}


# ---------------------------------------------------------------- the ranges themselves


@pytest.mark.parametrize("method", METHODS)
def test_a_default_is_within_its_range(method):
    config_class = registry.config_class(method)
    config = dataclasses.asdict(config_class())
    for field in fields_of(config_class).values():
        for usual in field.usual:
            values = field.default if isinstance(field.default, list) else [field.default]
            if usual.applies(config):
                assert not any(usual.side(value) for value in values), f"{field.name} is {field.default}: {usual.words}"


@pytest.mark.parametrize("method", METHODS)
def test_a_remedy_of_a_range_is_within_it(method):
    for field in fields_of(registry.config_class(method)).values():
        for usual in field.usual:
            new = field.default if usual.new is None else usual.new
            assert new is None or not usual.side(new), f"{field.name}: {new} isn't {usual.words}"


@pytest.mark.parametrize("method", METHODS)
def test_default_settings_are_noted_by_nothing(method):
    config_class = registry.config_class(method)
    config = dataclasses.asdict(config_class())
    engine = Engine(
        [],
        config,
        strict=True,
        suspects=suspects_of(config_class, own_diagnostics(registry.find("method", method)), "transformers"),
    )
    for facts in ({"plan/total_steps": 30}, {"plan/total_steps": 5000, "model/parameters": 7_000_000_000}):
        engine.record_facts(facts)
        assert engine.view.suspects == []


def test_a_range_must_say_where_it_is_from_and_what_it_explains():
    with pytest.raises(ValueError, match="source is empty"):
        Usual(low=1)
    with pytest.raises(ValueError, match="neither low nor high"):
        Usual(source="paper")
    with pytest.raises(ValueError, match="'sadness' is no symptom"):
        Usual(high=1, above=("sadness",), source="paper")


def test_sides_and_words():
    usual = Usual(low=1e-8, high=0.5, off=(0.0,), source="paper")
    assert [usual.side(value) for value in (0.0, 1e-9, 1e-8, 0.5, 0.6, None, True)] == [0, -1, 0, 0, 1, 0, 0]
    assert usual.words == "1e-8 to 0.5"
    assert Usual(low=4, source="x").words == "at least 4" and Usual(high=0.3, source="x").words == "at most 0.3"


def test_a_range_of_some_runs_applies_to_those():
    usual = Usual(high=1, only={"loss_type": ("sigmoid", "ipo")}, source="x")
    assert usual.applies({"loss_type": ["sft", "sigmoid"]}) and usual.applies({"loss_type": "ipo"})
    assert not usual.applies({"loss_type": ["sft"]}) and not usual.applies({})


def test_the_page_of_ranges_is_up_to_date(monkeypatch):
    docs = Path(__file__).resolve().parent.parent / "docs"
    monkeypatch.syspath_prepend(str(docs))
    written = (docs / "ranges.md").read_text(encoding="utf-8")
    assert written == importlib.import_module("generate_ranges").generate(), "run: python docs/generate_ranges.py"


# ---------------------------------------------------------------- notes before training


LARGE = {"model/parameters": 7_000_000_000}
HUNDRED = {"plan/total_steps": 100}
LORA = {"use_peft": True, "learning_rate": 2e-4}
SGD = {"optim": "sgd", "learning_rate": 0.1}
WEAK = {"router_aux_loss_coef": 1e-3}
WARM = {"warmup_steps": 500, "max_steps": 100}
CASES = [  # config, facts, field, severity, its first patch
    ({"weight_decay": 10.0}, {}, "weight_decay", "info", {"weight_decay": 0.0}),
    ({"weight_decay": 50.0}, {}, "weight_decay", "warning", {"weight_decay": 0.0}),
    ({"adam_beta1": 1.0}, {}, "adam_beta1", "info", {"adam_beta1": 0.9}),
    ({"adam_beta2": 0.1}, {}, "adam_beta2", "info", {"adam_beta2": 0.999}),
    ({"adam_epsilon": 1e-3}, {}, "adam_epsilon", "info", {"adam_epsilon": 1e-8}),
    ({"max_grad_norm": 1e-6}, {}, "max_grad_norm", "warning", {"max_grad_norm": 1.0}),
    ({"neftune_noise_alpha": 800.0}, {}, "neftune_noise_alpha", "warning", {"neftune_noise_alpha": 5.0}),
    (WARM, {}, "warmup_steps", "warning", {"warmup_steps": 0.05}),
    ({"warmup_steps": 60}, HUNDRED, "warmup_steps", "info", {"warmup_steps": 0.05}),
    ({"warmup_steps": 0.9}, HUNDRED, "warmup_steps", "info", {"warmup_steps": 0.05}),
    ({"optim": "sgd", "learning_rate": 2e-5}, {}, "optim", "info", {"optim": "adamw"}),
    (
        {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e-2},
        {},
        "max_grad_norm",
        "info",
        {"max_grad_norm": 1.0},
    ),
    ({"learning_rate": 1.0}, {}, "learning_rate", "info", {"learning_rate": 1e-3}),
    ({"learning_rate": 1e-9}, {}, "learning_rate", "info", {"learning_rate": 1e-3}),
    (
        {"optim_args": {"eps": 1.0, "betas": [0.9, 0.99]}},
        {},
        "optim_args",
        "info",
        {"optim_args": {"betas": [0.9, 0.99]}},
    ),
    (
        {"use_peft": True, "lora_r": 8, "lora_alpha": 8000, "learning_rate": 2e-4},
        {},
        "lora_alpha",
        "warning",
        {"lora_alpha": 16},
    ),
    (
        {"use_peft": True, "lora_r": 64, "lora_alpha": 1, "learning_rate": 2e-4},
        {},
        "lora_alpha",
        "info",
        {"lora_alpha": 128},
    ),
    ({"eval_dataset": "e", "eval_steps": 500}, HUNDRED, "eval_steps", "warning", {"eval_steps": 10}),
    ({"eval_dataset": "e", "eval_steps": 120}, HUNDRED, "eval_steps", "info", {"eval_steps": 10}),
    ({"logging_steps": 5000}, HUNDRED, "logging_steps", "info", {"logging_steps": 10}),
    (
        {"router_aux_loss_coef": 5.0},
        {"model/experts": 4},
        "router_aux_loss_coef",
        "info",
        {"router_aux_loss_coef": 1e-3},
    ),
    ({}, {"model/settings": {"attention_dropout": 0.9}}, "model.attention_dropout", "info", {"disable_dropout": True}),
    ({}, {"model/settings": {"rms_norm_eps": 1.0}}, "model.rms_norm_eps", "info", {}),
]


@pytest.mark.parametrize("config, facts, field, severity, patch", CASES, ids=lambda each: str(each)[:40])
def test_an_unusual_setting_is_noted_with_its_field_as_the_remedy(config, facts, field, severity, patch):
    assert note(config, facts) == {field: (severity, patch)}


HEALTHY = [
    ({"warmup_steps": 0.1}, HUNDRED),
    ({"warmup_steps": 50}, HUNDRED),  # half of a run
    ({"warmup_steps": 500, "lr_scheduler_type": "constant", "max_steps": 100}, {}),  # which has none
    ({"weight_decay": 0.1, "adam_beta2": 0.95, "max_grad_norm": 0.0}, LARGE),
    ({"adam_beta1": 0.8, "adam_epsilon": 1e-6}, {}),
    ({"use_peft": True, "lora_r": 64, "lora_alpha": 16, "learning_rate": 2e-4}, LARGE),
    ({"use_peft": True, "use_rslora": True, "learning_rate": 2e-4}, LARGE),
    ({"optim": "sgd", "learning_rate": 0.1}, {}),
    ({"save_steps": 10, "logging_steps": 1}, {"plan/total_steps": 3000}),
    ({"logging_steps": 50}, {"plan/total_steps": 20}),
    ({"learning_rate": 1e-2}, {"model/parameters": 600_000}),
    (
        {},
        {"model/settings": {"attention_dropout": 0.1, "rms_norm_eps": 1e-6, "rope_theta": 1e6}, "plan/total_steps": 4},
    ),
    ({"disable_dropout": True}, {"model/settings": {"attention_dropout": 0.9}}),
    ({"router_aux_loss_coef": 0.0}, {"model/experts": 8}),
]


@pytest.mark.parametrize("config, facts", HEALTHY, ids=lambda each: str(each)[:40])
def test_what_others_train_with_is_not_noted(config, facts):
    assert note(config, facts) == {}


def test_a_schedule_that_rests_is_told_by_its_rates():
    config = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 60.0}}
    facts = HUNDRED | {"plan/rate_most": 1.0, "plan/rate_idle_share": 0.93}
    assert note(config, facts) == {"lr_scheduler_kwargs": ("warning", {"lr_scheduler_kwargs": {}})}
    config = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}}
    patch = {"lr_scheduler_kwargs": {}, "lr_scheduler_type": "linear"}
    assert note(config, facts) == {"lr_scheduler_kwargs": ("warning", patch)}
    assert note({"lr_scheduler_type": "cosine"}, HUNDRED | {"plan/rate_most": 1.0, "plan/rate_idle_share": 0.07}) == {}


@pytest.mark.parametrize(
    "kind, arguments, warmup, most, idle",
    [
        ("linear", {}, 0, 1.0, 0.01),
        ("cosine", {}, 10, 1.0, 0.06),
        ("polynomial", {"power": 60.0}, 0, 1.0, 0.92),
        ("linear", {}, 400, 0.2475, 0.01),
        ("constant", {}, 0, 1.0, 0.0),
    ],
)
def test_a_schedule_says_what_its_rate_comes_to(kind, arguments, warmup, most, idle):
    import torch

    from ft_host.training.optim import Schedule

    config = RunConfig(lr_scheduler_type=kind, lr_scheduler_kwargs=arguments, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    facts = Schedule(optimizer, config, 100).facts()
    assert facts["plan/rate_most"] == pytest.approx(most, abs=1e-3)
    assert facts["plan/rate_idle_share"] == pytest.approx(idle, abs=0.011)


def test_the_scale_of_a_loaded_adapter_is_mended_in_its_own_file():
    facts = {"model/adapter": "runs/first/adapter", "model/adapter_ranks": {"": [8, 8000]}}
    finding = findings(relations.RULES, Told(config=LORA, facts=facts))[0]
    assert finding.severity == "warning" and finding.remedies[0].patch == {}
    place = "runs/first/adapter/adapter_config.json"
    said = f"lora_alpha 8,000 and lora_r 8 of all parts in {place} scale the adapter by 1,000"
    assert finding.message.startswith(said)
    assert finding.remedies[0].why == f"Correct lora_alpha in {place}: 16 is usual for its rank"
    facts["model/adapter_ranks"] = {"": [8, 16], "mlp.up_proj": [8, 0.001]}
    finding = findings(relations.RULES, Told(config=LORA, facts=facts))[0]
    assert "of mlp.up_proj in runs/first" in finding.message and "lora_alpha of mlp.up_proj" in finding.remedies[0].why
    facts["model/adapter_ranks"] = {"": [8, 16], "mlp.up_proj": [64, 64]}
    assert note(LORA | {"lora_alpha": 8000}, facts) == {}  # what the run's fields say is not what is trained
    facts["model/adapter_ranks"] = {"": [8, 16]}
    finding = findings(relations.RULES, Told(config=LORA | {"lora_dropout": 0.9}, facts=facts))[0]
    assert finding.remedies[0].patch == {} and finding.remedies[0].why == f"Correct lora_dropout in {place}: 0 is usual"


@pytest.mark.parametrize(
    "kind, config, field, severity",
    [
        (DPOConfig, {"beta": 100.0}, "beta", "warning"),
        (DPOConfig, {"beta": 5.0}, "beta", "info"),
        (DPOConfig, {"beta": 2.0, "loss_type": ["sigmoid_norm"]}, None, None),
        (DPOConfig, {"beta": 0.01, "loss_type": ["ipo"]}, None, None),
        (GRPOConfig, {"temperature": 0.01}, "temperature", "warning"),
        (GRPOConfig, {"temperature": 0.2}, "temperature", "info"),
        (GRPOConfig, {"temperature": 0.7, "top_p": 0.95, "top_k": 50}, None, None),
        (GRPOConfig, {"top_k": 1}, "top_k", "warning"),
        (GRPOConfig, {"epsilon": 1e-6, "num_iterations": 2}, "epsilon", "warning"),
        (GRPOConfig, {"epsilon": 1e-6}, None, None),  # of a rollout that is used once, nothing is clipped
        (GRPOConfig, {"epsilon": 3e-4, "importance_sampling_level": "sequence", "num_iterations": 2}, None, None),
        (GRPOConfig, {"beta": 50.0}, "beta", "warning"),
        (GRPOConfig, {"entropy_coef": 1.0}, "entropy_coef", "warning"),
        (GRPOConfig, {"reward_weights": [0.0, 0.0]}, "reward_weights", "warning"),
        (GRPOConfig, {"reward_weights": [1.0, -0.5]}, None, None),
        (GRPOConfig, {"num_iterations": 20}, "num_iterations", "info"),
        (GRPOConfig, {"num_generations": 2}, None, None),  # CFG005 says it
    ],
)
def test_settings_of_methods(kind, config, field, severity):
    found = note(config, None, kind)
    assert {name: each[0] for name, each in found.items()} == ({} if field is None else {field: severity})


def test_a_value_that_is_the_default_of_a_stranger_is_usual():
    @dataclasses.dataclass(kw_only=True)
    class Sharp(GRPOConfig):
        temperature: float = option(0.1, "It samples sharply.", group="rollouts", gt=0)
        margin: float = option(1.0, "The margin.", usual=Usual(high=10, above=("no_learning",), source="its paper"))

    assert note({}, None, Sharp) == {}
    assert note({"margin": 5000.0}, None, Sharp) == {"margin": ("warning", {"margin": 1.0})}
    assert fields_of(Sharp)["temperature"].usual == fields_of(GRPOConfig)["temperature"].usual


# ---------------------------------------------------------------- the first suspects of a symptom


STILL = Rule(
    code="XX001",
    title="Nothing moves",
    stage="train",
    needs=("loss",),
    symptom="no_learning",
    test=lambda view: view["loss"] > 1,
    window=5,
    least=5,
    message=lambda view: "The loss stays.",
    remedies=lambda view: [
        Remedy(why="Raise learning_rate", patch={"learning_rate": 1e-3}),
        Remedy(why="Set bf16", patch={"bf16": True}),
    ],
    when="x",
    why="x",
    remedy="x",
    source="x",
)


def symptom(config, rule=STILL, kind=RunConfig, facts=None, suspects=()):
    told = Told(config=config, facts=facts or {"plan/total_steps": 100}, lines=steps(20, loss=2.0))
    return next(each for each in findings([rule], told, kind, suspects) if each.code == rule.code)


def test_a_setting_that_explains_the_symptom_comes_before_another_rate():
    finding = symptom({"adam_epsilon": 1.0})
    assert finding.message == "The loss stays. adam_epsilon is 1 (usual: 1e-16 to 1e-5)."
    assert [remedy.patch for remedy in finding.remedies] == [{"adam_epsilon": 1e-8}, {"bf16": True}]
    assert finding.remedies[0].why == "Lower adam_epsilon from 1 to 1e-8" and finding.remedies[0].again


def test_without_a_suspect_a_finding_is_as_its_rule_has_it():
    finding = symptom({})
    assert finding.message == "The loss stays."
    assert [remedy.patch for remedy in finding.remedies] == [{"learning_rate": 1e-3}, {"bf16": True}]


def test_a_setting_that_explains_something_else_is_no_suspect():
    assert symptom({"num_train_epochs": 90.0}).message == "The loss stays."  # of overfitting


def test_what_breaks_out_forgets_as_well():
    worse = dataclasses.replace(STILL, symptom="forgetting")
    assert symptom({"adam_beta2": 0.5}, worse).remedies[0].patch == {"adam_beta2": 0.999}


def test_the_surest_suspect_is_the_first():
    finding = symptom({"weight_decay": 1.0, "warmup_steps": 1000, "adam_epsilon": 1e-4})
    assert [list(remedy.patch) for remedy in finding.remedies[:3]] == [
        ["warmup_steps"],  # which can't be meant: the others, which may be, stay as they are at first
        ["adam_epsilon"],
        ["weight_decay"],
    ]


def test_several_settings_that_explain_a_symptom_are_changed_at_once_first():
    """Each of them may be enough: an update with one of them mended still goes wrong."""
    worse = dataclasses.replace(STILL, symptom="divergence")
    finding = symptom({"adam_beta1": 0.999, "adam_beta2": 0.1}, worse)
    assert [remedy.patch for remedy in finding.remedies[:3]] == [
        {"adam_beta2": 0.999, "adam_beta1": 0.9},
        {"adam_beta2": 0.999},
        {"adam_beta1": 0.9},
    ]
    assert finding.remedies[0].why == (
        "Change adam_beta2 and adam_beta1 at once: raise adam_beta2 from 0.1 to 0.999;"
        " lower adam_beta1 from 0.999 to 0.9"
    )
    assert finding.remedies[0].again and not finding.remedies[0].measured


def test_a_rate_that_is_a_suspect_itself_keeps_the_size_that_the_finding_measured():
    finding = symptom({"learning_rate": 1e-9})
    assert finding.remedies[0].patch == {"learning_rate": 1e-3}
    assert "learning_rate is 1e-9 (usual: 1e-6 to 0.05)" in finding.message


def test_a_locked_suspect_is_told_without_its_change():
    finding = symptom({"adam_epsilon": 1.0, "locked_fields": ["adam_epsilon"]})
    assert finding.remedies[0].patch == {} and "adam_epsilon is locked" in finding.remedies[0].why


def test_a_field_that_is_a_suspect_is_moved_one_way_only():
    away = dataclasses.replace(STILL, remedies=lambda view: [Remedy(why="Raise beta", patch={"beta": 300.0})])
    finding = symptom({"beta": 100.0}, away, DPOConfig)
    assert [remedy.patch for remedy in finding.remedies] == [{"beta": 0.1}]


def test_a_function_of_a_stranger_that_raises_ends_nothing():
    def broken(view):
        raise KeyError("gone")

    config = dataclasses.asdict(RunConfig(weight_decay=9.0))
    asked = [*suspects_of(RunConfig, [], "transformers"), broken]
    engine = Engine([(rule, "test 0") for rule in relations.RULES], config, suspects=asked)
    engine.record_facts({"plan/device": "cpu"})
    assert "broken" in engine.failed["CFG010"] and "gone" in engine.failed["CFG010"]
    assert [each.field for each in engine.view.suspects] == ["weight_decay"]


def test_rewards_beyond_the_bounds_of_rloo_are_suspected_of_being_the_same():
    from ft_rloo.config import RLOOConfig
    from ft_rloo.rules import SUSPECTS

    still = dataclasses.replace(STILL, symptom="no_signal")
    lines = steps(20, loss=2.0, completions__reward_min=1.0, completions__reward_max=2.0)
    told = Told(config={"reward_clip_range": [0.0, 0.5]}, facts={"plan/total_steps": 100}, lines=lines)
    finding = next(each for each in findings([still], told, RLOOConfig, SUSPECTS) if each.code == "XX001")
    assert "completions earn 1 to 2" in finding.message and finding.remedies[0].patch == {"reward_clip_range": None}
    told.config["reward_clip_range"] = [0.0, 3.0]
    assert findings([still], told, RLOOConfig, SUSPECTS)[0].message == "The loss stays."


# ---------------------------------------------------------------- all of them


def test_each_symptom_is_named_by_a_rule_and_explained_by_a_setting():
    owned, problems = installed_rules()
    assert not problems
    named = {rule.symptom for rule, _ in owned if isinstance(rule.symptom, str)} - {""}
    told = Told(config={"temperature": 50.0}, lines=steps(60, completions__clipped_ratio=0.5))
    [cut] = [each for each in findings(GRPO_RULES, told, GRPOConfig) if each.code == "GRPO008"]
    assert "temperature is 50" in cut.message  # whose symptom goes by how the run began
    named.add("cut")
    ranges = [
        usual
        for method in METHODS
        for each in fields_of(registry.config_class(method)).values()
        for usual in each.usual
    ]
    explained = {name for usual in ranges for name in (*usual.below, *usual.above)} | {"imbalance", "bad_start"}
    assert named == set(SYMPTOMS) and explained == set(SYMPTOMS)


def test_a_rule_with_an_unknown_symptom_is_refused():
    with pytest.raises(ValueError, match="symptom 'sadness' is none of no_learning"):
        dataclasses.replace(STILL, symptom="sadness")


def test_saturation_by_beta_is_put_down_to_beta():
    from ft_dpo.rules import RULES as DPO_RULES

    lines = steps(30, loss=1e-4, rewards__margins=200.0, rewards__accuracies=1.0, learning_rate=1e-6)
    told = Told(config={"beta": 100.0}, facts={"plan/total_steps": 100}, lines=lines)
    found = {each.code: each for each in findings([*RULES, *DPO_RULES], told, DPOConfig)}
    assert found["DPO005"].remedies[0].patch == {"beta": 0.1}
    assert not any("learning_rate" in remedy.patch for each in found.values() for remedy in each.remedies)


# ---------------------------------------------------------------- what is loaded, and what is recorded


def test_numbers_of_a_model_and_of_an_adapter_are_read_from_their_own_files(tmp_path):
    from transformers import LlamaConfig

    from ft_host.models.unusual import own_settings

    base = tmp_path / "base"
    LlamaConfig(attention_dropout=0.4, rms_norm_eps=1e-5, initializer_range=0.02).save_pretrained(base)
    facts = own_settings(RunConfig(model=str(base)))
    assert facts.keys() == {"model/settings"}
    assert facts["model/settings"]["attention_dropout"] == 0.4 and facts["model/settings"]["rms_norm_eps"] == 1e-5
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": str(base)}
    settings |= {"rank_pattern": {"up_proj": 64}, "alpha_pattern": {"down_proj": 4000}, "use_rslora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    facts = own_settings(RunConfig(model=str(adapter), use_peft=True))
    assert facts["model/adapter"] == str(adapter) and facts["model/adapter_rslora"] is True
    assert facts["model/adapter_ranks"] == {"": [8, 16], "down_proj": [8, 4000], "up_proj": [64, 16]}
    assert set(note(LORA, facts)) == {"lora_alpha", "model.attention_dropout"}


def test_suspects_that_are_no_list_of_functions_are_refused(monkeypatch):
    info = own_diagnostics(registry.find("method", "dpo"))
    monkeypatch.setattr(registry.load(info[0]), "SUSPECTS", {"beta": 1})
    with pytest.raises(PluginBroken, match=r"SUSPECTS is \{'beta': 1\}; expected a list of functions of a View"):
        suspects_of(DPOConfig, info, "transformers")


def test_what_is_suspected_is_no_fact_of_the_run(monkeypatch):
    method = registry.find("method", "dpo")
    infos = [method, *own_diagnostics(method)]
    config = DPOConfig(model="m", dataset="d", beta=100.0, progress="quiet")
    watch = Monitor(registry.session(method, None, own_diagnostics(method)), infos, config)
    assert [finding.fingerprint for finding in watch.unwritten] == ["CFG010:beta"]  # told before anything is opened
    assert watch.engine.view.facts["suspect/beta"] == 100.0 and "suspect/beta" not in watch.facts
