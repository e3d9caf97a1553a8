"""benchmarks/gpu.py without a GPU: its counts, what it asks of whom, how it ends in time, and a rehearsal of it all."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("gpu", "turns", "tracing", "watch", "gpu_parts.cards", "gpu_parts.jobs", "gpu_parts.models", "gpu_parts.pages")
NAMES += ("gpu_parts.layers",)
INSTALLED = {"trl": "1.16.0", "vllm": "0.32.0", "liger-kernel": "0.7.0"}


@pytest.fixture(scope="module")
def bench():
    """Modules of the benchmark, by the end of their names; they are gone again afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name.rpartition(".")[2]: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in str(vars(sys.modules[name]).get("__file__")):
                del sys.modules[name]


def place_of(bench, memory=139.0, packages=INSTALLED, attention="flash_attention_2", device="cuda"):
    return bench.jobs.Place(
        device=device, memory_gib=memory, packages=packages, attention=attention, attention_why="it is said"
    )


def jobs_of(bench, **place):
    return {job.name: job for job in bench.jobs.jobs(bench.jobs.ON_A_CARD, place_of(bench, **place))}


# ---------------------------------------------------------------- counts


def test_operations_by_hand(bench):
    model = bench.cards.Model(hidden=2, layers=1, wide=3, heads=1, groups=1, head_dim=2, vocabulary=5, tied=True)
    assert (model.in_layers, model.parameters) == (16 + 18, 16 + 18 + 10)
    # of ten tokens, four through the head: 2·34·10 + 2·10·4 = 760 in products; of rows of six, 2·2·6·10 in attention
    count = bench.cards.flops_of
    assert count(model, 10, 4, 6) == 3 * 760 + 3 * 240
    assert count(model, 10, 4, 6, frozen=True) == 2 * 760 + 3 * 240
    assert count(model, 10, 4, 6, reference=True) == 4 * 760 + 4 * 240


