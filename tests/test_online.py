"""Whole runs with rollouts: what they leave, what is refused before a model is loaded, and how they end."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trl
from ft_grpo.config import GRPOConfig

import ft_host
from ft_host import cli
from ft_host.errors import ConfigError, FtHostError, HookError
from ft_host.generation import Request, Sampling
from ft_host.registry import catalog
from ft_host.rundir.folder import RunFolder
from ft_host.testing.distributions import make_distribution
from ft_host.testing.generation import generating_run
from ft_host.testing.invariants import assert_same, lines
from ft_host.testing.models import save_tiny, tiny_llama
from ft_host.testing.rows import tiny_run, write_rows
from ft_host.testing.tokenizers import chat_tokenizer
from ft_host.training.evaluate import eval_sampling

REWARDS = '''
from pathlib import Path

def letters(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / 10 for text in completions]

def even(number, **columns):
    return [1.0 if each % 2 == 0 else None for each in number]

def picky(completions, number, **columns):
    if any(each % 2 for each in number):
        raise ValueError("odd")
    return [float(len(text)) for text in completions]

def flat(completions, trainer_state, **columns):
    if trainer_state.global_step < 2 or Path("mended").exists():
        return [float(len(text)) for text in completions]
    return [0.5] * len(completions)

def wants(completions, solution):
    return [0.0] * len(completions)

def environment(completions, **columns):
    return [0.0] * len(completions)

class Pays:
    def reset(self, **columns):
        pass

    def look(self) -> str:
        """Looks around."""
        return "nothing"

    def get_reward(self):
        return 1.0

class Free:
    def reset(self, **columns):
        pass

    def look(self) -> str:
        """Looks around."""
        return "nothing"
'''
HELD_OUT = [{"prompt": f"{number} plus 3 is ", "number": number, "answer": str(number + 3)} for number in range(7)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama())


def config_in(folder: Path, model: Path, **fields: Any) -> GRPOConfig:
    """A GRPO run of two rollouts of four prompts, in two steps each, that only has to be run from `folder`."""
    (folder / "pays.py").write_text(REWARDS)
    rows = [{"prompt": f"what is {number}? ", "number": number} for number in range(24)]
    given = {
        "reward": [f"{folder / 'pays.py'}:letters"],
        "max_completion_length": 10,
        "num_generations": 4,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
        "temperature": 0.9,
        "learning_rate": 1e-2,
    }
    return tiny_run(GRPOConfig, model, folder, rows, **(given | fields))


@pytest.fixture
def make(tmp_path, llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **fields: config_in(tmp_path, llama, **fields)


# ---------------------------------------------------------------- what a run leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama) -> RunFolder:
    folder = tmp_path_factory.mktemp("finished")
    held_out = write_rows(folder / "held-out.jsonl", HELD_OUT)
    config = config_in(
        folder,
        llama,
        reward=[f"{folder / 'pays.py'}:{name}" for name in ("letters", "even")],
        reward_weights=[1.0, 0.5],
        eval_dataset=str(held_out),
        eval_on_start=True,
        eval_steps=2,
        save_steps=3,
        save_total_limit=None,
        logged_completions=6,
    )
    ft_host.train(config)
    return RunFolder(config.output_dir)


def test_the_plan(finished):
    run = json.loads((finished.path / "run.json").read_text())
    assert run["status"] == "finished" and {each["name"] for each in run["plugins"]} == {"grpo", "transformers"}
    assert run["plan"]["rollout"] == {
        "prompts": 4,
        "generations": 4,
        "steps": 2,
        "passes": 1,
        "shuffled": False,
        "rows": 16,
        "whole_groups": False,
    }
    assert run["plan"]["rows_per_step"] == 8 and run["plan"]["planned_steps"] == 4
    said = [event["text"] for event in finished.read("events.jsonl")]
    assert "each rollout: 4 prompts × 4 completions = 16, in 2 optimizer steps of 8" in said
    probes = [text.partition(",")[0] for text in said if "the log-probs of the backend transformers match" in text]
    assert probes == ["before training", "after 2 steps"]


OF_A_ROLLOUT = {
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/letters/mean",
    "rewards/letters/std",
    "rewards/even/mean",
    "completions/mean_length",
    "completions/clipped_ratio",
    "perf/rollout_time",
    "perf/generation_time",
    "perf/reward_time",
    "perf/annotation_time",
    "perf/train_time",
    "perf/generation_tokens_per_second",
}


def test_the_line_of_a_rollouts_first_step_tells_of_it(finished):
    steps = [entry for entry in finished.read("metrics.jsonl") if entry["kind"] == "train"]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry in steps[::2]:
        assert OF_A_ROLLOUT <= entry.keys() and "perf/weight_sync_time" not in entry
        apart = sum(entry[f"perf/{what}_time"] for what in ("generation", "reward", "annotation", "train"))
        assert entry["perf/step_time"] == pytest.approx(apart)
        assert entry["perf/generation_time"] < entry["perf/rollout_time"] < entry["perf/step_time"]
        assert entry["rewards/even/mean"] == 1.0
        assert entry["reward"] == pytest.approx(entry["rewards/letters/mean"] + 0.5 / 2)  # two prompts of four
    for entry in steps[1::2]:
        assert not OF_A_ROLLOUT & entry.keys()
    # the rates are those of training: a rollout isn't in them
    tokens = steps[2]["num_tokens"] - steps[1]["num_tokens"]
    assert steps[2]["perf/tokens_per_second"] * steps[2]["perf/train_time"] == pytest.approx(tokens)


def greedy(finished: RunFolder) -> list[str]:
    """What the model that the run left says to the held-out prompts."""
    from transformers import AutoModelForCausalLM

    run = generating_run(AutoModelForCausalLM.from_pretrained(finished.model))
    requests = [Request(prompt_ids=run.tokenizer(row["prompt"])["input_ids"]) for row in HELD_OUT]
    completions = run.generate(requests, Sampling(max_new_tokens=10, temperature=0.0))
    return [run.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]


def test_held_out_prompts_are_scored_with_the_trainings_rewards(finished):
    evals = [entry for entry in finished.read("metrics.jsonl") if entry["kind"] == "eval"]
    assert [entry["step"] for entry in evals] == [0, 2, 4]
    texts = greedy(finished)
    letters = [sum(letter.isalpha() for letter in text) / 10 for text in texts]
    last = evals[-1]
    assert last["eval_rewards/letters/mean"] == pytest.approx(sum(letters) / 7)
    assert last["eval_rewards/even/mean"] == 1.0
    assert last["eval_reward"] == pytest.approx((sum(letters) + 0.5 * 4) / 7)  # weighed, where there is one
    assert "eval_loss" not in last and last["perf/eval_time"] > 0
    assert {"eval_completions/mean_length", "eval_completions/clipped_ratio"} <= last.keys()
    shown = [each for each in finished.read("samples.jsonl") if each.get("kind") != "rollout" and each["step"] == 4]
    assert [each["completion"] for each in shown] == texts[:5]
    assert shown[1] == {
        "step": 4,
        "prompt": "1 plus 3 is ",
        "completion": texts[1],
        "reference": "4",
        "rewards": {"letters": letters[1], "even": None},
    }


def test_samples_of_each_rollout(finished):
    shown = [each for each in finished.read("samples.jsonl") if each.get("kind") == "rollout"]
    assert [(each["rollout"], each["step"], each["group"]) for each in shown] == [
        *[(0, 1, group) for group in (0, 0, 0, 0, 1, 1)],
        *[(1, 3, group) for group in (0, 0, 0, 0, 1, 1)],
    ]
    assert [each["prompt"] for each in shown[3:5]] == ["what is 0? ", "what is 1? "]
    for each in shown:
        assert each["rewards"]["letters"] == sum(letter.isalpha() for letter in each["completion"]) / 10
        assert each["rewards"]["even"] == (1.0 if each["group"] == 0 else None) and 0 < each["tokens"] <= 10
    assert sum(each["advantage"] for each in shown[:4]) == pytest.approx(0, abs=1e-6)  # of a whole group


def test_a_checkpoint_in_the_middle_of_a_rollout_holds_it(finished):
    place = finished.checkpoints / "step-3"
    buffer = json.loads((place / "buffer-0.json").read_text())
    assert "buffer-0.json" in json.loads((place / "files.json").read_text())["files"]
    assert buffer["number"] == 1 and buffer["sizes"] == [4, 4, 4, 4] and len(buffer["rows"]) == 16
    assert {"completion_ids", "sampling_logps", "old_logps", "advantage", "rewards"} <= buffer["rows"][0].keys()
    position = json.loads((place / "progress.json").read_text())["progress"]["position"]
    assert (position["rollout"], position["step"]) == (1, 1)


def test_how_evaluation_samples():
    config = GRPOConfig(temperature=0.7, min_p=0.1, top_k=4, repetition_penalty=1.1, seed=5, max_completion_length=9)
    expected = Sampling(max_new_tokens=9, temperature=0.0, top_k=4, min_p=0.1, repetition_penalty=1.1, seed=5)
    assert eval_sampling(config) == expected
    config.eval_temperature = None
    assert eval_sampling(config).temperature == 0.7
    config.eval_temperature = 0.2
    assert eval_sampling(config).temperature == 0.2


def test_evaluation_may_have_rewards_of_its_own(make, tmp_path):
    config = make(
        max_steps=1,
        eval_dataset=str(write_rows(tmp_path / "held-out.jsonl", HELD_OUT)),
        eval_reward=[f"{tmp_path / 'pays.py'}:even"],
    )
    ft_host.train(config)
    (entry,) = lines(config.output_dir, "eval")
    assert entry["eval_reward"] == entry["eval_rewards/even/mean"] == 1.0
    assert "eval_rewards/letters/mean" not in entry and lines(config.output_dir)[0]["rewards/letters/mean"] > 0


def test_the_dry_run_tells_of_rollouts_and_trains_nothing(make, tmp_path, capsys):
    config = make()
    argv = [
        "train",
        "grpo",
        "--model",
        config.model,
        "--dataset",
        config.dataset,
        "--reward",
        *config.reward,
        "--per-device-train-batch-size",
        "8",
        "--steps-per-generation",
        "2",
        "--dry-run",
    ]
    assert cli.main([*argv, "--num-iterations", "3"]) == 0
    said = capsys.readouterr().out
    assert "# each rollout: 2 prompts × 8 completions = 16, in 2 optimizer steps of 8, in 3 passes: 6 updates" in said
    # 24 prompts, 3 epochs, 2 at a time, 6 steps each
    assert "# length: 3 epochs of 24 prompts, about 216 steps" in said
    assert "don't come out even" not in said and not Path("runs").exists()
    assert cli.main([*argv, "--num-generations", "16", "--num-processes", "2"]) == 0
    assert "each rollout: 2 prompts × 16 completions = 32" in capsys.readouterr().out
    assert cli.main([*argv, "--num-generations", "32", "--num-processes", "2"]) == 0
    assert "# 1 prompts a rollout don't come out even over 2 processes" in capsys.readouterr().out


# ---------------------------------------------------------------- refused before a model is loaded


@pytest.fixture
def refused(make, llama, tmp_path, capsys):
    """What the command line says of flags that it refuses. The model has no weights: loading it would be too late."""
    config = make()
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    chat_tokenizer(TOOLS.read_text(encoding="utf-8"), eos_token="<|im_end|>").save_pretrained(bare)
    settings = json.loads((bare / "config.json").read_text())  # this tokenizer has more tokens than the llama
    (bare / "config.json").write_text(json.dumps(settings | {"vocab_size": 1000}))
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")

    def asked(*flags: str, method: str = "grpo", code: int = 2, begins: bool = False) -> str:
        found = cli.main(
            ["train", method, "--model", str(bare), "--dataset", config.dataset, "--use-cpu", "true", *flags]
        )
        said = capsys.readouterr().err
        assert found == code, said
        records = [json.loads(file.read_text()) for file in Path("runs").glob("*/run.json")]
        assert any("data" in record for record in records) == begins, said  # which one has that goes as far as a model
        return said

    return asked


BATCH = ["--per-device-train-batch-size", "8"]
TOOLS = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"


def test_what_is_refused_below_would_begin_otherwise(refused):
    assert "bare holds no weights" in refused("--reward", "pays.py:letters", *BATCH, begins=True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            [],
            "reward is required: give --reward or reward: in the config file, for instance --reward"
            " my_rewards.py:correct "
            r"\(or environment\)",
        ),
        (
            ["--reward", "pays.py:leters"],
            "--reward: pays.py:leters: pays.py defines no function leters; did you mean letters?",
        ),
        (["--reward", "pay.py:letters"], "--reward: pay.py:letters: pay.py: no such file; did you mean pays.py?"),
        (
            ["--reward", "broken.py:f"],
            "reward: broken.py can't be imported: ModuleNotFoundError: No module named 'absent'",
        ),
        (
            ["--reward", "pays.py:wants"],
            "wants: its parameter 'solution' is neither a column of the data nor .*columns: number, prompt",
        ),
        (
            ["--reward", "pays.py:letters", "pays.py:even", "--reward-weights", "1"],
            "reward_weights: 1 weights for 2 rewards",
        ),
        (
            ["--reward", "pays.py:letters", *BATCH, "--num-generations", "3"],
            "num_generations: 8 completions a rollout .* can't be made of groups of 3; nearest num_generations: 2 or 4",
        ),
        (
            ["--reward", "pays.py:letters", *BATCH, "--backend-config", "{port: 1}"],
            "backend_config: the backend transformers has no fields of its own",
        ),
        (
            ["--reward", "pays.py:letters", *BATCH, "--backend", "vllm", "--backend-config", "{pyton: /bin/sh}"],
            "backend_config: unknown field pyton; did you mean python?",
        ),
        (["--reward", "pays.py:letters", *BATCH, "--backend", "vllm"], "backend_config: mode: server needs python"),
        (["--reward", "pays.py:letters", *BATCH, "--backend", "transformer"], "did you mean 'transformers'?"),
        (["--environment", "pays.py:Free", *BATCH], "environment .*Free has no get_reward"),
        (
            ["--environment", "pays.py:Pays", "--reward", "pays.py:environment", *BATCH],
            "'environment' is the name of an environment's reward",
        ),
        (["--environment", "pays.py:Gone", *BATCH], "--environment: pays.py:Gone: pays.py defines no"),
        (
            ["--environment", "pays.py:Pays", "--chat-template-path", "plain.jinja", *BATCH],
            "the chat template doesn't show the tools to the model",
        ),
    ],
)
def test_refused(refused, flags, said):
    Path("broken.py").write_text("import absent\n\ndef f(completions):\n    return []\n")
    text = refused(*flags, code=4 if "transformer" in flags else 2)
    assert re.search(said, text), text


def test_fields_of_a_backend_have_no_effect_on_a_run_that_generates_nothing(refused):
    said = refused("--backend-config", "{port: 1}", method="sft")
    assert "backend_config: has no effect on a run that generates nothing; it has no eval_reward" in said


def test_a_method_with_rollouts_says_so_in_its_fields_too(refused, tmp_path):
    """And the other way round: neither would ever be trained as it was meant."""
    common = """
        from ft_host import hookimpl
        from ft_sft.method import ft_prepare, ft_collate, ft_loss
    """
    hook = """
        @hookimpl
        def ft_rollout(rows, rollout):
            pass
    """
    for name, source, has, lacks in (
        (
            "no_fields",
            "from ft_sft.config import SFTConfig as Config\n" + textwrap.dedent(hook),
            "ft_rollout",
            "RolloutConfig",
        ),
        ("no_hook", "from ft_grpo.config import GRPOConfig as Config\n", "RolloutConfig", "ft_rollout"),
    ):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(common) + source)
        flags = ["--reward", "pays.py:letters", *BATCH] if name == "no_hook" else []
        assert f"the method '{name}' has {has} and lacks {lacks}" in refused(*flags, method=f"./{name}.py", code=3)


# ---------------------------------------------------------------- rewards that fail


def test_rewards_that_fail_for_some_do_not_end_a_run(make, tmp_path):
    config = make(reward=[f"{tmp_path / 'pays.py'}:{name}" for name in ("letters", "picky")])
    ft_host.train(config)
    first = lines(config.output_dir)[0]
    assert first["rewards/picky/failed"] == 8  # prompts 1 and 3, four completions each
    assert first["rewards/letters/mean"] > 0
    warned = [
        event["text"] for event in RunFolder(config.output_dir).read("events.jsonl") if event["level"] == "warning"
    ]
    assert [text for text in warned if "picky" in text][0].startswith(
        "reward picky: no value for 8 of 16 completions: raised ValueError: odd"
    )


def test_too_many_failures_in_a_row_end_it_with_the_reason(make, tmp_path):
    config = make(reward=[f"{tmp_path / 'pays.py'}:picky"], max_reward_failures=3)
    with pytest.raises(FtHostError, match="picky.*max_reward_failures"):
        ft_host.train(config)
    run = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert run["status"] == "refused" and "ValueError: odd" in run["error"]


def test_a_run_that_found_nothing_to_learn_goes_on_from_there_once_that_is_mended(make, tmp_path):
    """After two steps all rewards are equal. The state is saved, with the prompts that failed still to come."""
    config = make(
        reward=[f"{tmp_path / 'pays.py'}:flat"],
        dynamic_sampling=True,
        max_rollout_draws=2,
        save_steps=50,
        logged_completions=16,
    )
    with pytest.raises(
        FtHostError, match="rollout 2: none of 8 prompts had a signal .* equal rewards of 0.5 on average"
    ):
        ft_host.train(config)
    folder = RunFolder(config.output_dir)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-2"]
    (tmp_path / "mended").touch()
    assert cli.main(["train", "--resume", str(folder.path)]) == 0
    assert [entry["step"] for entry in lines(folder.path)] == [1, 2, 3, 4]
    shown = [each for each in folder.read("samples.jsonl") if each["rollout"] == 1]
    assert {each["prompt"] for each in shown} == {f"what is {number}? " for number in range(4, 8)}


# ---------------------------------------------------------------- resume


def test_resuming_in_the_middle_of_a_rollout_and_with_another_plan(make, capsys):
    """Stopped after step 3, the first of two steps of the second rollout."""
    config = make(max_steps=3, lr_scheduler_type="constant")
    whole = make(max_steps=6, lr_scheduler_type="constant", output_dir=config.output_dir + "-whole")
    ft_host.train(config)
    ft_host.train(whole)
    resume = ["train", "--resume", config.output_dir]
    assert cli.main([*resume, "--steps-per-generation", "4"]) == 2
    assert "--steps-per-generation can't change when a run is resumed" in capsys.readouterr().err
    # as many rows a step as before, but micro-batches of half the size, of which a rollout has two
    half = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2"]
    assert cli.main([*resume, *half]) == 2
    assert (
        ": prompts 4 then and 2 now, steps 2 then and 1 now, rows 16 then and 8 now. steps_per_generation counts"
        " micro-batches" in capsys.readouterr().err
    )
    assert cli.main([*resume, "--max-steps", "6"]) == 0
    assert_same(lines(whole.output_dir), lines(config.output_dir), rel=0)


# ---------------------------------------------------------------- backends

CLOSING = """
from pathlib import Path
from ft_host import hookimpl
from ft_host.generation import transformers

