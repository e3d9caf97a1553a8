"""A run's folder may come from somebody else. Nothing in it is executed by reading it: not by Python, not by a browser,
not by a terminal."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import os
import pickle
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from ft_host.cli import main
from ft_host.errors import UsageError
from ft_host.report.assets import SCRIPT
from ft_host.rundir.checkpoints import INDEX, checksum, index_of
from ft_host.testing.runs import made_finding, make_run
from ft_host.training.launch import train
from ft_host.training.state_reader import read_index

# ---------------------------------------------------------------- checkpoints


class Evil:
    """A pickle of it makes a file where it is read."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture(scope="module")
def two_steps(tiny, tmp_path_factory):
    from ft_sft.config import SFTConfig

    folder = tmp_path_factory.mktemp("hostile")
    config = SFTConfig(
        model=str(tiny / "model"),
        dataset=str(tiny / "train.jsonl"),
        per_device_train_batch_size=2,
        max_steps=2,
        output_dir=str(folder / "run"),
        progress="quiet",
    )
    train(config)
    return config


@pytest.fixture
def shared(two_steps, tmp_path):
    """A copy of a run of two steps, whose checkpoint somebody has changed and signed anew, and its config."""
    folder = tmp_path / "run"
    shutil.copytree(two_steps.output_dir, folder)
    place = folder / "checkpoints" / "step-2"

    def sign() -> None:
        (place / INDEX).unlink()
        files = {path.relative_to(place).as_posix(): checksum(path) for path in place.rglob("*") if path.is_file()}
        (place / INDEX).write_text(json.dumps(index_of(files)))

    return place, sign, dataclasses.replace(two_steps, output_dir=str(folder), max_steps=3)


def refusal(config: Any) -> str:
    with pytest.raises(UsageError) as refused:
        train(config, resume=config.output_dir)
    return str(refused.value)


def test_an_index_that_is_a_program_is_refused_and_not_run(shared, tmp_path):
    place, sign, config = shared
    (place / "state" / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    sign()
    assert f"{place}/state/.metadata: posix.mkdir is none of the classes of an index" in refusal(config)
    assert not (tmp_path / "made").exists()


class Got:
    """Pickled as `getattr(owner, name)`."""

    def __init__(self, owner: Any, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


def test_members_of_enumerations_are_read_as_any_python_writes_them(tmp_path):
    """Python 3.11.2 has `getattr` for them in a pickle. Of anything else it would be a program."""

    def read(what: Got) -> Any:
        index = Metadata(state_dict_metadata={}, storage_data={}, planner_data=what)
        return read_index(io.BytesIO(pickle.dumps(index)), tmp_path).planner_data

    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    assert read(Got(_MEM_FORMAT_ENCODING, member.name)) is member
    for owner, name in ((_MEM_FORMAT_ENCODING, "__class__"), (Path, "home"), (torch.Size, "numel")):
        with pytest.raises(UsageError, match="none of the members of an index"):
            read(Got(owner, name))


@pytest.mark.parametrize("kind", ["value", "tensor"])
def test_a_program_among_values_or_tensors_is_refused_and_not_run(shared, tmp_path, kind):
    place, sign, config = shared
    file = place / "state" / ".metadata"
    with file.open("rb") as content:
        index = read_index(content, file)
    name = "optimizer.param_groups.0.betas" if kind == "value" else "exp_avg"
    at = next(each for each in index.storage_data if name in each.fqn)
    evil = io.BytesIO()
    torch.save(Evil(tmp_path / "made"), evil)
    data = place / "state" / index.storage_data[at].relative_path
    index.storage_data[at].offset, index.storage_data[at].length = data.stat().st_size, len(evil.getvalue())
    data.write_bytes(data.read_bytes() + evil.getvalue())
    file.write_bytes(pickle.dumps(index))
    sign()
    said = refusal(config)
    assert str(data) in said and "holds posix.mkdir" in said and "Nothing of it was executed" in said
    assert (name in said) == (kind == "value")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b"])
def test_an_index_names_files_beside_it_alone(shared, name):
    place, sign, config = shared
    file = place / "state" / ".metadata"
    index = pickle.loads(file.read_bytes())  # of this test's own run
    for info in index.storage_data.values():
        info.relative_path = name
    file.write_bytes(pickle.dumps(index))
    sign()
    assert f"it names the file {name!r}, which is not beside it" in refusal(config)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        pickle.dumps({"a": 1}),
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",
        b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x09os.system\x93.",
    ],
)
def test_what_is_no_index_is_refused_by_name(content):
    with pytest.raises(UsageError, match="state/.metadata: .*Nothing of it was executed"):
        read_index(io.BytesIO(content), Path("state/.metadata"))


def test_an_index_as_torch_writes_it_is_read_whole(two_steps):
    file = Path(two_steps.output_dir) / "checkpoints" / "step-2" / "state" / ".metadata"
    with file.open("rb") as content:
        assert read_index(content, file) == pickle.loads(file.read_bytes())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_weights_that_are_a_program_are_refused_and_not_run(tiny, tmp_path, config, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny / "model", folder)
    if name == "adapter_model.bin":
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(tiny / "model"), "task_type": "CAUSAL_LM"}
        for file in folder.iterdir():
            file.unlink()
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
        shutil.copy(tiny / "model" / "tokenizer.json", folder)
    else:
        (folder / "model.safetensors").unlink()
    torch.save({"a": Evil(tmp_path / "made")}, folder / name)
    with pytest.raises(UsageError):
        train(dataclasses.replace(config, model=str(folder), use_peft=name == "adapter_model.bin"))
    assert not (tmp_path / "made").exists()


