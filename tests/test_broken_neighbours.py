"""A broken neighbour harms nobody: it is listed, refused by name, and never imported unless it is chosen.

Beside the real ft-sft stand: a plugin that raises on import, one with a bad entry point, one for another host, and one
that claims the name `sft`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft_host.testing import command
from ft_host.testing.distributions import make_distribution

RAISES = "from fake_no_such_library import anything\n"
CONFIG = """
from dataclasses import dataclass
from ft_host.config import RunConfig

@dataclass(kw_only=True)
class Config(RunConfig):
    pass
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    for name, distribution, requires, method in (
        ("raising", "ft-raising", "ft-host>=0.1,<2", RAISES),
        ("future", "ft-future", "ft-host>=7,<8", RAISES),
        ("sft", "rival-sft", "ft-host>=0.1", RAISES),
    ):
        package = "fake_" + distribution.replace("-", "_")
        make_distribution(
            folder,
            distribution,
            "0.4.2",
            requires=[requires],
            entry_points={
                "ft_host.methods": {name: f"{package}.method"},
                "ft_host.configs": {name: f"{package}.config:Config"},
            },
            modules={f"{package}.method": method, f"{package}.config": CONFIG},
        )
    make_distribution(
        folder,
        "ft-crooked",
        "0.4.2",
        requires=["ft-host>=0.1"],
        entry_points="[ft_host.methods]\ncrooked = fake-crooked/method.py\n",
        modules={"fake_crooked": RAISES},
    )
    return folder


def with_neighbours(site) -> dict[str, str]:
    """The environment of a process that finds the neighbours installed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FT_HOST_")}
    path = os.pathsep.join([str(site), *([clean["PYTHONPATH"]] if clean.get("PYTHONPATH") else [])])
    return {**clean, "PYTHONPATH": path}


def python(site, *argv, **environment):
    """(exit code, stdout, stderr) of Python with the neighbours installed."""
    done = subprocess.run(
        [sys.executable, *argv],
        env={**with_neighbours(site), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_all_are_listed_with_their_state(site):
    code, out, err = python(site, "-m", "ft_host", "plugins", "--json")
    assert code == 0, err
    listed = [entry for entry in json.loads(out)["plugins"] if entry["kind"] != "diagnostics"]
    found = {(entry["distribution"], entry["name"]): entry for entry in listed}
    assert found["ft-raising", "raising"]["state"] == "ok"  # only importing it can tell
    assert found["ft-future", "future"]["state"] == "incompatible"
    assert found["ft-future", "future"]["problem"].startswith("needs ft-host<8,>=7, and this is ft-host 1.")
    assert found["ft-crooked", "crooked"]["state"] == "broken"
    assert "'fake-crooked/method.py'" in found["ft-crooked", "crooked"]["problem"]
    assert found["ft-sft", "sft"]["state"] == found["rival-sft", "sft"]["state"] == "conflict"
    assert "rival-sft" in found["ft-sft", "sft"]["problem"]


def test_check_says_which_cannot_be_imported(site):
    ours = ["ft-host", *(path.name for path in Path(__file__).parent.parent.glob("plugins/ft-*"))]
    others = {"FT_HOST_BLOCK": ",".join(ours)}  # so that torch needn't be imported here
    code, out, err = python(site, "-m", "ft_host", "plugins", "--check", "--json", **others)
    assert code == 3, err
    checks = {entry["distribution"]: entry["check"] for entry in json.loads(out)["plugins"]}
    assert {name: check["result"] for name, check in checks.items()} == {
        "ft-raising": "broken",
        "ft-crooked": "broken",
        "rival-sft": "broken",
        "ft-future": "incompatible",
        **dict.fromkeys(ours, "blocked"),
    }
    assert "ModuleNotFoundError: No module named 'fake_no_such_library'" in checks["ft-raising"]["cause"]
    assert "ft-raising 0.4.2" in checks["ft-raising"]["cause"]


def test_the_right_one_is_found_loaded_and_registered(site):
    call = (
        "import sys\n"
        "from ft_host.registry import config_class, find, session\n"
        "info = find('method', 'ft-sft:sft')\n"
        "assert config_class(info).__name__ == 'SFTConfig'\n"
        "manager = session(info, None, [])\n"
        "print(*(name for name, _ in manager.list_name_plugin()), sep=', ')\n"
        "print([name for name in sys.modules if name.startswith('fake_')])\n"
    )
    code, out, err = python(site, "-c", call)
    assert code == 0, err
    assert out.splitlines() == ["method ft-sft:sft", "[]"]


@pytest.mark.parametrize(
    "method, code, expected",
    [
        ("raising", 3, ["ft-raising 0.4.2", "fake_no_such_library", "method.py, line 1"]),
        ("rival-sft:sft", 3, ["rival-sft 0.4.2", "fake_no_such_library"]),
        ("future", 3, ["ft-future 0.4.2", "needs ft-host<8,>=7", "ft-host 1."]),
        ("crooked", 3, ["ft-crooked 0.4.2", "fake-crooked/method.py"]),
        ("stf", 4, ["no method 'stf'", "did you mean 'sft'", "raising (ft-raising 0.4.2)"]),
        ("sft", 2, ["ft-sft:sft", "rival-sft:sft", "ft-sft 1.", "rival-sft 0.4.2"]),
    ],
)
def test_each_refusal_names_distribution_version_and_cause(site, tmp_path, method, code, expected):
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"text": "a"}\n')
    argv = ["train", method, "--model", str(tmp_path), "--dataset", str(rows), "--output-dir", str(run)]
    done = command(*argv, environment=with_neighbours(site))
    assert done.returncode == code, done.stdout + done.stderr
    for text in expected:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    # a method that can't be found or told from another has no config, and so nothing to keep
    assert not run.exists() or json.loads((run / "run.json").read_text())["status"] == "refused"


@pytest.mark.parametrize("method, code", [("ft-sft:sft", 0), ("future", 3), ("crooked", 3), ("stf", 4), ("sft", 2)])
def test_help_answers_as_training_would(site, method, code):
    got, out, err = python(site, "-m", "ft_host", "train", method, "--help")
    assert got == code, out + err
    if code == 0:
        assert "learning-rate" in out.replace("_", "-") and "completion" in out


def test_blocking_the_neighbours_makes_the_bare_name_plain_again(site):
    for environment in ({"FT_HOST_BLOCK": "rival-sft"}, {"FT_HOST_PLUGINS": "ft-sft"}):
        code, out, err = python(site, "-m", "ft_host", "train", "sft", "--help", **environment)
        assert code == 0, out + err