def note(text):
    with open("closing.txt", "a") as file:
        file.write(text + "\\n")

@hookimpl
def ft_generate(requests, sampling, run):
    run.backend_state.setdefault("calls", []).append(len(requests))
    return transformers.ft_generate(requests, sampling, run)

@hookimpl
def ft_sync_weights(model, version, run):
    assert model is run.policy
    note(f"weights of {version}")

@hookimpl(wrapper=True)
def ft_annotate(rows, run):
    note(f"{len(rows)} rows annotated at {run.step}")
    return (yield)

@hookimpl
def ft_close(run):
    note(f"closed at {run.step} with fields {run.backend_config}, asked {len(run.backend_state['calls'])} times")
    if Path("cannot-close").exists():
        raise OSError("a server that won't end")
"""


@pytest.fixture
def closing(tmp_path, monkeypatch):
    """The backend `closing`, which notes what it is asked for; it is installed for this test."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    make_distribution(
        tmp_path / "site",
        "ft-closing",
        entry_points={"ft_host.backends": {"closing": "fake_closing"}},
        modules={"fake_closing": CLOSING},
        requires=["ft-host"],
    )
    catalog.cache_clear()
    yield lambda: (tmp_path / "closing.txt").read_text().splitlines()
    sys.modules.pop("fake_closing", None)
    catalog.cache_clear()


