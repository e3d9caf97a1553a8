"""The command line as a user meets it: processes, exit codes, what is printed, and what must not be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml
from ft_sft.config import SFTConfig

import ft_host
from ft_host import cli, registry
from ft_host.cli import train as train_command
from ft_host.errors import ConfigError, PluginNotFound, UsageError
from ft_host.testing.distributions import make_distribution

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")
CONFIG = """
from dataclasses import dataclass
from ft_host.config import RunConfig, option

@dataclass(kw_only=True)
class Config(RunConfig):
    beta: float = option(0.1, "How far.", gt=0)
"""
GIVEN = ["--model", "org/model", "--dataset", "org/data"]
SFT = registry.label(registry.find("method", "sft"))


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FT_HOST_")]:
        monkeypatch.delenv(name)


def called(*argv: str, code: int = 0, capsys) -> tuple[str, str]:
    """What `ft-host ARGV` prints on stdout and stderr, in this process."""
    found = cli.main(list(argv))
    out, err = capsys.readouterr()
    assert found == code, out + err
    return out, err


def process(*argv: str, site: str = "", **environment: str) -> subprocess.CompletedProcess:
    """`ft-host ARGV` in a process of its own, with `site` on its path."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = {"PYTHONPATH": site} if site else {}
    return subprocess.run(
        [sys.executable, "-m", "ft_host", *argv], env={**clean, **path, **environment}, capture_output=True, text=True
    )


def imported_by(code: str) -> set[str]:
    """The heavy packages that a piece of Python imports."""
    check = f"import sys\n{code}\nprint('IMPORTED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("IMPORTED")[2].split())


def twenty(site: Path) -> str:
    """Twenty method distributions. Their method modules raise, so importing one would show."""
    for index in range(20):
        make_distribution(
            site,
            f"ft-m{index}",
            entry_points={
                "ft_host.methods": {f"m{index}": f"ft_m{index}.method"},
                "ft_host.configs": {f"m{index}": f"ft_m{index}.config:Config"},
            },
            modules={f"ft_m{index}.method": "raise RuntimeError('imported')", f"ft_m{index}.config": CONFIG},
            requires=["ft-host>=0.1,<2"],
        )
    return str(site)


# ---------------------------------------------------------------- light


def test_nothing_heavy_is_imported_before_a_run_begins():
    Path("run.yaml").write_text("method: sft\nmodel: org/m\ndataset: org/d\n")
    for argv in (
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["train", "sft", "--help"],
        ["config", "sft"],
        ["schema", "sft"],
        ["train", "run.yaml", "--dry-run"],
        ["train", "sft", "--lerning-rate", "1"],
        ["nonsense"],
    ):
        assert imported_by(f"from ft_host.cli import main; main({argv})") == set(), argv
    assert imported_by("import ft_sft.config, ft_host.registry, ft_host.config.resolve, ft_host.errors") == set()
    refused = (
        "import ft_host\nfrom ft_sft.config import SFTConfig\n"
        "try: ft_host.train(SFTConfig(model='org/m'))\nexcept ft_host.errors.ConfigError as error: print(error)"
    )
    assert imported_by(refused) == set()


@pytest.mark.parametrize(("argv", "limit"), [(["train", "sft", "--help"], 0.3), (["--help"], 0.15)])
def test_help_is_quick_with_twenty_distributions(argv, limit, tmp_path):
    site = twenty(tmp_path / "site")
    process(*argv, site=site)  # compiles
    times = []
    for _ in range(4):
        before = psutil.Process().cpu_times()
        done = process(*argv, site=site)
        after = psutil.Process().cpu_times()
        assert done.returncode == 0, done.stderr
        of_children = (time.children_user + time.children_system for time in (after, before))
        times.append(next(of_children) - next(of_children))
    assert min(times) < limit, times  # processor time; the least, as others may be at work on this machine


