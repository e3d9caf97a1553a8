"""Methods written against ft-host 0.4.0 train as they are; a warning names the new place of each old name.

The files in `written_for_0_4` stay as they are: they stand for packages that others have published. Where this test
fails after a rename, add the old name to `ft_host/util/moved.py` (a module: `MODULES`; a name: `names_of`; a keyword or
an attribute: `old_keywords`), and a field of a config to the table of renamed fields. If they don't train with an old
name, nobody else's package does either.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import ft_host
from ft_host import registry

METHODS = Path(__file__).parent / "written_for_0_4"
PAIRS = [
    {"prompt": "what is 1 plus 2?", "chosen": " it is 3", "rejected": " it is 4, I think"},
    {"prompt": "what is 2 plus 2?", "chosen": " it is 4", "rejected": " no"},
    {"prompt": "how many apples?", "chosen": " three apples are left", "rejected": " it is"},
    {"prompt": "question:", "chosen": " the lazy dog", "rejected": " the quick brown fox"},
]
REWARD = """
def long(completion_ids, **columns):
    return [len(ids) / 10 for ids in completion_ids]
"""
# Fields of a run that 0.4 called so. Each must be a field still, or be taken with a warning that names the new one.
FIELDS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "decode_batch_size": 2,
    "window": 64,
    "timeout": 600,
    "select": ["DATA", "NUM"],
    "ignore": ["DATA001"],
    "locked": ["seed"],
}
# What the files import that is elsewhere or called otherwise now: the old name, and what the warning must hold.
MOVED = {
    "pairs": {
        "ft_host.annotate is": "ft_host.models.annotate",
        "evaluate_rows is": "policy_values",
        "ft_host.batch.forest is": "flat_batch",
        "ft_host.generation.rows is": "ft_host.",
        "ft_host.settings.paths is": "ft_host.config.paths",
        "ft_host.run.ModelSpec is": "ft_host.types.ModelSpec",
    },
    "reinforce": {
        "ft_host.diagnostics.rollouts is": "ft_host.diagnostics.shared",
        "ft_host.generation.config is": "ft_host.config.rollout",
        "ft_host.generation.rollout is": "ft_host.rollouts.rollout",
        "ft_host.generation.rows is": "ft_host.",
    },
    "my_method": {"ft_host.batch.forest is": "flat_batch", "ft_host.run.LossOutput is": "ft_host.types.LossOutput"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy and of a reference that isn't it."""
    from ft_host.testing.models import save_tiny, tiny_qwen

    folder = tmp_path_factory.mktemp("models")
    return save_tiny(folder / "policy"), save_tiny(folder / "reference", tiny_qwen(seed=3))


@pytest.fixture
def make(models, tmp_path):
    """A config of two steps of the file `name`, over rows."""

    def made(name: str, rows: list[dict], **fields):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "pays.py").write_text(REWARD)
        usual = {
            "model": str(models[0]),
            "dataset": str(tmp_path / "rows.jsonl"),
            "output_dir": str(tmp_path / "runs"),
            "use_cpu": True,
            "max_steps": 2,
            "save_steps": 0,
            "train_sampling_strategy": "sequential",
            "eval_on_start": False,
            "progress": "quiet",
        }
        return registry.config_class(str(METHODS / f"{name}.py"))(**(usual | fields))

    return made