def test_a_backend_is_given_weights_and_closed(make, closing, tmp_path):
    config = make(backend="closing", importance_sampling_correction="none")
    ft_host.train(config)
    assert closing() == [
        "weights of 0",
        "16 rows annotated at 0",
        "weights of 2",
        "16 rows annotated at 2",
        "closed at 4 with fields None, asked 4 times",  # two probes and two rollouts
    ]
    found = lines(config.output_dir)
    steps = [entry for entry in RunFolder(config.output_dir).read("metrics.jsonl") if entry["kind"] == "train"]
    assert "perf/weight_sync_time" in steps[0] and "perf/weight_sync_time" not in steps[1]
    plain = make(output_dir=config.output_dir + "-plain")
    ft_host.train(plain)
    assert_same(lines(plain.output_dir), found, rel=0)


def test_an_evaluation_is_of_the_weights_of_the_moment(make, closing, tmp_path):
    """Before training, after step 1, and at the end; a rollout that follows needs no other weights."""
    held_out = write_rows(tmp_path / "held-out.jsonl", HELD_OUT)
    ft_host.train(make(backend="closing", eval_dataset=str(held_out), eval_steps=1, eval_on_start=True, max_steps=3))
    assert [line for line in closing() if "weights" in line] == [f"weights of {step}" for step in range(4)]