def test_reading_a_run_imports_no_file_in_its_folder(tmp_path, capsys):
    folder = make_run(tmp_path / "run", steps=4, eval_steps=None)
    evil = folder / "evil.py"
    evil.write_text(f"import os\n\nos.mkdir({str(tmp_path / 'made')!r})\n\ndef ft_rules():\n    return []\n")
    info = json.loads((folder / "run.json").read_text())
    plugin = {"kind": "diagnostics", "name": "evil", "distribution": "", "version": "", "location": str(evil)}
    info |= {"reference": str(evil), "plugins": [*info["plugins"], plugin]}
    (folder / "run.json").write_text(json.dumps(info))
    for command in ("report", "runs", "diagnose"):
        assert main([command, str(folder)]) == 0, capsys.readouterr().err
    assert "evil.py is in the run's folder" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "made").exists()


# ---------------------------------------------------------------- pages and terminals

EVIL = (
    "<script>alert(1)</script>\"onmouseover=alert(2) '><img src=x onerror=alert(3)></pre></script><!--"
    "\u2028\x1b[31m\x9b\ud83d"
)
KEPT = {"status", "kind", "state", "severity", "level", "created", "finished", "time", "format", "method", "code"}


def hostile(value: Any) -> Any:
    """Every text and every name in it replaced, but those that a reader compares with its own words."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [hostile(each) for each in value]
    if isinstance(value, dict):
        return {name: each if name in KEPT else hostile(each) for name, each in value.items()}
    return value


def renamed(value: dict[str, Any]) -> dict[str, Any]:
    return value | {f"{name}{EVIL}": each for name, each in value.items() if name not in KEPT}


@pytest.fixture
def hostile_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, speed in (("a", 1.0), ("b", 0.5)):
        folder = make_run(tmp_path / f"{name}<i>", steps=30, eval_steps=10, rollouts=True, speed=speed)
        (folder / "findings.jsonl").write_text(json.dumps(hostile(made_finding())) + "\n")
        info = json.loads((folder / "run.json").read_text())
        written = hostile(info) | {"config": renamed(hostile(info["config"])), "status": "failed", "error": EVIL}
        written["environment"] = renamed(written["environment"])
        written |= {"parent": EVIL, "wrappers": [EVIL], "origins": {f"learning_rate{EVIL}": EVIL}}
        (folder / "run.json").write_text(json.dumps(written))
        for log in ("metrics.jsonl", "samples.jsonl", "events.jsonl"):
            lines = [json.loads(line) for line in (folder / log).read_text().splitlines()]
            lines = [renamed(line if log == "metrics.jsonl" else hostile(line)) for line in lines]
            (folder / log).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(tmp_path / "a<i>"), str(tmp_path / "b<i>")]


class Seen(HTMLParser):
    """What a browser would make of a page: elements, attributes, and what is between script tags."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self.shown, self.within = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.within = tag

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts.append(data)
        self.shown += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


def check_page(text: str) -> None:
    seen = Seen(text)
    assert seen.scripts == [SCRIPT]
    assert not seen.tags & {"img", "iframe", "object", "embed", "form", "a", "base", "i<"}
    assert not [name for name in seen.attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
    assert "<script>alert(1)</script>" in seen.shown  # shown as the text that it is
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "default-src 'none'" in html.unescape(text)


def test_a_report_shows_what_a_folder_holds_and_executes_none_of_it(hostile_runs, capsys):
    for folder in hostile_runs:
        assert main(["report", folder]) == 0, capsys.readouterr().err
        check_page((Path(folder) / "report.html").read_text(encoding="utf-8"))
    assert main(["compare", *hostile_runs, "--output", "compare.html"]) == 0
    check_page(Path("compare.html").read_text(encoding="utf-8"))


def test_an_autopilots_page_executes_nothing(hostile_runs):
    from ft_host.autopilot.attempts import Attempt, Autopilot, Change
    from ft_host.autopilot.page import flight_page

    flight = Autopilot(folder=Path(hostile_runs[0]), method="sft", config={}, budget=2, locked=[])
    change = Change(finding=EVIL, message=EVIL, remedy=EVIL, patch={EVIL: [EVIL, EVIL]}, checkpoint=EVIL)
    flight.attempts = [
        Attempt(number=1, folder=hostile_runs[0], values={}, change=None),
        Attempt(number=2, folder=hostile_runs[1], values={}, change=change, metrics={EVIL: 1.0}),
    ]
    check_page(flight_page(flight))


def test_terminals_act_on_nothing_that_a_folder_holds(hostile_runs, capsys):
    shown = []
    for command in (
        ["runs", "."],
        ["runs", ".", "--json"],
        ["compare", *hostile_runs, "--output", "compare.html"],
        ["compare", *hostile_runs, "--json"],
        ["diagnose", hostile_runs[0]],
        ["diagnose", hostile_runs[0], "--format", "json"],
        ["diagnose", hostile_runs[0], "--format", "sarif"],
        ["report", hostile_runs[0]],
        ["patch", hostile_runs[0], "NUM001"],
        ["train", "--resume", hostile_runs[0]],
        ["train", "sft", f"--learning_rate{EVIL}", "1"],
    ):
        main(command)
        out, err = capsys.readouterr()
        assert out or err, command
        found = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\ud800-\udfff]", out + err)
        assert not found, (command, found)
        shown.append(out + err)
    assert any("\\x1b[31m" in text for text in shown)  # as the text that it is


def test_tokens_with_escapes_are_shown_as_text(tiny, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a\x1b[31mb", "completion": " c\x9bd", "id\x1b": "\x1b"}) + "\n")
    for color in ("--no-color", "--color"):
        code = main(["data", "sft", "--model", str(tiny / "model"), "--dataset", str(rows), color])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert not re.search(r"\x1b\[31m|\x9b", out)
