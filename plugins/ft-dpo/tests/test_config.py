"""What a config refuses, by name, and before anything is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from ft_dpo.config import DPOConfig

from ft_host.api import ConfigError
from ft_host.testing import resolve, run_in

REFUSED = [
    ({"loss_type": "simgoid"}, "there is no 'simgoid'; did you mean sigmoid"),
    ({"loss_type": ["sigmoid", "kto"]}, "there is no 'kto'.*apo_zero"),
    ({"loss_type": []}, "loss_type: found an empty list"),
    ({"loss_type": ["sft", "sigmoid", "sft"]}, "sft is given twice"),
    ({"loss_type": "no_such_package:loss"}, "loss_type: .*no package no_such_package"),
    ({"loss_type": "no/such/file.py:loss"}, "loss_type: .*no such file"),
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "found 1 for 2 losses .sigmoid, sft."),
    ({"label_smoothing": 0.1}, "label_smoothing: has no effect on sigmoid.*robust is sigmoid for"),
    ({"label_smoothing": 0.1, "loss_type": ["ipo", "sft"]}, "label_smoothing: has no effect on ipo, sft"),
    ({"loss_type": "exo_pair"}, "exo_pair needs it above 0"),
    ({"loss_type": "robust", "label_smoothing": 0.5}, "must be below 0.5"),
    ({"f_divergence_type": "forward_kl", "loss_type": ["sigmoid", "bco_pair"]}, "no meaning for bco_pair"),
    ({"f_divergence_type": "js_divergence", "loss_type": "sft"}, "no meaning for sft"),
    ({"f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef: has no effect on"),
    ({"f_alpha_divergence_coef": 0.3}, "has no effect on reverse_kl"),
    ({"discopop_tau": 0.1}, "discopop_tau: has no effect on sigmoid"),
    ({"ld_alpha": 0.5, "loss_type": "sft"}, "ld_alpha: has no effect on sft"),
    ({"use_weighting": True, "loss_type": ["aot", "aot_unpaired"]}, "use_weighting: .* aot and aot_unpaired match"),
    ({"reference_free": True, "ref_model": "other"}, "ref_model: has no effect with reference_free"),
    ({"reference_free": True, "sync_ref_model": True}, "sync_ref_model: has no effect with reference_free"),
    ({"reference_free": True, "precompute_ref_log_probs": True}, "precompute_ref_log_probs: has no effect with"),
    ({"ref_model_sync_steps": 8}, "ref_model_sync_steps: has no effect without sync_ref_model"),
    ({"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha: has no effect without sync_ref_model"),
    ({"sync_ref_model": True, "use_peft": True}, "sync_ref_model: with use_peft the reference is"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model: the reference changes"),
    ({"precompute_ref_log_probs": True, "dataset_streaming": True, "max_steps": 3}, "the rows of a stream"),
    ({"model": "some/model", "ref_model": "some/model"}, "ref_model: is the model that is trained"),
    ({"ref_model": "./not/there"}, "ref_model: ./not/there: no such file or folder"),
    ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped cuts rows anywhere"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        resolve(DPOConfig, None, {"model": "a/model", "dataset": "a/set", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_type": ["sigmoid", "robust"], "label_smoothing": 0.1},
        {"loss_type": ["sigmoid", "sft"], "f_divergence_type": "js_divergence"},
        {"loss_type": ["hinge", "discopop"], "discopop_tau": 0.1},
        {"loss_type": "aot", "reference_free": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 8, "ref_model_mixup_alpha": 1.0},
        {"use_peft": True, "precompute_ref_log_probs": True},
        {"loss_type": "json:dumps", "label_smoothing": 0.1, "discopop_tau": 1.0, "f_divergence_type": "forward_kl"},
        {"packing": True},
    ],
)
def test_accepted(fields):
    """What some loss of several reads, or a function of the user's own may read, has an effect."""
    resolve(DPOConfig, None, {"model": "a/model", "dataset": "a/set", **fields})


@pytest.mark.parametrize(
    ("fields", "ahead"),
    [
        ({}, True),
        ({"use_peft": True}, False),
        ({"use_peft": True, "ref_model": "another"}, True),
        ({"sync_ref_model": True}, False),
        ({"dataset_streaming": True, "max_steps": 2}, False),
        ({"precompute_ref_log_probs": False}, False),
        ({"use_peft": True, "precompute_ref_log_probs": True}, True),
    ],
)
def test_what_is_made_ahead(fields, ahead):
    assert DPOConfig(**fields).reference_ahead is ahead


@pytest.mark.parametrize("written", ["hinge", "[hinge]"])
def test_one_loss_or_a_list(written, tmp_path):
    """By flag, in a file and in Python, one loss needs no brackets."""
    given = ["--model", "a/model", "--dataset", "a/set"]
    assert resolve(DPOConfig, None, [*given, "--loss-type", written]).config.loss_type == ["hinge"]
    file = tmp_path / "run.yaml"
    file.write_text(f"model: a/model\ndataset: a/set\nloss_type: {written}\n")
    assert resolve(DPOConfig, file).config.loss_type == ["hinge"]
    assert DPOConfig(loss_type="hinge").loss_type == ["hinge"]
    config = DPOConfig()
    config.loss_type = "hinge"
    config.check()
    assert config.loss_type == ["hinge"]
    several = resolve(DPOConfig, None, [*given, "--loss-type", "sigmoid", "sft", "--loss-weights", "0.5", "2"]).config
    assert (several.loss_type, several.loss_weights) == (["sigmoid", "sft"], [0.5, 2.0])


def test_the_config_loads_no_torch():
    program = (
        "import sys; from ft_dpo.config import DPOConfig; DPOConfig(loss_type='hinge', model='a', dataset='b').check();"
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---------------------------------------------------------------- a loss of one's own

OWN = """
import torch

def squares(pairs, config):
    return (pairs.margins - 1 / config.beta) ** 2

def total(pairs, config):
    return pairs.margins.sum()

def alone(pairs):
    return pairs.margins

size = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "my_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    return str(folder / "my_losses.py")


def test_own_loss(make, rows, own):
    """From a module or a file. At the first step margins are 0, so that every pair has (1 / beta)^2 = 100."""
    from ft_host.testing import assert_same, lines

    config = make(rows, loss_type=["my_losses:squares"], max_steps=2)
    by_module = lines(run_in(config, "module"))
    assert by_module[0]["loss"] == pytest.approx(100.0, rel=1e-5)
    by_file = lines(run_in(dataclasses.replace(config, loss_type=f"{own}:squares"), "file"))
    assert_same(by_module, by_file, rel=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_losses:sqares", "'sqares' is not defined.*squares"),
        ("my_losses:size", "'size' is not a function"),
        ("my_losses:alone", "can't be called with .pairs, config."),
        ("my_losses:total", "gave a tensor of shape .., expected one value for each of the 4 pairs"),
    ],
)
def test_own_loss_refused(make, rows, own, name, said):
    from ft_host.api import FtHostError

    with pytest.raises(FtHostError, match=said):
        run_in(make(rows, loss_type=name), "refused")


@pytest.mark.parametrize(
    ("name", "said"), [("kto_pair", "ft-host train kto"), ("dpo", "sigmoid"), ("aot_pair", "aot_un")]
)
def test_losses_of_other_tools_have_an_answer_and_no_guess(name, said):
    with pytest.raises(ConfigError, match=f"there is no '{name}'; .*{said}") as raised:
        DPOConfig(model="org/m", dataset="org/d", loss_type=[name]).check()
    assert "did you mean" not in str(raised.value)