@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_that_torch_counts(bench, frozen):
    """The products of a whole pass of the unmodified model, every token through the head."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fields, tokens = bench.jobs.SMALL, 24
    network = Qwen3ForCausalLM(Qwen3Config(**fields)).requires_grad_(not frozen)
    states = network.get_input_embeddings()(torch.arange(tokens)[None]).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        network(inputs_embeds=states).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    model = bench.cards.Model.of(fields)
    assert counted == bench.cards.flops_of(model, tokens, tokens, 0, frozen=frozen)
    assert model.parameters == sum(p.numel() for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("name", "peak"),
    {
        "NVIDIA H200": 989.5,
        "NVIDIA H100 80GB HBM3": 989.5,
        "NVIDIA H100 PCIe": 756.5,
        "NVIDIA H100 NVL": 835.5,
        "NVIDIA GH200 480GB": 989.5,
        "NVIDIA B200": 2250.0,
        "NVIDIA GB200": 2500.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA A40": 149.7,
        "NVIDIA L4": 121.0,
        "NVIDIA L40": 181.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA GeForce RTX 4090": 165.2,
        "AMD Instinct MI300X": 1307.4,
        "NVIDIA GeForce RTX 3090 Ti": None,
        "NVIDIA A10G": None,
        "NVIDIA RTX A4000": None,
        "Tesla T4": None,
    }.items(),
)
def test_the_peak_of_a_card_is_its_own_or_not_said(bench, name, peak):
    found = bench.cards.peak_of(name)
    assert found is None if peak is None else found[0] == peak


def test_weights_are_cut_from_one_block_without_a_gap(bench):
    for count, at, size in ((5, 0, 8), (5, 6, 8), (40, 3, 8), (8, 7, 8)):
        read = [(at + index) % size for index in range(count)]
        pieces = bench.models.pieces(count, at, size)
        assert [index for _, piece in pieces for index in range(piece.start, piece.stop)] == read
        starts = [start for start, _ in pieces]
        assert starts == [sum(piece.stop - piece.start for _, piece in pieces[:n]) for n in range(len(pieces))]


def test_a_trace_tells_the_work_of_a_device_from_that_of_a_cpu(bench):
    from torch.autograd import DeviceType

    def event(name, device, on_device, on_cpu, count):
        return SimpleNamespace(
            key=name, device_type=device, self_device_time_total=on_device, self_cpu_time_total=on_cpu, count=count
        )

    # an operator is said to have taken its kernels' time too, which must not count twice
    of_cpu = [event("aten::mm", DeviceType.CPU, 3e5, 1e5, 7), event("flash_fwd", DeviceType.CPU, 0, 2e5, 1)]
    kernels = [event("gemm", DeviceType.CUDA, 3e5, 0, 7), event("triton_tem_fused_0", DeviceType.CUDA, 1e5, 0, 2)]
    seen = bench.tracing.summary_of(of_cpu + kernels, 0.5)
    assert (seen["busy"], seen["launches"], seen["attention"]) == (pytest.approx(0.8), 9, ["triton_tem_fused_0"])
    assert [kernel["name"] for kernel in seen["kernels"]] == ["gemm", "triton_tem_fused_0"]
    alone = bench.tracing.summary_of(of_cpu, 0.5)
    assert (alone["busy"], alone["launches"], alone["attention"]) == (None, None, ["flash_fwd"])
    assert alone["kernels"][1] == {"name": "aten::mm", "seconds": pytest.approx(0.1), "count": 7}


def test_where_a_step_goes_adds_up(bench):
    part = {"generation": 2.0, "rollout": 2.5}
    named = {"perf/generation_time": 2.0, "perf/reward_time": 0.5, "perf/train_time": 1.0}
    ours = bench.pages.parts_of([4.0, 4.0], [part | named] * 2)
    theirs = bench.pages.parts_of([4.0, 4.0], [part] * 2)
    assert sum(ours.values()) == sum(theirs.values()) == 4.0
    assert (ours["training"], ours["rest"], theirs["training"]) == (1.0, 0.5, 1.5)


# ---------------------------------------------------------------- what is asked of whom


def test_work_grows_with_the_card(bench):
    h200, a100, small = (jobs_of(bench, memory=memory) for memory in (139.0, 79.0, 23.6))
    assert not any(job.refused for job in h200.values())
    assert a100["sft-8b-full"].refused == "needs a card of about 90 GiB; this one has 79"
    assert not a100["sft-8b-lora"].refused and small["sft-8b-lora"].refused.startswith("needs a card of about 30 GiB")
    for name in h200:  # a step is the same work on each
        steps = {
            job.both["per_device_train_batch_size"] * job.both["gradient_accumulation_steps"]
            for job in (h200[name], a100[name], small[name])
        }
        assert len(steps) == 1
    sizes = [jobs["sft-0.6b-full"].both["per_device_train_batch_size"] for jobs in (h200, a100, small)]
    again = [jobs["sft-0.6b-full"].both["gradient_checkpointing"] for jobs in (h200, a100, small)]
    assert sizes == [32, 16, 8] and again == [False, False, True]
    assert all(jobs["sft-8b-lora"].both["gradient_checkpointing"] for jobs in (h200, a100))


def test_trl_gets_its_best_settings_where_they_are_installed(bench):
    best = {
        name: next(s for s in job.sides if s.label == "TRL, best")
        for name, job in jobs_of(bench).items()
        if not name.endswith("trace")
    }
    for side in best.values():
        assert side.fields["model_init_kwargs"]["attn_implementation"] == "flash_attention_2"
        assert side.fields["use_liger_kernel"]
    assert best["sft-0.6b-full"].fields["packing"] and best["sft-0.6b-full"].both == {"per_device_train_batch_size": 15}
    assert best["grpo-0.6b-vllm"].fields["vllm_mode"] == "colocate" and not best["grpo-0.6b-own"].fields.get("use_vllm")
    bare = jobs_of(bench, packages={"trl": "1.16.0"}, attention=None)
    fields, both = bare["sft-0.6b-full"].sides[1].fields, bare["sft-0.6b-full"].sides[1].both
    assert fields == {} and both == {"train_sampling_strategy": "group_by_length"}
    assert bare["grpo-0.6b-vllm"].refused == "vLLM isn't installed in this environment"


def test_ft_host_takes_what_it_is_asked(bench):
    """Every field has a name and a value that the method's config knows."""
    from ft_dpo.config import DPOConfig
    from ft_grpo.config import GRPOConfig
    from ft_sft.config import SFTConfig
    from ft_vllm.config import VLLMConfig

    classes = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
    for job in jobs_of(bench).values():
        ours = job.sides[0]
        given = {"reward": ["rewards.py:one"]} if job.method == "grpo" else {}
        config = classes[job.method](model="m", dataset="d", **given, **(job.both | ours.both | ours.fields))
        config.check()
        assert config.bf16 and not config.use_cpu
        if config.backend == "vllm":
            VLLMConfig(**config.backend_config).check()


