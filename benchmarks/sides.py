"""One side of a comparison, in a process of its own: `python sides.py SIDE SPEC.json` trains and writes SPEC's `out`.

Both are called as a user calls them, with a model's folder and a file of rows. Both are watched from outside in the same
way: the clock and the process' memory are read when training begins and at the end of each optimizer step.

SPEC: `method` (a key of NAMES), `model`, `rows`, `steps`, `work` (an empty folder), `cache` (a folder that may be full),
`both` (fields that ft-host and TRL call the same), `ours` and `trl` (fields of one of them).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import rewards
from watch import Watch, children
from work import BATCH, MAX_LENGTH

# method: its classes, without Config or Trainer
NAMES = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward", "grpo": "GRPO", "rloo": "RLOO"}
SAMPLING = ("grpo", "rloo")  # what they train on they sample, and pay for it as `rewards` says
REWARD = rewards.every_fourth


def same(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields that have one name on both sides."""
    of_rows = {
        "max_length": MAX_LENGTH,
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
    }
    return {
        "output_dir": spec["work"] + "/run",
        "max_steps": spec["steps"],
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        **({} if spec["method"] in SAMPLING else of_rows),
        **spec["both"],
    }


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    method = spec["method"]
    importlib.import_module(f"ft_{method}.method")
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import ft_host
    from ft_host import launch
    from ft_host.run import Run

    config = vars(importlib.import_module(f"ft_{method}.config"))[NAMES[method] + "Config"]
    imports = time.perf_counter() - started
    fit, make_ahead, log = launch.fit, launch.make_ahead, Run.log

    def watched_fit(*args, **kwargs):
        watch.begin()
        return fit(*args, **kwargs)

    def watched_ahead(*args, **kwargs):
        before = time.perf_counter()
        make_ahead(*args, **kwargs)
        watch.ahead = time.perf_counter() - before

    def watched_log(run, entry):
        log(run, entry)
        if entry["kind"] == "train":
            if run.rollouts is not None:
                watch.took("generation", entry["perf/generation_time"])
                watch.took("rollout", sum(entry[f"perf/{what}_time"] for what in ("generation", "reward", "annotation")))
                watch.rows.append(round(run.totals["rows"]))
                watch.children = children()
            watch.step()
            watch.tokens.append(entry["num_tokens"])
            watch.supervised.append(round(run.totals.get("tokens", 0)))  # a reward model has none
            watch.losses.append(entry["loss"])
            watch.grad_norms.append(entry["grad_norm"])
            watch.rates.append(entry["learning_rate"])

    launch.fit, launch.make_ahead, Run.log = watched_fit, watched_ahead, watched_log
    watch = Watch()
    paid = {"reward": [f"{rewards.__file__}:{REWARD.__name__}"]} if method in SAMPLING else {}
    ft_host.train(
        config(
            **same(spec),
            model=spec["model"],
            dataset=spec["rows"],
            save_steps=0,
            progress="quiet",
            **paid,
            **spec["ours"],
        )
    )
    return watch.report(imports)


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    name = NAMES[spec["method"]]
    config, trainer_class = getattr(trl, name + "Config"), getattr(trl, name + "Trainer")  # imported when asked for
    imports = time.perf_counter() - started

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            watch.begin()

        def on_step_end(self, args, state, control, **kwargs):
            watch.step()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                watch.tokens.append(round(logs["num_tokens"]))
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

    watch = Watch()
    paid = {"reward_funcs": REWARD} if spec["method"] in SAMPLING else {}
    trainer = Watched(
        model=spec["model"],
        train_dataset=Dataset.from_json(spec["rows"], cache_dir=spec["cache"] + "/datasets"),
        args=config(
            **same(spec),
            model_init_kwargs={"dtype": "float32"},
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **spec["trl"],
        ),
        callbacks=[Watcher()],
        **paid,
    )
    trainer.train()
    return watch.report(imports)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    seen = {"ours": ours, "trl": trl}[sys.argv[1]](given)
    Path(given["out"]).write_text(json.dumps(seen))
