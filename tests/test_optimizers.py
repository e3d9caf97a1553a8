"""Optimizers by name and by import path: what can't be used is refused by name before a model is loaded."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.rundir.folder import RunFolder
from ft_host.training.launch import train
from ft_host.training.optim import Schedule, averaged, make_optimizer, optimizer_factory, set_rate, try_optimizer
from ft_host.util.step_memory import states_of

CPU = torch.device("cpu")
SOURCE = '''
import torch

class Averaging(torch.optim.Optimizer):
    """Trains on one set of weights and is evaluated on another, as schedule-free optimizers are."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, scale=1.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "train_mode": False, "scale": scale})

    def _mode(self, training):
        for group in self.param_groups:
            if group["train_mode"] != training:
                for p in group["params"]:
                    if p in self.state:
                        other = self.state[p]["other"]
                        kept = p.detach().clone()
                        p.data.copy_(other)
                        other.copy_(kept)
                group["train_mode"] = training

    def train(self):
        self._mode(True)

    def eval(self):
        self._mode(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["train_mode"]:
                raise Exception("Optimizer was not in train mode when step is called")
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["other"] = p.detach().clone()
                p.add_(p.grad.to(p.dtype), alpha=-float(group["lr"]))
                state["other"].lerp_(p, 0.5)

class TensorRate(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": torch.tensor(lr), "weight_decay": weight_decay})
        self.held = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for group, held in zip(self.param_groups, self.held):
            if group["lr"] is not held:
                raise RuntimeError("lr was changed to a non-Tensor object")

class FailsLate(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no kernel for this device")

class NoClosure(torch.optim.SGD):
    def step(self):
        pass
'''


@pytest.fixture
def fake(monkeypatch, tmp_path_factory) -> None:
    """The module fake_optimizers, which can be imported."""
    folder = tmp_path_factory.mktemp("optimizers")
    (folder / "fake_optimizers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)


def two_tensors() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"optim": "torch.optim:LBFGS"}, "torch.optim:LBFGS computes the loss again .* closure=None"),
        ({"optim": "torch.optim:Muon"}, "Muon can't be used: ValueError: .*2D.*vectors too .norms, biases."),
        ({"optim": "muon"}, r"muon \(torch.optim:Muon\) can't be used: ValueError"),
        (
            {"optim": "adamw_8bit"},
            "adamw_8bit is bitsandbytes.optim:AdamW8bit, and the package bitsandbytes is not inst",
        ),
        (
            {"optim": "schedule_free_adamw"},
            "is schedulefree:AdamWScheduleFree, and the package schedulefree is not inst",
        ),
        ({"optim": "fake_optimizers:NoClosure"}, "NoClosure has a step without closure"),
        (
            {"optim": "torch.optim:Adagrad", "optim_args": {"lr_decya": 1}},
            "optim_args: torch.optim:Adagrad does not take lr_decya; did you mean lr_decay",
        ),
        (
            {"optim": "torch.optim:Adam", "optim_args": {"amsgrad": True, "betas": (2.0, 0.9)}},
            r"optim, optim_args: torch.optim:Adam with amsgrad=True, betas=\(2.0, 0.9\) can't be used: ValueError: ",
        ),
        (
            {"optim": "adafactor", "optim_args": {"relative_step": True}},
            "adafactor with relative_step=True can't be used",
        ),
        ({"optim": "torch.optim:RMSprop", "adam_beta2": 0.9}, "adam_beta2: has no effect: .*RMSprop takes no betas"),
        ({"optim": "torch.optim:Nothing"}, "module 'torch.optim' has no 'Nothing'"),
    ],
    ids=lambda value: value["optim"] if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_refused_by_name_from_the_class_alone(fake, fields, match):
    with pytest.raises(ConfigError, match=match):
        optimizer_factory(RunConfig(**fields))


def test_one_that_fails_at_its_first_step_is_refused_before_the_model(fake):
    with pytest.raises(ConfigError, match="fake_optimizers:FailsLate can't be used: RuntimeError: no kernel for this"):
        try_optimizer(RunConfig(optim="fake_optimizers:FailsLate"), CPU)
    for fine in ("torch.optim:Adam", "fake_optimizers:Averaging", "fake_optimizers:TensorRate", "adamw", "rmsprop"):
        try_optimizer(RunConfig(optim=fine), CPU)


def test_muon_takes_the_matrices_of_an_adapter(config, tmp_path):
    muon = dataclasses.replace(config, optim="torch.optim:Muon", use_peft=True, max_steps=2, eval_dataset=None)
    assert train(muon).steps == 2


# ---------------------------------------------------------------- the same as elsewhere


def steps(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(5):
        model(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_adafactor_is_transformers_and_torchs_has_its_own_name():
    from transformers.optimization import Adafactor

    config = RunConfig(optim="adafactor", learning_rate=1e-3, weight_decay=0.1)
    ours, theirs, torchs = two_tensors(), two_tensors(), two_tensors()
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    expected = steps(Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False), theirs)
    found = steps(make_optimizer(ours, config), ours)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    other = make_optimizer(torchs, dataclasses.replace(config, optim="torch_adafactor"))
    assert type(other) is torch.optim.Adafactor
    assert not torch.allclose(steps(other, torchs)[0], expected[0])
    assert states_of("torch_adafactor") == states_of("adafactor") < states_of("adamw_8bit") < states_of("adamw") == 2


def test_a_name_of_transformers_has_adams_fields(monkeypatch):
    module = ModuleType("bitsandbytes.optim")
    module.AdEMAMix = type("AdEMAMix", (torch.optim.SGD,), {"__init__": three_betas})
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    optimizer = make_optimizer(two_tensors(), RunConfig(optim="ademamix", adam_beta2=0.95, adam_epsilon=1e-6))
    assert optimizer.given == ((0.9, 0.95, 0.9999), 1e-6)
    by_path = make_optimizer(two_tensors(), RunConfig(optim="bitsandbytes.optim:AdEMAMix"))
    assert by_path.given == ((0.9, 0.99, 0.9999), 1e-8)


def three_betas(self: Any, params: Any, lr: float = 0.1, betas: Any = (0.9, 0.99, 0.9999), eps: float = 1e-8) -> None:
    torch.optim.SGD.__init__(self, params, lr=lr)
    self.given = (betas, eps)


# ---------------------------------------------------------------- rates and modes


def test_a_rate_that_is_a_tensor_is_filled(fake):
    config = RunConfig(optim="fake_optimizers:TensorRate", learning_rate=0.5, warmup_steps=2)
    optimizer = make_optimizer(two_tensors(), config)
    schedule = Schedule(optimizer, config, 4)
    assert [schedule.set(position) for position in (0, 1, 2, 3)] == [0.0, 0.25, 0.5, 0.25]
    optimizer.step()
    set_rate(optimizer, [0.125, 0.125])
    assert [group["lr"].item() for group in optimizer.param_groups] == [0.125, 0.125]


def test_evaluation_and_saving_see_the_other_weights(fake):
    config = RunConfig(optim="fake_optimizers:Averaging", learning_rate=0.1)
    model = two_tensors()
    optimizer = Accelerator(cpu=True).prepare(make_optimizer(model, config))
    optimizer.train()
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    trained = model.weight.detach().clone()
    with averaged(optimizer):
        assert not torch.equal(model.weight, trained)
    assert torch.equal(model.weight, trained)


@pytest.mark.parametrize("optim", ["fake_optimizers:Averaging", "adafactor"])
def test_a_resumed_run_is_the_uninterrupted_one(fake, config, tmp_path, optim):
    rate = 1e-2 if optim == "adafactor" else 0.1
    whole = dataclasses.replace(
        config, optim=optim, learning_rate=rate, max_steps=4, save_steps=2, save_total_limit=None
    )
    whole = dataclasses.replace(whole, output_dir=str(tmp_path / "whole"), lr_scheduler_type="constant")
    first = train(whole)
    going_on = dataclasses.replace(
        whole, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(first.folder / "checkpoints/step-2")
    )
    second = train(going_on)
    ours, theirs = (load_file(run.folder / "model/model.safetensors") for run in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [RunFolder.open(run.folder).read("metrics.jsonl") for run in (first, second)]
    losses = [[line["loss"] for line in each if line.get("kind") == "train"][-2:] for each in lines]
    assert losses[0] == losses[1]
    evaluated = [[line for line in each if line.get("kind") == "eval"][-1]["eval_loss"] for each in lines]
    assert evaluated[0] == evaluated[1]