def test_help_of_another_s_method_imports_its_config_only(tmp_path):
    done = process("train", "m7", "--help", site=twenty(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert "m7's own fields\n  --beta NUMBER  (default: 0.1; above 0)\n      How far.\n" in done.stdout


# ---------------------------------------------------------------- commands and exit codes


def test_the_commands_are_listed_and_exist(capsys):
    out, _ = called("--help", capsys=capsys)
    for name, (module, about) in cli.COMMANDS.items():
        assert f"\n  {name} " in out and about in out
        path = Path(ft_host.__file__).parent.parent / (module.replace(".", "/") + ".py")
        assert path.is_file(), f"{module} is missing"
    out, _ = called(code=2, capsys=capsys)
    assert "usage: ft-host COMMAND" in out
    assert called("--version", capsys=capsys)[0] == f"ft-host {ft_host.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["trian"], 2, "ft-host: error: no command 'trian'; did you mean train?\n"),
        (["sft"], 2, "no command 'sft'; did you mean ft-host train sft?"),
        (["run.yaml"], 2, "no command 'run.yaml'; did you mean ft-host train run.yaml?"),
        (["xyzzy"], 2, "no command 'xyzzy'; there are train, autopilot, diagnose,"),
        (["train"], 2, "expected ft-host train METHOD [CONFIG] [--field value ...]"),
        (["train", "--seed", "1", "sft"], 2, "--seed comes too early; expected ft-host train METHOD"),
        (["train", "stf", *GIVEN], 4, "did you mean 'sft'?"),
        (["train", "sft", "rum.yaml"], 2, "rum.yaml: no such file"),
        (["train", "sft", "a.yaml", "b.yaml"], 2, "a.yaml: no such file"),
        (["train", "sft", "a.txt"], 2, "a.txt: a config file ends in .yaml, .yml, .toml, .json"),
        (["train", "sft"], 2, "model is required: give --model"),
        (["train", "--resume"], 2, "--resume needs the folder of a run"),
        (["train", "--resume", "runs/none"], 2, "runs/none is not a run's folder"),
        (["train", "sft", "--resume", "runs/a"], 2, "the run knows its method and its config; unexpected sft"),
        (["train", "sft", *GIVEN, "--required-plugins", "ft-sft>=9"], 3, f"{SFT} is installed"),
        (["train", "sft", *GIVEN, "--diagnostics", "nonesuch"], 4, "no diagnostics 'nonesuch' is installed"),
        (
            ["train", "sft", *GIVEN, "--eval-dataset", "a/b", "--eval-reward", "json:loads", "--backend", "vlm"],
            4,
            "no backend 'vlm' is installed",
        ),
        (["config", "stf"], 4, "did you mean 'sft'?"),
        (["config"], 2, "the following arguments are required: METHOD"),
        (["config", "sft", "--form", "toml"], 2, "unrecognized arguments: --form toml"),
        (["schema", "sft", "x"], 2, "unrecognized arguments: x"),
    ],
)
def test_refusals_have_exit_codes_and_no_traceback(argv, code, said, capsys):
    out, err = called(*argv, code=code, capsys=capsys)
    assert said in err and "Traceback" not in err and out == ""


def test_a_traceback_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FT_HOST_TRACEBACK", "1")
    _, err = called("train", "sft", code=2, capsys=capsys)
    assert "Traceback" in err and err.rstrip().splitlines()[-3].startswith("ft-host: error: 2 problems")


def test_interrupts_and_errors_that_are_ours_not_to_hide(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "run", interrupted)
    assert "interrupted" in called("train", code=130, capsys=capsys)[1]

    def broken(argv):
        raise ValueError("a bug")

    monkeypatch.setattr(train_command, "run", broken)
    said = called("train", code=1, capsys=capsys)[1]
    assert "error: ValueError: a bug" in said and "FT_HOST_TRACEBACK=1" in said and "Traceback (" not in said

    def pipe(argv):
        raise BrokenPipeError("a worker's pipe, not our output")

    monkeypatch.setattr(train_command, "run", pipe)
    assert "a worker's pipe" in called("train", code=1, capsys=capsys)[1]


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m ft_host schema sft | head -n 1; echo ${{PIPESTATUS[0]}}"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.stderr == "" and done.stdout.splitlines()[1] in ("0", "141")  # 0: all was written before it left
    closed = f"{sys.executable} -m ft_host train sft --help | (exec 0<&-; sleep 1); echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


# ---------------------------------------------------------------- what is made from the fields


def test_config_and_schema_print_files_that_can_be_read(capsys):
    assert yaml.safe_load(called("config", "sft", capsys=capsys)[0]) == {"method": "sft", "model": "", "dataset": ""}
    assert tomllib.loads(called("config", "sft", "--format", "toml", capsys=capsys)[0])["method"] == "sft"
    loss_type = json.loads(called("schema", "sft", capsys=capsys)[0])["properties"]["loss_type"]
    ours, theirs = loss_type["anyOf"]  # and TRL's word for nll
    assert ours["enum"] == ["nll", "dft"] and theirs["enum"] == ["chunked_nll"]


# ---------------------------------------------------------------- train


def dry(*argv: str, capsys) -> dict:
    return yaml.safe_load(called("train", *argv, "--dry-run", capsys=capsys)[0])