# ---------------------------------------------------------------- in time


def test_what_pytest_said_in_one_line(bench):
    said = (
        "tests/test_a.py::test_one PASSED    [ 33%]\n"
        "tests/test_a.py::test_two[a b] FAILED  [ 66%]\n"
        "tests/test_a.py::test_three SKIPPED (no CUDA device) [100%]\n"
    )
    assert bench.gpu.tests_in(said + "== 1 failed ==\n", None) == {
        "said": "1 passed, 1 failed, 1 skipped; failed: tests/test_a.py::test_two[a b]",
        "failed": ["tests/test_a.py::test_two[a b]"],
    }
    ended = bench.gpu.tests_in(said + "tests/test_b.py::test_four[x] ", 90.0)["said"]
    assert "; ended after 90 s in tests/test_b.py::test_four[x];" in ended
    assert bench.gpu.tests_in(said, 90.0)["said"].split("; ")[1] == "ended after 90 s"
    assert bench.gpu.tests_in("ERROR: no module named trl\n", None)["said"] == "none ran; ERROR: no module named trl"


def test_a_command_that_takes_too_long_ends_with_its_children(bench, tmp_path):
    code = f"import subprocess, pathlib; child = subprocess.Popen(['sleep', '60']); print('begun', flush=True); \
pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); child.wait()"
    ended, said = bench.turns.run_limited([sys.executable, "-c", code], dict(os.environ), 2.0)
    assert ended is None and said == "begun\n"
    child, until = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while runs(child) and time.monotonic() < until:  # a killed process may take a moment to end
        time.sleep(0.02)
    assert not runs(child)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Rows:
    """In place of the material: jobs of which no process comes to be."""

    model = file = staticmethod(lambda job, steps=0: Path("nowhere"))
    facts = staticmethod(lambda job: {"context": 10.0, "supervised": 0.5})


def seen_of(steps, losses):
    """What a side saw of a card: a second a step, a hundred tokens each."""
    memory = {"now_mb": 1024.0, "peak_mb": 3072.0, "reserved_mb": 4096.0}
    lists = {"seconds": [1.0] * steps, "tokens": [100] * steps, "losses": losses, "parts": [{}] * steps}
    said = {
        "kernel": "flex",
        "decoding": None,
        "estimate": 2048.0,
        "notes": [],
        "trace": None,
        "first_step_s": 9.0,
        "peak_mb": 800.0,
    }
    return lists | said | {"device_before": memory, "device_peak": memory}


def done(bench, run, tmp_path, seconds=600.0, name="sft-0.6b-full"):
    """A job, as if on a card of 1000 TFLOP/s."""
    job = jobs_of(bench)[name]
    clock = bench.gpu.Clock(seconds)
    scale, place = bench.jobs.ON_A_CARD, place_of(bench)
    return bench.gpu.do(job, place, Rows(), scale, peak=1000.0, out=tmp_path, run=run, clock=clock)


