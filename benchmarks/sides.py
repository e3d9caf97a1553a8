"""One side of a comparison, in a process of its own: `python sides.py SIDE SPEC.json` trains and writes SPEC's `out`.

Both are called as a user calls them, with a model's folder and a file of rows. Both are watched from outside in the
same way: the clock and the process' memory (and the device's) are read when training begins and at the end of each
optimizer step.

SPEC: `method` (a key of PLACES), `model`, `rows`, `steps`, `work` (an empty folder), `cache` (a folder that may be
full), `both` (fields that ft-host and TRL call the same, the CPU's float32 if they say nothing else), `ours` and `trl`
(fields of one of them); and where they apply `teacher` (a folder, of methods that learn from one), `lora` (the rank of
an adapter), `device` (a type of torch's other than cpu) and `trace` (a file, for a step after `steps`).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rewards
from tracing import Trace
from watch import Watch, children
from work import BATCH, MAX_LENGTH


@dataclass(frozen=True)
class Place:
    """Where a method is to be found: its classes, without Config or Trainer, and the modules that they are in."""

    name: str
    package: str
    method: str = "method"
    trl: str = "trl"


PLACES = {
    "sft": Place("SFT", "ft_sft"),
    "dpo": Place("DPO", "ft_dpo"),
    "kto": Place("KTO", "ft_kto"),
    "reward": Place("Reward", "ft_reward"),
    "grpo": Place("GRPO", "ft_grpo"),
    "rloo": Place("RLOO", "ft_rloo"),
    "distill": Place("Distillation", "ft_distill", "distill"),
    "gkd": Place("GKD", "ft_distill", "gkd", "trl.experimental.gkd"),
    "sdft": Place("SDFT", "ft_sdft", trl="trl.experimental.sdft"),
    "gold": Place("GOLD", "ft_gold", trl="trl.experimental.gold"),
}
OURS = {"distill": "DistillConfig"}  # a config that is called otherwise here
SAMPLING = ("grpo", "rloo", "distill", "sdft")  # what they train on they sample
PAID = ("grpo", "rloo")  # for which they are paid as `rewards` says
REWARD = rewards.every_fourth
# What a step with a rollout logs of where its seconds went.
TIMES = ("perf/generation_time", "perf/reward_time", "perf/weight_sync_time", "perf/annotation_time", "perf/train_time")


def same(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields that have one name on both sides."""
    of_rows = {"max_length": MAX_LENGTH, "per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential"}
    return {
        "output_dir": spec["work"] + "/run",
        "max_steps": spec["steps"] + ("trace" in spec),
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        **({} if spec["method"] in SAMPLING else of_rows),
        **spec["both"],
    }