def log_probs(folder: Path, prompt: list[int], completion: list[int], temperature: float = 1.0) -> float:
    """Of a completion, by the whole logits of one sequence."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([prompt + completion])).logits[0]
    logs = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return float(logs[range(len(completion)), completion].sum())


def train(config) -> tuple[list[dict], ft_host.FinishedRun]:
    run = ft_host.train(config)
    entries = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "train"], run


def test_old_names_warn_with_the_new_place():
    """In a process of its own: a module is imported once, and warns once. Names warn wherever they are used."""
    files = [str(METHODS / f"{name}.py") for name in MOVED]
    code = f"import runpy\nfor file in {files}: runpy.run_path(file, run_name='old')"
    done = subprocess.run(
        [sys.executable, "-W", "always::FutureWarning", "-c", code], capture_output=True, text=True, check=True
    )
    said = done.stderr.splitlines()
    for old, new in (pair for names in MOVED.values() for pair in names.items()):
        assert any(old in line and new in line for line in said), f"nothing says {old} {new}:\n{done.stderr}"
    assert any("ft_host.api" in line for line in said)


def test_pairs_with_a_reference(make, models):
    policy, reference = models
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", FutureWarning)
        steps, run = train(make("pairs", PAIRS, ref_model=str(reference), per_device_train_batch_size=4))

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    margins, away, tokens, chosen_logps = [], [], 0, 0.0
    for row in PAIRS:
        prompt, ends = tokenizer(row["prompt"])["input_ids"], [tokenizer.eos_token_id]
        chosen, rejected = (tokenizer(row[name])["input_ids"] + ends for name in ("chosen", "rejected"))
        ours, theirs = (
            (log_probs(folder, prompt, chosen), log_probs(folder, prompt, rejected)) for folder in (policy, reference)
        )
        margins.append(ours[0] - ours[1])
        away.append(margins[-1] - (theirs[0] - theirs[1]))
        tokens, chosen_logps = tokens + len(chosen), chosen_logps + ours[0]
    level = 0.1 * sum(margins) / 4
    loss = sum(math.log1p(math.exp(-(0.1 * each - level))) for each in away) / 4 - 0.5 * chosen_logps / tokens
    assert [step["step"] for step in steps] == [1, 2]
    assert math.isclose(steps[0]["loss"], loss, rel_tol=1e-5)
    assert math.isclose(steps[0]["rewards/margins"], 0.1 * sum(away) / 4, rel_tol=1e-4)
    assert steps[0]["perf/matching_time"] == 0.25
    assert steps[1]["loss"] < steps[0]["loss"] and not run.failed

    said = {str(warning.message) for warning in told}
    for old, new in {
        "ahead": "precompute",
        "beside": "linked",
        "live": "current_policy",
        "learn": "record_facts",
        "weight=": "loss=",
    }.items():
        assert any(old in text and new in text for text in said), f"nothing says that {old} is {new}: {said}"


def test_rollouts_over_a_backend(make, models, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from ft_host.registry.catalog import catalog
    from ft_host.testing.distributions import make_distribution

    make_distribution(
        tmp_path / "site",
        "ft-told-for-0-4",
        entry_points={"ft_host.backends": {"told_for_0_4": "told_for_0_4"}},
        modules={"told_for_0_4": (METHODS / "backend.py").read_text()},
        requires=["ft-host>=0.4,<2"],
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    catalog.cache_clear()
    fields = {
        "backend": "told_for_0_4",
        "reward": [f"{tmp_path / 'pays.py'}:long"],
        "temperature": 0.7,
        "max_completion_length": 8,
        "per_device_train_batch_size": 8,
        "max_sampling_logp_difference": 1e3,
    }
    prompts = [{"prompt": row["prompt"]} for row in PAIRS]
    try:
        steps, run = train(make("reinforce", prompts, **fields))
    finally:
        catalog.cache_clear()

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    loss, tokens = 0.0, 0
    for row in prompts[:2]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for number in range(4):
            ids = [20 + number, 30, 40][:number] + [tokenizer.eos_token_id]
            # rewards are 0.1 to 0.4, their mean 0.25
            loss -= (0.1 * (number + 1) - 0.25) * log_probs(models[0], prompt, ids, temperature=0.7)
            tokens += len(ids)
    assert [step["step"] for step in steps] == [1, 2] and not run.failed
    assert math.isclose(steps[0]["loss"], loss / tokens, rel_tol=1e-5)
    assert steps[0]["completions/mean_length"] == 2.5
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["rewards"]["total"] for sample in samples[:4]] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_method_of_the_docs(make, models):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    steps, _ = train(make("my_method", rows, per_device_train_batch_size=4))

    from transformers import AutoTokenizer

    tokenizer, loss = AutoTokenizer.from_pretrained(models[0]), 0.0
    for row in rows:
        ids = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        loss -= log_probs(models[0], tokenizer(row["prompt"])["input_ids"], ids) / len(ids) / len(rows)
    assert math.isclose(steps[0]["loss"], loss, rel_tol=1e-5)
    assert steps[1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_by_their_old_names(name, make, tmp_path):
    """As keywords of a config, and in a run file."""
    from ft_host.config.resolve import resolve

    rows, given = PAIRS, {name: FIELDS[name]}
    config = make("pairs", rows)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": config.model, "dataset": config.dataset} | given))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", FutureWarning)
        made = [make("pairs", rows, **given), resolve(type(config), path).config]
    names = {field.name for field in dataclasses.fields(config)}
    if name not in names:
        said = " ".join(str(warning.message) for warning in told)
        assert f"{name} is " in said, f"nothing says what {name} is now: {said}"
    for each in made:
        assert getattr(each, name) == FIELDS[name]