def test_a_backend_is_closed_where_the_run_fails_and_may_fail_at_that(make, closing, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    config = make(backend="closing", reward=[f"{tmp_path / 'pays.py'}:picky"], max_reward_failures=0)
    with pytest.raises(FtHostError, match="picky"):
        ft_host.train(config)
    assert closing() == ["weights of 0", "closed at 0 with fields None, asked 2 times"]
    (tmp_path / "cannot-close").touch()
    with pytest.raises(FtHostError, match="picky"):  # which is what the user must see first
        ft_host.train(dataclasses.replace(config, output_dir=config.output_dir + "-again", progress="lines"))
    said = capsys.readouterr().err
    assert "while the run was ending: ft_close of the backend 'closing'" in said
    assert "OSError: a server that won't end" in said
    with pytest.raises(HookError, match="ft_close of the backend 'closing'.*OSError: a server that won't end"):
        ft_host.train(make(backend="closing", output_dir=config.output_dir + "-third", max_steps=1))
    assert signal.getsignal(signal.SIGTERM) is before, "the signals are those of the run still"


def test_a_reward_must_have_a_name_that_processes_find(make):
    config = make()
    config.reward = [lambda completions: [0.0]]
    with pytest.raises(ConfigError, match="reward"):
        ft_host.train(config)