def test_a_side_that_fails_or_has_no_time_left_is_said_and_the_next_one_goes_on(bench, tmp_path):
    asked = []

    def run(side, spec, limit, log):
        asked.append((side, spec["steps"], limit, "trace" in spec))
        said = 'Traceback (most recent call last):\n  File "a.py", line 1, in step\n    step()\n'
        log.write_text(said + "torch.OutOfMemoryError: CUDA out of memory\n\nSee the documentation\n")
        if side == "ours":
            raise bench.turns.SideFailed("ours failed (1):\nSee the documentation\n")
        return seen_of(spec["steps"], [2.0] * spec["steps"])

    result = done(bench, run, tmp_path)
    sides = result["sides"]
    assert sides["ft-host"]["failed"] == (
        "failed: torch.OutOfMemoryError: CUDA out of memory (see sft-0.6b-full-ft-host.log)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sft-0.6b-full-ft-host.log"]  # of those that failed
    assert [(each[0], each[1], each[3]) for each in asked] == [
        ("ours", 11, True),
        ("trl", 11, False),
        ("trl", 11, False),
    ]
    assert {limit for _, _, limit, _ in asked} == {150.0}  # a side that hangs leaves time for the others
    asked.clear()
    done(bench, run, tmp_path, seconds=90.0)
    assert all(80 < limit <= 90 for _, _, limit, _ in asked)
    asked.clear()
    late = done(bench, run, tmp_path, seconds=20.0)["sides"]
    assert not asked and late["TRL, best"]["failed"] == "not run: 20 s are left, and it may need 30"
    text = "\n".join(bench.pages.job_lines(result))
    assert "CUDA out of memory" in text and "| tokens/s | 100 | 100 |" in text


def test_a_side_that_ends_without_a_traceback_is_quoted(bench):
    said = bench.gpu.what_failed("trl was ended after 60 s:\nstep 1\n  step 2\n", "step 1\n  step 2\n")
    assert said == "trl was ended after 60 s"
    assert bench.gpu.what_failed("ours failed (-9):\n", "") == "ours failed (-9)"


def test_figures_of_a_card_and_losses_beside_ours(bench, tmp_path):
    def run(side, spec, limit, log):
        log.touch()
        others = side == "trl" and "model_init_kwargs" in spec["trl"]  # packed: other rows, nothing to compare
        seen = seen_of(spec["steps"], [9.0 if others else 2.0 if side == "ours" else 2.01] * spec["steps"])
        return seen | ({"tokens": [90] * spec["steps"]} if others else {})

    sides = {label: side["figures"] for label, side in done(bench, run, tmp_path)["sides"].items()}
    ours = sides["ft-host"]
    model = bench.cards.Model.of(bench.jobs.QWEN3_600M)
    assert ours["mfu"] == pytest.approx(bench.cards.flops_of(model, 100, 50, 10) / 1e15)
    assert [ours[f"{what}_gib"] for what in ("peak", "estimated", "over_start", "reserved")] == [3.0, 2.0, 2.0, 4.0]
    assert (ours["tokens_per_second"], ours["kernel"]) == (100.0, "flex")
    assert sides["TRL, padded"]["difference"] == pytest.approx(0.01 / 2.01)
    assert not {"difference", "other_work"} & set(sides["TRL, best"])


def test_other_work_is_said(bench):
    ours, theirs = seen_of(3, [2.0, 2.0, 2.0]), seen_of(3, [2.0, 2.0, 2.5])
    assert "losses differ by 2.0e-01" in bench.gpu.compared(ours, theirs)["other_work"]
    assert "tokens of each step" in bench.gpu.compared(ours, theirs | {"tokens": [1] * 3})["other_work"]


def test_a_device_that_is_not_there_is_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.gpu.main(["--device", "cpu"])
    assert "only with --tiny" in capsys.readouterr().err


# ---------------------------------------------------------------- layers alone


def test_ways_of_a_layer_compute_the_same(bench):
    """A model's own and lean ones, whose gradients are wanted as well."""
    layers, device = bench.layers, torch.device("cpu")
    for case in layers.cases(24, {"0.6B": bench.jobs.SMALL}, device):
        results = []
        for label in (layers.OWN, layers.EAGER):
            way = case.ways[label]()
            out = way.function(*case.inputs)
            slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
            results.append([out, *torch.autograd.grad(out, [*case.inputs, *way.weights], slope)])
        for one, other in zip(*results, strict=True):
            assert one.dtype == other.dtype, case.title
            assert torch.allclose(one.float(), other.float(), rtol=0.02, atol=0.02 * float(one.abs().max())), case.title


