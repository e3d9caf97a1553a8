"""What the host measures of a run: how experts are used, which weights gradients coverage, how large updates are."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ft_host
from ft_host.batch import Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.models import load_policy
from ft_host.models.experts import ExpertLoad, load_metrics, routing_of, times_shared
from ft_host.monitor.gradients import (
    EVERY,
    PATIENCE,
    GradientCoverage,
    family,
    model_facts,
    snapshot_weights,
    update_ratio,
    where_not_finite,
)
from ft_host.rundir.folder import RunFolder
from ft_host.testing import models
from ft_host.testing.invariants import beside
from ft_host.testing.processes import train_apart
from ft_host.testing.ranks import as_ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


def policy_of(folder: Any, **fields: Any) -> Any:
    return load_policy(RunConfig(model=str(folder), **fields), models.tiny_tokenizer(), CPU)


def some_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(rows: list[list[int]]) -> Batch:
    segments = [Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(rows)]
    return flat_batch(segments, num_rows=len(rows))


# ---------------------------------------------------------------- experts


def test_loads_by_hand():
    logits = torch.tensor([[3.0, 0, 0, 0], [3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 9]])
    weight = torch.tensor([100, 50, 50, 0])  # the last is padding
    load = ExpertLoad()
    load.add(routing_of((logits, torch.zeros(4, 4)), weight, top_k=1))
    assert load.sums.counts[0].tolist() == [150, 50, 0, 0]
    told = load_metrics([load.local(), None])
    assert "moe/dead_experts" not in told, "50 tokens an expert: none at all may be chance"
    load.add(routing_of((logits, torch.zeros(4, 4)), 2 * weight, top_k=1))
    told = load_metrics([load.local(), None])
    assert told["moe/max_violation"] == 3, "in the second layer all go to one expert, four times the mean"
    assert told["moe/dead_experts"] == (2 / 4 + 3 / 4) / 2
    high = math.exp(3) / (math.exp(3) + 3)
    entropy = -(high * math.log(high) + (1 - high) * math.log((1 - high) / 3)) / math.log(4)
    assert told["moe/router_entropy"] == pytest.approx((entropy + 1) / 2)
    assert load_metrics([None]) == {}


def test_a_shared_token_counts_for_each_sequence_that_it_is_in():
    root = Segment(input_ids=[1, 2, 3], labels=[1, 2, 3], row=0)
    children = [Segment(input_ids=[4, 5], labels=[4, 5], row=row, parent=0) for row in range(3)]
    alone = Segment(input_ids=[6], labels=[6], row=3)
    assert times_shared(flat_batch([root, *children, alone], num_rows=4)).tolist() == [3, 3, 3, 1, 1, 1, 1, 1, 1, 1]
    assert times_shared(flat_batch([], num_rows=0)).tolist() == [0]


@pytest.mark.parametrize("name", ["moe", "gpt_oss"])
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_loads_are_the_same_however_a_step_is_cut_and_laid_out(saved, name, coefficient):
    rows = [some_tokens(length, length) for length in (9, 17, 2, 12)]
    prompt, ends = rows[1][:8], [rows[1][8:], some_tokens(5, 99)]
    shared = flat_batch(
        [Segment(input_ids=prompt, labels=prompt, row=0)]
        + [Segment(input_ids=end, labels=end, row=row, parent=0) for row, end in enumerate(ends)],
        num_rows=2,
    )
    rows[1:2] = [prompt + end for end in ends]
    found = []
    for kernel, cuts in (
        ("sdpa", [batch_of(rows)]),
        ("none", [batch_of(rows)]),
        ("sdpa", [batch_of(rows[:1]), shared, batch_of(rows[3:]), batch_of([])]),
        ("none", [batch_of(rows[:1]), shared, batch_of(rows[3:]), batch_of([])]),
    ):
        policy, load = policy_of(saved(name), router_aux_loss_coef=coefficient, segment_attention=kernel), ExpertLoad()
        for batch in cuts:
            policy(batch)
            load.add(policy.routing)
        found.append(load.sums)
    chosen = policy.causal_lm.num_experts_per_tok
    assert found[0].counts.sum(1).tolist() == [chosen * sum(map(len, rows))] * 2
    for other in found[1:]:
        assert torch.equal(other.counts, found[0].counts) and other.tokens == found[0].tokens
        assert float(other.entropy) == pytest.approx(float(found[0].entropy), rel=1e-5)


def test_only_training_counts_experts(saved):
    policy = policy_of(saved("moe"), router_aux_loss_coef=0.0)
    with torch.no_grad():
        policy(batch_of([[3, 4, 5]]))
    policy.eval()
    policy(batch_of([[3, 4, 5]]))
    assert policy.routing is None
    assert not policy_of(saved("llama")).counts_routing


# ---------------------------------------------------------------- updates


def run_of(policy: nn.Module, step: int = EVERY - 1, rollouts: Any = None, gather: Any = None) -> SimpleNamespace:
    facts: dict[str, Any] = {}
    return SimpleNamespace(
        policy=policy,
        step=step,
        device=CPU,
        models={},
        rollouts=rollouts,
        gather=gather or (lambda value: [value]),
        facts=facts,
        record_facts=facts.update,
    )


def test_the_update_ratio_by_hand():
    policy = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1))
    with torch.no_grad():
        policy[0].weight.fill_(1.0)
        policy[1].weight.fill_(2.0)
    run = run_of(policy)
    before = snapshot_weights(run)
    with torch.no_grad():
        policy[0].weight[0, 0] += 0.3
        policy[1].weight[0, 1] -= 0.4
        policy[1].bias += 5  # vectors aren't looked at
    assert update_ratio(run, before) == pytest.approx(0.5 / math.sqrt(6 + 8))
    assert snapshot_weights(run_of(policy, step=EVERY)) is None
    assert update_ratio(run, [torch.zeros_like(each) for each in before]) is None


def test_a_large_model_is_sampled():
    policy = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(20)))
    kept = snapshot_weights(run_of(policy))
    assert sum(each.numel() for each in kept) <= 2**20 and len(kept) == 10


# ---------------------------------------------------------------- what gradients reach


def test_families():
    lora = "model.layers.0.q_proj.lora_A.default.weight"
    assert family(lora) == family(lora.replace("lora_A", "lora_B")) != family(lora.replace("q_proj", "k_proj"))
    assert family("layers.1.mlp.experts.3.up.weight") == family("layers.1.mlp.experts.12.up.weight")


def reached(policy: Any, weight: Any = torch.ones_like) -> dict[str, Any]:
    def loss(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
        return -weight(values["logp"].detach()) * values["logp"]

    run = run_of(policy)
    coverage = GradientCoverage(run)
    policy(batch_of([some_tokens(20, 1)]), loss=loss)["loss"].backward()
    coverage.update(run, 1.0)
    return run.facts


@pytest.mark.parametrize("fields", [{}, {"use_peft": True}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["qwen", "moe", "llama"])
def test_a_healthy_model_is_reached_everywhere(saved, name, fields):
    """With LoRA every A is without gradient at first, since B is 0."""
    assert reached(policy_of(saved(name), **fields)) == {"probe/zero_grad_parameters": 0.0}


def test_what_is_cut_off_is_found(saved):
    policy = policy_of(saved("llama"))
    policy.causal_lm.model.layers[0].register_forward_hook(lambda module, args, out: out.detach())
    facts = reached(policy)
    own = sum(p.numel() for p in policy.causal_lm.model.layers[0].parameters())
    own += policy.causal_lm.model.embed_tokens.weight.numel()
    assert facts["probe/zero_grad_parameters"] == pytest.approx(own / sum(p.numel() for p in policy.parameters()))
    assert facts["probe/zero_grad_example"] == "model.model.embed_tokens.weight"


def test_frozen_weights_count_as_not_trained(saved):
    policy = policy_of(saved("llama"))
    policy.causal_lm.model.requires_grad_(False)
    head = policy.causal_lm.lm_head.weight.numel()
    facts = model_facts(run_of(policy))
    assert facts["probe/trainable"] == head and 0 < facts["probe/trainable_share"] < 0.2
    assert facts["probe/packing_difference"] < 1e-4 and facts["probe/packing_leak"] == 0
    assert reached(policy) == {"probe/zero_grad_parameters": 0.0}


def test_an_adapter_that_is_half_frozen_is_told_apart_from_the_frozen_model_below_it(saved):
    policy = policy_of(saved("llama"), use_peft=True)
    assert model_facts(run_of(policy))["probe/adapter_share"] == 1
    adapter = {name: parameter for name, parameter in policy.named_parameters() if ".lora_" in name}
    for name, parameter in adapter.items():
        parameter.requires_grad_("lora_A" in name)
    share = sum(p.numel() for name, p in adapter.items() if "lora_A" in name) / sum(p.numel() for p in adapter.values())
    assert model_facts(run_of(policy))["probe/adapter_share"] == pytest.approx(share)
    assert "probe/adapter_share" not in model_facts(run_of(policy_of(saved("llama"))))


def test_a_step_without_a_signal_says_nothing_and_rollouts_get_more_steps():
    policy = nn.Linear(2, 1)
    run = run_of(policy, rollouts=object())
    coverage = GradientCoverage(run)
    coverage.update(run, 0.0)
    policy.weight.grad = torch.ones_like(policy.weight)
    for _ in range(PATIENCE - 1):
        coverage.update(run, 1.0)
        assert not run.facts, "the bias may yet be reached"
    coverage.update(run, 1.0)
    assert run.facts == {"probe/zero_grad_parameters": 1 / 3, "probe/zero_grad_example": "bias"}
    run.facts.clear()
    coverage.update(run, 1.0)
    assert not run.facts, "it tells once"


def test_a_gradient_on_another_rank_counts():
    def work(rank: int, gather: Any) -> dict[str, Any]:
        policy = nn.Linear(2, 1, bias=rank < 2)
        parameter = policy.bias if rank else policy.weight
        parameter.grad = torch.ones_like(parameter)
        run = run_of(policy, gather=gather)
        GradientCoverage(run).update(run, 1.0)
        return run.facts

    assert as_ranks(2, work) == [{"probe/zero_grad_parameters": 0.0}] * 2


# ---------------------------------------------------------------- what isn't finite


class Chain(nn.Module):
    """Three numbers that are multiplied: first to last, as parameters are listed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Parameter(torch.tensor(float(size))) for size in (2, 3, 5))


