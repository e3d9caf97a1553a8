"""What hooks return is checked where they return it: plugin, version, hook, what came and what was expected."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

import ft_host
from ft_host.api import Batch, Completion, Drop, ModelSpec, Rollout, RolloutConfig, Segment, flat_batch, mean
from ft_host.api import option as option_of
from ft_host.contract.generation import check_annotated, check_completions, check_json, check_rollout, check_scores
from ft_host.contract.names import Named, UnknownName
from ft_host.contract.rows import collate, models_of, prepare, same_rows
from ft_host.errors import ConfigError, HookError, PluginBroken
from ft_host.hooks import NAME, data, generation, hookimpl, loss
from ft_host.rundir.folder import RunFolder
from ft_host.testing.invariants import lines, run_in


def plugins(**hooks: Any) -> pluggy.PluginManager:
    """A method of ft-sft whose hooks, given by name, return these values."""
    manager = pluggy.PluginManager(NAME)
    for spec in (data, loss, generation):
        manager.add_hookspecs(spec)
    names = "ft_prepare ft_collate ft_models ft_annotate ft_rollout ft_generate ft_score".split()
    module = SimpleNamespace(**{name: _giving(name, hooks.get(name)) for name in names})
    manager.register(module, name="method ft-sft:sft")
    return manager


def _giving(name: str, value: Any) -> Any:
    def hook():
        if isinstance(value, Exception):
            raise value
        return value

    return hookimpl(hook, specname=name)


def refused(hook: str, told: str, call: Any) -> None:
    with pytest.raises(HookError, match=told) as error:
        call()
    assert str(error.value).startswith(f"{hook} of the method 'sft' (ft-sft "), error.value
    assert error.value.exit_code == 3


# ---------------------------------------------------------------- ft_prepare


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, r"returned None; expected a row \(a dict that holds `length`"),
        ("text", r"returned str 'text'; expected a row"),
        ({"input_ids": [1]}, r"a row with length=None; expected a row"),
        ([{"length": 1}, {"length": 1.5}], r"a row with length=1\.5"),
        ([{"length": 1}, None], r"returned list \[\{'length': 1\}, None\]; expected a row"),
    ],
)
def test_ft_prepare(given, told):
    refused("ft_prepare", told, lambda: prepare(plugins(ft_prepare=given), {}, None, None))


def test_ft_prepare_may_give_rows_or_a_reason():
    for given in ({"length": 1}, [{"length": 1}], [], Drop("empty")):
        assert prepare(plugins(ft_prepare=given), {}, None, None) == given


# ---------------------------------------------------------------- ft_collate


def batch(**changed: Any) -> Batch:
    made = flat_batch([Segment(input_ids=[1, 2, 3], labels=[-100, 2, 3], row=1)], num_rows=2, counts={"tokens": 2})
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_ids": [1]}, r"returned dict \{'input_ids': \[1\]\}; expected a Batch, as flat_batch"),
        (batch(input_ids=[1, 2, 3]), r"returned input_ids as list \[1, 2, 3\]; expected a tensor"),
        (batch(columns={"labels": [1.0]}), r"returned columns\['labels'\] as list \[1\.0\]; expected a tensor"),
        (batch(num_rows=1), r"returned num_rows=1 with a target of row 1; expected num_rows of 2 at least"),
        (batch(counts={"tokens": "2"}), r"returned counts\['tokens'\] as str '2'; expected a number, not a tensor"),
        (batch(counts=[2]), r"returned counts=list \[2\]; expected a dict of numbers"),
        (batch(linked={"long": {}}), r"returned in linked\['long'\] dict \{\}; expected a Batch"),
        (KeyError("labels"), r"failed: KeyError: 'labels' \(.*test_contract\.py, line \d+\)"),
    ],
)
def test_ft_collate(given, told):
    refused("ft_collate", told, lambda: collate(plugins(ft_collate=given), [], None, None))


def test_a_segment_of_a_row_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"segment 0: row 2, and num_rows is 2"):
        flat_batch([Segment(input_ids=[1, 2], labels=[-100, 2], row=2)], num_rows=2)


# ---------------------------------------------------------------- counts and models by name


def test_a_count_that_is_not_there_is_answered_with_those_that_are():
    totals = Named("run.totals", {"pairs": 2, "tokens": 8})
    with pytest.raises(UnknownName) as error:
        totals["pair"]
    assert str(error.value) == "run.totals has no 'pair'; did you mean pairs?; it has: pairs, tokens"
    assert isinstance(error.value, KeyError) and totals.get("pair", 0) == 0 and json.dumps(totals)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("loss=nll / run.totals['token']", r"run\.totals has no 'token'; did you mean tokens\?; it has: tokens"),
        ("loss=run.models['reference'](batch)['logp'].sum()", r"run\.models has no 'reference'; it has: nothing"),
        ("loss=nll.no_such()", r"failed: AttributeError: 'Tensor' object has no attribute 'no_such' \(.*sft_with"),
    ],
)
def test_a_name_that_a_run_lacks_and_any_error_name_plugin_and_hook(config, sft_with, given, told):
    config = sft_with(LOSS.replace("{given}", given))(**vars(config))
    with pytest.raises(HookError, match=rf"^ft_loss of the method .*sft_with_\d+\.py.*{told}"):
        run_in(config, "run")


LOSS = """
@hookimpl
def ft_loss(model, batch, run):
    nll = -model(batch, want=("logp",))["logp"].sum()
    return LossOutput({given})