def watch_of(spec: dict[str, Any]) -> Watch:
    return Watch(spec.get("device", "cpu"), Trace(spec["trace"], spec["steps"]) if "trace" in spec else None)


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    method = spec["method"]
    place = PLACES[method]
    importlib.import_module(f"{place.package}.{place.method}")
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import ft_host
    from ft_host.run import Run
    from ft_host.training import build, launch

    config = vars(importlib.import_module(f"{place.package}.config"))[OURS.get(method, place.name + "Config")]
    imports = time.perf_counter() - started
    fit, precompute, log = launch.fit, build.precompute, Run.log

    def watched_fit(*args, **kwargs):
        watch.begin()
        return fit(*args, **kwargs)

    def watched_ahead(*args, **kwargs):
        before = time.perf_counter()
        precompute(*args, **kwargs)
        watch.ahead = time.perf_counter() - before

    def watched_log(run, entry):
        log(run, entry)
        if entry["kind"] == "train":
            if run.rollouts is not None:
                parts = {what: entry.get(f"perf/{what}_time", 0.0) for what in ("generation", "reward", "annotation")}
                watch.add_time("generation", parts["generation"])
                watch.add_time("rollout", sum(parts.values()))
                watch.rows.append(round(run.totals["rows"]))
                watch.children = children()
                watch.part |= {name: value for name, value in entry.items() if name in TIMES}
            watch.step()
            watch.tokens.append(entry["num_tokens"])
            watch.supervised.append(round(run.totals.get("tokens", 0)))  # a reward model has none
            watch.losses.append(entry["loss"])
            watch.grad_norms.append(entry["grad_norm"])
            watch.rates.append(entry["learning_rate"])

    launch.fit, build.precompute, Run.log = watched_fit, watched_ahead, watched_log
    watch = watch_of(spec)
    given = {"reward": [f"{rewards.__file__}:{REWARD.__name__}"]} if method in PAID else {}
    if "teacher" in spec:
        given["teacher_model_name_or_path"] = spec["teacher"]
    if "lora" in spec:
        given |= {"use_peft": True, "lora_r": spec["lora"], "lora_alpha": 2 * spec["lora"]}
    finished = ft_host.train(
        config(
            **same(spec),
            model=spec["model"],
            dataset=spec["rows"],
            save_steps=0,
            progress="quiet",
            **given,
            **spec["ours"],
        )
    )
    manifest = json.loads((finished.folder / "run.json").read_text())
    facts = manifest["facts"]
    # of rows that share prompts, and of others, which hosts before 0.9 don't tell apart
    kernels = {facts["plan/kernel"], facts.get("plan/rows_kernel", facts["plan/kernel"])}
    watch.kernel = ", ".join(sorted(kernels))
    if "plan/kernel_refused" in facts:
        watch.kernel += f" ({facts['plan/kernel_refused']})"
    watch.decoding, watch.estimate = facts.get("plan/decoding"), facts.get("plan/memory_mb")
    watch.notes = manifest["plan"]["notes"]
    return watch.report(imports)


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    method = spec["method"]
    place = PLACES[method]
    module = importlib.import_module(place.trl)
    config, trainer_class = (
        getattr(module, place.name + what) for what in ("Config", "Trainer")
    )  # imported when asked for
    imports = time.perf_counter() - started

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            watch.begin()

        def on_step_end(self, args, state, control, **kwargs):
            watch.step()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                watch.tokens.append(round(logs.get("num_tokens", counted["tokens"])))
                if "supervised" in counted:
                    watch.supervised.append(counted.pop("supervised"))
                watch.losses.append(logs["loss"])
                watch.grad_norms.append(logs["grad_norm"])
                watch.rates.append(logs["learning_rate"])

    class Watched(trainer_class):
        def _precompute_ref_logps(self, *args, **kwargs):  # DPO's: called where its log-probs are to be made ahead
            before = time.perf_counter()
            found = super()._precompute_ref_logps(*args, **kwargs)
            watch.ahead = time.perf_counter() - before
            return found

        def _generate_single_turn(self, *args, **kwargs):  # of what samples: completions of a batch of prompts
            with watch.timing("generation"):
                return super()._generate_single_turn(*args, **kwargs)

        def _generate_and_score_completions(self, *args, **kwargs):  # and all else that comes before their first update
            with watch.timing("rollout"):
                found = super()._generate_and_score_completions(*args, **kwargs)
            watch.rows.append(len(found["completion_ids"]))
            watch.supervised.append(int(found["completion_mask"].sum()))
            return found

        # of those that don't say how many tokens they saw
        def generate_on_policy_outputs(self, *args, **kwargs):
            raise SystemExit("GKD: TRL was to learn from the rows, and samples")

        def _prepare_training_batch(self, *args, **kwargs):  # SDFT's
            with watch.timing("rollout"):
                found = super()._prepare_training_batch(*args, **kwargs)
            watch.rows.append(len(found["completion_ids"]))
            watch.supervised.append(int(found["completion_mask"].sum()))
            counted["tokens"] += int(found["prompt_mask"].sum() + found["completion_mask"].sum())
            return found

        def _generate(self, *args, **kwargs):
            if method != "sdft":
                return super()._generate(*args, **kwargs)
            with watch.timing("generation"):
                return super()._generate(*args, **kwargs)

        def _get_train_sampler(self, *args, **kwargs):
            if method != "gold":
                return super()._get_train_sampler(*args, **kwargs)
            from torch.utils.data import SequentialSampler  # TRL's shuffles, whatever it is told

            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, *args, **kwargs):
            if method in ("gkd", "gold"):
                counted["tokens"] += int(inputs["attention_mask"].sum())
                counted["supervised"] = counted.get("supervised", 0) + int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    watch = watch_of(spec)
    counted = {"tokens": 0}
    given: dict[str, Any] = {"reward_funcs": REWARD} if method in PAID else {}
    if "teacher" in spec:
        given |= {"teacher_model": spec["teacher"], "processing_class": AutoTokenizer.from_pretrained(spec["model"])}
    if "lora" in spec:
        from peft import LoraConfig

        adapter = {"r": spec["lora"], "lora_alpha": 2 * spec["lora"], "lora_dropout": 0.0}
        given["peft_config"] = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **adapter)
    fixed = {
        "model_init_kwargs": {"dtype": "float32"},
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Watched(
        model=spec["model"],
        train_dataset=Dataset.from_json(spec["rows"], cache_dir=spec["cache"] + "/datasets"),
        args=config(**{**same(spec), **fixed, **spec["trl"]}),
        callbacks=[Watcher()],
        **given,
    )
    watch.kernel = trainer.model.config._attn_implementation
    trainer.train()
    return watch.report(imports)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    seen = {"ours": ours, "trl": trl}[sys.argv[1]](given)
    Path(given["out"]).write_text(json.dumps(seen))