def test_a_way_that_fails_is_told_and_the_others_are_measured(bench):
    layers = bench.layers

    def broken():
        raise ValueError("no such kernel\nand more")

    def odd():
        raise layers.NotHere("it isn't installed")

    given = torch.ones(3, requires_grad=True)
    ways = {"own": lambda: layers.Way(torch.sin, []), "a": broken, "b": odd}
    case = layers.Case("sines", [given], ways, 24)
    found = {label: layers.measured(case, label, 1, torch.device("cpu")) for label in ways}
    assert found["own"]["ms"] > 0 and found["own"]["peak_mib"] is None
    assert found["own"]["gb_per_s"] == pytest.approx(24e-6 / found["own"]["ms"])
    assert found["a"] == {"failed": "ValueError: no such kernel"} and found["b"] == {"failed": "it isn't installed"}
    text = "\n".join(bench.pages.layer_lines({"tokens": 3, "cases": [{"title": "sines", "ways": found}]}))
    assert (
        "**sines**" in text and "| own | " in text and "a: ValueError: no such kernel. b: it isn't installed." in text
    )


def test_layers_that_fail_or_take_too_long_leave_the_rest(bench, tmp_path, monkeypatch):
    clock, scale = bench.gpu.Clock(600.0), bench.jobs.REHEARSAL
    monkeypatch.setattr(
        bench.gpu, "run_limited", lambda *given: (1, "Traceback (most recent call last):\nOSError: no\n")
    )
    found = bench.gpu.run_layers(scale, "cpu", tmp_path, tmp_path, clock)
    assert found == {"failed": "OSError: no (see layers.log)"}
    monkeypatch.setattr(bench.gpu, "run_limited", lambda *given: (None, ""))
    found = bench.gpu.run_layers(scale, "cpu", tmp_path, tmp_path, clock)
    assert found == {"failed": "ended after 90 s (see layers.log)"}
    assert bench.pages.layer_lines(found) == ["Not measured: ended after 90 s (see layers.log)."]


# ---------------------------------------------------------------- all of it


@pytest.mark.slow
def test_trl_takes_what_it_is_asked(bench):
    """Every field has a name that the trainer's config knows, with all that may be installed."""
    trl = pytest.importorskip("trl")
    classes = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}
    for job in jobs_of(bench).values():
        known = {field.name for field in dataclasses.fields(classes[job.method])}
        for side in job.sides[1:]:
            assert not set(job.both | side.both | side.fields) - known, job.name


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu(tmp_path):
    """Each job, each side: half a minute. The tests marked gpu are left out: they are all skipped here."""
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    command += [
        "--only",
        "layers",
        "sft",
        "dpo",
        "grpo",
        "--minutes",
        "60",
    ]  # a busy machine may take ten times as long
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    refused = {job["name"] for job in result["jobs"] if job["refused"]}
    assert refused == {"grpo-0.6b-vllm"} and len(result["jobs"]) == 8
    failed = {
        label: side["failed"] for job in result["jobs"] for label, side in job["sides"].items() if "failed" in side
    }
    assert not failed
    sides = {(job["name"], label): side["figures"] for job in result["jobs"] for label, side in job["sides"].items()}
    assert len(sides) == 14
    for figures in sides.values():
        assert figures["tokens_per_second"] > 0 and figures["kernel"] == "sdpa"
    assert sides["sft-0.6b-full", "TRL, padded"]["difference"] < 0.02  # the same rows, the same losses
    assert sides["dpo-0.6b", "TRL, best"]["difference"] < 0.02
    traced = {name for (name, _), figures in sides.items() if figures["trace"]}
    assert traced == {"sft-0.6b-full", "dpo-0.6b", "sft-8b-full", "grpo-0.6b-trace"}
    for name in traced:
        assert (tmp_path / f"trace-{name}.json.gz").stat().st_size > 10_000
    assert len(result["layers"]["cases"]) == 10
    for case in result["layers"]["cases"]:
        for label in ("own", "operation by operation"):
            assert case["ways"][label]["ms"] > 0
        assert case["ways"]["compiled"] == {"failed": "Triton doesn't compile for cpu"}
    page = (tmp_path / "gpu.md").read_text()
    assert "**8B: gated MLP, bfloat16 maths, weights in float32**" in page
    assert "A rehearsal" in page and "Where a step of ft-host goes: generation" in page