"""


def test_a_run_that_a_hook_breaks_keeps_what_it_has_learnt(config, sft_with):
    given = "terms={'tokens': nll if run.step < 3 else [][0]}"
    config = sft_with(LOSS.replace("{given}", given))(**vars(config))
    config.save_steps, config.eval_on_start = 500, False
    with pytest.raises(HookError, match="IndexError: list index out of range"):
        run_in(config, "run")
    folder = RunFolder.open(f"{config.output_dir}/run")
    assert folder.manifest["status"] == "failed" and len(lines(folder.path)) == 3
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-3"]


# ---------------------------------------------------------------- ft_models, ft_annotate, ft_step


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([ModelSpec()], r"returned list \[ModelSpec\(.*; expected a dict of ModelSpec by role"),
        ({"reference": "policy"}, r"returned 'reference': str 'policy'; expected a dict of ModelSpec by role"),
    ],
)
def test_ft_models(given, told):
    refused("ft_models", told, lambda: models_of(plugins(ft_models=given), None))


def test_ft_models_may_be_left_out_and_is_not_changed_by_the_host():
    given = {"reference": ModelSpec()}
    found = models_of(plugins(ft_models=given), None)
    assert models_of(plugins(), None) == {} and found == given and found is not given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"a": 1}, r"returned dict \{'a': 1\}; expected the list of rows, or None"),
        ([{}], r"was given 2 rows and gave 1; expected each of them, in order"),
        ([{}, 3], r"returned list \[\{\}, 3\]; expected the list of rows"),
    ],
)
def test_hooks_of_rows(given, told):
    refused("ft_annotate", told, lambda: same_rows(plugins(), "ft_annotate", [{}, {}], given))


# ---------------------------------------------------------------- ft_generate, ft_score


def completion(**changed: Any) -> Completion:
    return Completion(**({"token_ids": [1, 2], "logprobs": [-1.0, -2.0], "finish_reason": "stop"} | changed))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, r"returned None; expected a list of one Completion for each request"),
        ([completion()], r"returned 1 completions for 2 requests; expected"),
        ([completion(), "text"], r"returned str 'text' for request 1; expected a Completion"),
        ([completion(), completion(token_ids=[1.0, 2.0])], r"token_ids list \[1\.0, 2\.0\] for request 1; expe"),
        ([completion(), completion(logprobs=[-1.0])], r"1 logprobs for the 2 token_ids of request 1; expected one for"),
        ([completion(), completion(logprobs=[])], r"0 logprobs for the 2 token_ids of request 1"),
        ([completion(), completion(sampled=[True])], r"1 values of sampled for the 2 token_ids"),
        ([completion(), completion(finish_reason="eos")], r"finish_reason='eos' for request 1; expected 'stop' or"),
    ],
)  # fmt: skip
def test_ft_generate(given, told):
    refused("ft_generate", told, lambda: check_completions(plugins(), given, 2, rollouts=True))


def test_without_rollouts_no_log_probs_are_needed():
    assert check_completions(plugins(), [completion(logprobs=[])], 1, rollouts=False)


def test_ft_score():
    refused("ft_score", "returned 1 values for 2 sequences", lambda: check_scores(plugins(), [3], 2))


# ---------------------------------------------------------------- ft_rollout, rollout_plan


ROW = {"group": 0, "length": 3, "shared": 2, "completion_ids": [1]}


def without(name: str) -> Rollout:
    return Rollout(rows=[{key: value for key, value in ROW.items() if key != name}], samples=[{}])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, r"returned None; expected Rollout\(rows="),
        ([ROW], r"returned list \[\{.*; expected Rollout\(rows="),
        (Rollout(rows=[1]), r"returned rows=list \[1\]; expected a list of dicts"),
        (Rollout(rows=[ROW], metrics={"reward": 0.5}), r"the metric 'reward' as float 0\.5; expected a Metric"),
        (Rollout(rows=[ROW], metrics={"loss": mean(1, 1)}), r"a metric 'loss', a name of the host"),
        (Rollout(rows=[ROW], samples=[{}, {}]), r"gave 2 samples for 1 rows; expected one a row, or none"),
        (without("group"), r"a row with no 'group'; expected group, a whole number: the number that the prompt"),
        (without("length"), r"a row with no 'length'; expected length, a whole number"),
        (without("shared"), r"a row with no 'shared'; expected shared, .* for max_tokens_per_micro_batch"),
        (Rollout(rows=[ROW | {"length": 2.0}]), r"a row with length=2\.0; expected length, a whole number"),
        (without("completion_ids"), r"samples for rows without completion_ids; expected the token ids"),
    ],
)  # fmt: skip
def test_ft_rollout(given, told):
    config = SimpleNamespace(max_tokens_per_micro_batch=64)
    refused("ft_rollout", told, lambda: check_annotated(plugins(), check_rollout(plugins(), given).rows, config))


def test_ft_rollout_needs_what_is_used_alone():
    config = SimpleNamespace(max_tokens_per_micro_batch=None)
    found = Rollout(rows=[{"group": 0, "length": 3}])
    assert check_rollout(plugins(), found) is found
    check_annotated(plugins(), found.rows, config)


def test_rows_of_a_rollout_are_what_json_can_hold():
    import torch

    told = r"a row whose column 'ids' is a Tensor of shape \(2,\): .*not JSON serializable\. Rows of a rollout are kept"
    refused("ft_rollout", told, lambda: check_json(plugins(), "ft_rollout", [{"ids": torch.tensor([1, 2])}]))
    check_json(plugins(), "ft_rollout", [ROW])


@dataclass(kw_only=True)
class NoPlan(RolloutConfig):
    pass


@dataclass(kw_only=True)
class DictPlan(RolloutConfig):
    def rollout_plan(self, processes):
        return {"prompts": 2}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (NoPlan, r"test_contract:NoPlan has no rollout_plan; expected a method rollout_plan\(self, processes\)"),
        (DictPlan, r"test_contract:DictPlan: rollout_plan gave \{'prompts': 2\}; expected a RolloutPlan"),
    ],
)
def test_rollout_plan(config, told):
    with pytest.raises(PluginBroken, match=told):
        config(model="m", dataset="d", reward=["length"]).check()


# ---------------------------------------------------------------- config classes


def test_a_check_that_forgets_the_hosts_is_named(config, sft_with):
    changed = sft_with("@dataclass(kw_only=True)\nclass Config(Config):\n    def check(self):\n        pass\n")
    with pytest.raises(PluginBroken, match=r":Config: its check doesn't call super\(\)\.check\(\)"):
        ft_host.train(changed(**vars(config)))


def test_a_check_that_refuses_is_heard_before_it_is_missed(config, sft_with):
    source = "from ft_host.api import ConfigError\n@dataclass(kw_only=True)\nclass Config(Config):\n"
    changed = sft_with(source + "    def check(self):\n        raise ConfigError('max_steps: no')\n")
    with pytest.raises(ConfigError, match="max_steps: no"):
        ft_host.train(changed(**vars(config)))


def test_a_field_of_the_host_with_another_type_is_named():
    from ft_host.config.fields import fields_of

    @dataclass(kw_only=True)
    class Other(RolloutConfig):
        model: int = option_of(3, "A number.")

    with pytest.raises(PluginBroken, match=r"Other\.model: is a whole number, and the host's field is a text; a"):
        fields_of(Other)


def test_a_field_of_the_host_may_be_narrower_and_have_another_default():
    from ft_host.config.fields import fields_of

    @dataclass(kw_only=True)
    class Other(RolloutConfig):
        max_length: int = option_of(7, "Never none.")

    assert fields_of(Other)["max_length"].default == 7


def test_ft_rollout_is_handed_its_rollout_by_the_name_of_0_4_too():
    manager = pluggy.PluginManager(NAME)
    manager.add_hookspecs(generation)
    old = SimpleNamespace(ft_rollout=hookimpl(lambda rows, run: (rows, run), specname="ft_rollout"))
    with pytest.warns(FutureWarning, match="its argument run is called rollout since ft-host 0.5"):
        manager.register(old)
    given = object()
    assert manager.hook.ft_rollout(rows=[1], rollout=given, run=given) == ([1], given)