def test_the_broken_weight_is_named_and_not_the_first_whose_gradient_is_broken_by_it():
    chain = Chain()
    chain.last.data.fill_(math.nan)
    (chain.first * chain.second * chain.last).backward()
    assert torch.isnan(chain.first.grad) and not torch.isnan(chain.last.grad)
    assert where_not_finite(run_of(chain)) == ("weight", "last", 1.0)


def test_of_broken_gradients_the_one_nearest_to_the_loss_is_named():
    chain = Chain()
    (torch.sqrt(chain.first * 0 * chain.second) * chain.last).backward()  # the slope of a root at 0
    assert where_not_finite(run_of(chain)) == ("gradient", "second", 2 / 3)


def test_where_all_gradients_are_broken_none_of_them_is_to_blame():
    chain = Chain()
    (chain.first * chain.second * chain.last * math.nan).backward()
    assert where_not_finite(run_of(chain)) == ("gradient", None, 1.0)


# ---------------------------------------------------------------- whole runs


def told(folder: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run = RunFolder.open(folder)
    return run.manifest["facts"], [line for line in run.read("metrics.jsonl") if line["kind"] == "train"]


def test_two_shards_say_what_one_process_says(config, saved):
    small = beside(config, "one", model=str(saved("moe")), max_steps=EVERY, eval_dataset=None, learning_rate=1e-3)
    two = beside(small, "../two", per_device_train_batch_size=4, distributed_strategy="fsdp2", use_cpu=True)
    ft_host.train(small)
    train_apart(two, world_size=2)
    (facts, lines), (other_facts, other_lines) = told(small.output_dir), told(two.output_dir)
    for name in ("probe/zero_grad_parameters", "probe/trainable", "probe/trainable_share"):
        assert facts[name] == other_facts[name]
    assert [("update_ratio" in line) for line in lines] == [False] * (EVERY - 1) + [True]
    assert lines[-1]["update_ratio"] == pytest.approx(other_lines[-1]["update_ratio"], rel=1e-3)
    for line, other in zip(lines, other_lines, strict=True):
        for name in ("moe/max_violation", "moe/router_entropy", "moe/aux_share"):
            assert line[name] == pytest.approx(other[name], rel=1e-2), name