def test_the_method_may_stand_in_the_file(capsys):
    Path("run.yaml").write_text("method: sft\nmodel: org/m\ndataset: org/d\nlearning_rate: 1e-4\n")
    assert dry("run.yaml", capsys=capsys)["learning_rate"] == 1e-4
    assert dry("sft", "run.yaml", "--learning-rate", "1e-3", capsys=capsys)["learning_rate"] == 1e-3
    assert dry("ft-sft:sft", "run.yaml", capsys=capsys)["model"] == "org/m"
    out, _ = called("train", "run.yaml", "--dry-run", capsys=capsys)
    assert f"# method: sft ({SFT}, stable)" in out
    assert "learning_rate: 0.0001                             # run.yaml:4" in out
    assert "sft's own fields" in called("train", "run.yaml", "--help", capsys=capsys)[0]

    Path("run.yaml").write_text("model: org/m\ndataset: org/d\nmethod: stf\n")
    _, err = called("train", "run.yaml", code=4, capsys=capsys)
    assert err.startswith("ft-host: error: run.yaml:3: no method 'stf' is installed; did you mean 'sft'?")
    _, err = called("train", "sft", "run.yaml", code=2, capsys=capsys)
    assert "run.yaml:3: method: the file is for stf, the command line says sft" in err
    Path("run.yaml").write_text("model: org/m\n")
    assert "run.yaml names no method" in called("train", "run.yaml", code=2, capsys=capsys)[1]


def test_a_folder_with_a_run_is_refused_before_anything_heavy(capsys):
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text("{}")
    _, err = called("train", "sft", *GIVEN, "--output-dir", "runs/a", code=2, capsys=capsys)
    assert "output_dir: runs/a holds a run; `ft-host train --resume runs/a` goes on with it" in err


def begun(config: SFTConfig, **others) -> Path:
    """A run's folder as launch leaves it, as far as resuming reads it here."""
    from dataclasses import asdict

    folder = Path("runs/a")
    folder.mkdir(parents=True, exist_ok=True)
    origins = {"seed": "run.yaml:2"}
    record = {"format": 1, "method": "sft", "reference": "ft-sft:sft", "config": asdict(config), "origins": origins}
    (folder / "run.json").write_text(json.dumps(record | others))
    return folder


def test_resuming_reads_the_run_s_own_config(capsys):
    begun(SFTConfig(model="org/m", dataset="org/d", seed=7, max_steps=5))
    out, _ = called("train", "--resume", "runs/a", "--max-steps", "9", "--dry-run", capsys=capsys)
    values = yaml.safe_load(out)
    assert (values["seed"], values["max_steps"], values["model"]) == (7, 9, "org/m")
    assert [line for line in out.splitlines() if line.startswith("seed: 7")][0].endswith("# run.yaml:2")
    assert dry("--max-steps", "9", "--resume=runs/a", capsys=capsys)["max_steps"] == 9
    _, err = called("train", "--resume", "runs/a", "--learning-rate", "1", code=2, capsys=capsys)
    assert "--learning-rate can't change when a run is resumed; these can: --max-steps" in err
    begun(SFTConfig(model="./gone", dataset="org/d"))
    _, err = called("train", "--resume", "runs/a", code=2, capsys=capsys)
    assert "runs/a/run.json: model: ./gone: no such file or folder" in err
    begun(SFTConfig(model="org/m", dataset="org/d"), reference="ft-x:sft")
    assert "no method 'ft-x:sft' is installed" in called("train", "--resume", "runs/a", code=4, capsys=capsys)[1]


def test_the_command_line_is_taken_apart():
    Path("run.yaml").write_text("method: sft\n")
    asked = train_command.read(["sft", "run.yaml", "--seed", "1", "--dry_run"])
    assert (asked.method, asked.file.path, asked.flags, asked.dry_run) == ("sft", "run.yaml", ["--seed", "1"], True)
    asked = train_command.read(["./my_method.py", "--seed", "1"])
    assert (asked.method, asked.file) == ("./my_method.py", None)
    with pytest.raises(UsageError, match="unexpected 'more' after run.yaml"):
        train_command.read(["run.yaml", "more"])


# ---------------------------------------------------------------- from Python


def test_train_in_python_refuses_as_the_command_line_does(monkeypatch):
    with pytest.raises(ConfigError, match="dataset is required"):
        ft_host.train(SFTConfig(model="org/m"))
    with pytest.raises(ConfigError, match="num_processes: 2 processes are started by `ft-host train`"):
        ft_host.train(SFTConfig(model="org/m", dataset="org/d", num_processes=2))
    with pytest.raises(PluginNotFound, match="nonesuch"):
        ft_host.train(SFTConfig(model="org/m", dataset="org/d", required_plugins=["nonesuch"]))
