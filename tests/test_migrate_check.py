"""`ft-host migrate --check`: two steps of TRL's and of ours, and what is said of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from ft_host import registry
from ft_host.errors import UsageError
from ft_host.migrate import read_trl, translate
from ft_host.testing import forget_accelerate, save_tiny, tiny_llama
from ft_host.testing.beside_trl import FIRST, LATER, beside_each_other, compared, table
from ft_host.testing.moved import small

RUN = "trl kto --model_name_or_path org/m --dataset_name org/d --beta 0.3 --learning_rate 1e-3 --warmup_ratio 0.5"


def spec_of(line: str) -> dict:
    found = read_trl([line])
    made = translate(found, registry.config_class(found.method))
    given = {name: value for name, (value, _) in found.values.items()}
    return {"method": found.method, "values": made.values, "given": given}


def line(step: int, loss: float, norm: float) -> dict:
    return {"step": step, "loss": loss, "grad_norm": norm}


def test_how_far_apart_is_the_same():
    ours, theirs = [line(1, 2.0, 1.0), line(2, 1.0, 1.0)], [line(1, 2.0, 1.0), line(2, 1.0, 1.0)]
    assert table(ours, theirs)[1]
    assert not table([line(1, 2 * (1 + 2 * FIRST), 1.0), ours[1]], theirs)[1]
    assert table([ours[0], line(2, 1 + LATER / 2, 1.0)], theirs)[1]
    assert not table([ours[0], line(2, 1.0, 1 + 2 * LATER)], theirs)[1]
    assert not table(ours[:1], theirs)[1]
    assert table([line(1, 3e-8, 1.0)], [line(1, -4e-8, 1.0)])[1]  # round-off around 0
    assert table(ours, theirs)[0].splitlines()[1].split() == ["1", "loss", "2", "2", "0.0e+00"]


def test_a_field_that_was_moved_wrongly_shows(tmp_path):
    """The same run is the same; with another beta here, or a learning rate that was lost, it isn't."""
    spec = spec_of(RUN)
    (tmp_path / "right").mkdir()
    text, same = table(*compared(**spec, folder=tmp_path / "right"))
    forget_accelerate()
    assert same, text
    (tmp_path / "wrong").mkdir()
    wrong = spec | {"values": spec["values"] | {"beta": 0.31}}
    ours, theirs = compared(**wrong, folder=tmp_path / "wrong")
    forget_accelerate()
    assert not table(ours, theirs)[1] and ours[0]["grad_norm"] / theirs[0]["grad_norm"] == pytest.approx(31 / 30, 0.02)


def test_what_trl_cannot_train_is_its_answer(tmp_path):
    spec = spec_of(RUN)
    with pytest.raises(UsageError, match=r"TRL can't train it: \w+Error: "):
        compared("kto", spec["values"], spec["given"] | {"loss_type": "no_such_loss"}, tmp_path)
    forget_accelerate()
    with pytest.raises(UsageError, match="has no ppo; with it are sft, dpo"):
        compared("ppo", {}, {}, tmp_path)


def test_a_model_that_is_a_folder_is_the_one_that_is_trained(tmp_path):
    mine = save_tiny(tmp_path / "mine", tiny_llama(seed=9))
    config = beside_each_other("sft", {"model": str(mine), "lora_r": 4}, tmp_path)
    assert config.model == str(mine) and config.max_steps == 2 and not config.use_peft
    config = beside_each_other("sft", {"model": str(mine), "use_peft": True, "lora_r": 4, "lora_alpha": 3}, tmp_path)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config.model == str(tmp_path / "adapter") and settings["base_model_name_or_path"] == str(mine)
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 3, 0.0)


def test_what_is_made_small_is_told(tmp_path):
    values = {"model": "org/m", "dataset": "org/d", "per_device_train_batch_size": 64, "beta": 0.2, "bf16": True}
    config, told = small(registry.config_class("dpo"), values, tmp_path)
    assert told == ["bf16", "dataset", "model", "per_device_train_batch_size"]
    assert config.beta == 0.2 and config.per_device_train_batch_size == 4


@pytest.mark.nightly
def test_the_command(tmp_path):
    command = [sys.executable, "-m", "ft_host", "migrate", "--check", "--from", "trl", *shlex.split(RUN)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Made from trl kto") and "the same to float32's rounding" in done.stderr
