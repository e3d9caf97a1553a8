"""`ft-host plugins`: what it prints, and what it must not import to do so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import ft_host
from ft_host.registry.conformance import Recorded
from ft_host.testing.distributions import make_distribution

DOCS = Path(__file__).parent.parent / "docs"
HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft")
CONFIG = """
from dataclasses import dataclass
from ft_host.config import RunConfig

@dataclass(kw_only=True)
class Config(RunConfig):
    pass
"""
METHOD = """
from ft_host import hookimpl
print("noise on stdout")

@hookimpl
def ft_prepare(row):
    return row

@hookimpl
def ft_collate(rows):
    return rows

@hookimpl
def ft_loss(batch):
    return 0
"""


def install(site, name, *, method=METHOD, distribution=None, requires=("ft-host>=0.1,<2",), **others):
    make_distribution(
        site,
        distribution or f"ft-{name}",
        entry_points={
            "ft_host.methods": {name: f"fake_{name}.method"},
            "ft_host.configs": {name: f"fake_{name}.config:Config"},
        },
        modules={f"fake_{name}.method": method, f"fake_{name}.config": CONFIG},
        requires=requires,
        classifiers=["Development Status :: 4 - Beta"],
        **others,
    )


def plugins(*argv, site="", code=0, after="", **environment):
    """What `ft-host plugins ARGV` prints, in a process of its own that then runs `after`."""
    call = (
        "import sys\n"
        "from ft_host.cli.plugins import run\n"
        "from ft_host.errors import FtHostError\n"
        "try:\n"
        f"    code = run({list(argv)!r})\n"
        "except FtHostError as err:\n"
        "    print(err, file=sys.stderr)\n"
        "    code = err.exit_code\n"
        f"{after}\n"
        "raise SystemExit(code)\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FT_HOST_")}
    path = os.pathsep.join([str(site), *([clean["PYTHONPATH"]] if clean.get("PYTHONPATH") else [])])
    done = subprocess.run(
        [sys.executable, "-c", call],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code in (0, 3) and done.stdout else done.stderr


def test_the_table_has_a_line_for_each_plugin(tmp_path):
    install(tmp_path, "alpha", version="0.3.1")
    lines = plugins(site=tmp_path).splitlines()
    assert lines[0].split() == ["name", "kind", "version", "stability", "distribution", "state"]
    rows = {line.split()[0]: line.split() for line in lines[1:] if line}
    assert rows["alpha"] == ["alpha", "method", "0.3.1", "experimental", "ft-alpha", "ok"]
    assert ["sft", "diagnostics", "1.0.0", "stable", "ft-sft", "ok"] in [line.split() for line in lines[1:]]
    rows = {line.split()[0]: line.split() for line in lines[1:] if line and line.split()[1] != "diagnostics"}
    assert rows["sft"] == ["sft", "method", "1.0.0", "stable", "ft-sft", "ok"]
    assert rows["transformers"][1:5] == ["backend", ft_host.__version__, "stable", "ft-host"]
    starts = [lines[0].index(column) for column in ("kind", "version", "stability", "distribution", "state")]
    assert all(line[start - 1] == " " and line[start] != " " for line in lines[:4] for start in starts)


def test_problems_notes_and_vain_names_stand_below_the_table(tmp_path):
    install(tmp_path, "alpha", requires=["ft-host>=9"])
    install(tmp_path, "beta", version="2.0")
    text = plugins(site=tmp_path, FT_HOST_BLOCK="ft-sft,ft-stf")
    assert "ft-alpha:alpha (method, 0.1.0): needs ft-host>=9, and this is ft-host" in text
    assert "ft-beta:beta (method, 2.0): version 2.0 says stable" in text
    assert "ft-sft:sft (method, 1.0.0): blocked by the environment variable FT_HOST_BLOCK" in text
    assert "FT_HOST_BLOCK names 'ft-stf'" in text and "names 'ft-sft'" not in text


def test_json_has_the_documented_shape(tmp_path):
    install(tmp_path, "alpha", version="0.3.1", summary="A method")
    document = json.loads(plugins("--json", site=tmp_path))
    assert document["format"] == 1 and document["host"] == {"distribution": "ft-host", "version": ft_host.__version__}
    (alpha,) = [entry for entry in document["plugins"] if entry["name"] == "alpha"]
    assert alpha == {
        "name": "alpha",
        "kind": "method",
        "distribution": "ft-alpha",
        "version": "0.3.1",
        "stability": "experimental",
        "state": "ok",
        "problem": None,
        "notes": [],
        "compatible": True,
        "requires_host": "<2,>=0.1",
        "requires": ["ft-host>=0.1,<2"],
        "entry_point": "fake_alpha.method",
        "implied": False,
        "config": "fake_alpha.config:Config",
        "location": str(tmp_path / "fake_alpha" / "method.py"),
        "summary": "A method",
        "conformance": None,
    }

    (checked,) = json.loads(plugins("show", "alpha", "--check", "--json", site=tmp_path))["plugins"]
    documented = re.findall(
        r"^\| `(\w+)` \| (?:string|integer|object|array|boolean|number)",
        (DOCS / "plugins-json.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    of_a_record = [field.name for field in fields(Recorded)]
    assert documented == [*document, *document["host"], *checked, *checked["check"], *of_a_record]


def test_show_prints_what_the_metadata_says(tmp_path):
    install(tmp_path, "alpha", summary="A method")
    for name in ("alpha", "ft-alpha:alpha", "FT_alpha"):
        text = plugins("show", name, site=tmp_path)
        for line in (
            "summary       A method",
            "distribution  ft-alpha 0.1.0",
            "entry point   ft_host.methods: alpha = fake_alpha.method",
            "config        ft_host.configs: alpha = fake_alpha.config:Config",
            f"location      {tmp_path / 'fake_alpha' / 'method.py'}",
            "requires      ft-host>=0.1,<2",
        ):
            assert line in text
    text = plugins("show", "alhpa", site=tmp_path, code=4)
    assert "no plugin 'alhpa' is installed; did you mean 'alpha'?" in text
    assert "missing" in plugins("show", site=tmp_path, code=2)


def test_requirements_are_pins(tmp_path):
    install(tmp_path, "alpha", version="0.3.1")
    install(tmp_path, "beta")
    vcs = {"url": "https://example.org/ft.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}
    (tmp_path / "ft_beta-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(vcs))
    from packaging.requirements import Requirement

    lines = plugins("--requirements", site=tmp_path).splitlines()
    assert "ft-alpha==0.3.1" in lines and "ft-beta @ git+https://example.org/ft.git@abc123" in lines
    names = [Requirement(line.partition(" #")[0]).name for line in lines]
    assert names == sorted(names) and {"ft-host", "ft-sft", "ft-alpha", "ft-beta"} <= set(names)
    assert "ft-alpha" not in plugins("--requirements", site=tmp_path, FT_HOST_BLOCK="ft-alpha")
    assert "can't be combined" in plugins("--requirements", "--json", code=2)


def test_check_imports_each_plugin_in_a_process_of_its_own(tmp_path):
    install(tmp_path, "good")
    install(tmp_path, "old", requires=["ft-host>=9"])
    install(tmp_path, "shut", method="raise RuntimeError('blocked')")
    install(tmp_path, "hook", method=METHOD.replace("ft_loss", "ft_lost"))
    install(tmp_path, "exit", method="import os\nos._exit(0)")
    install(tmp_path, "crash", method="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    # It hangs, with a child of its own that keeps the output open.
    install(
        tmp_path,
        "hang",
        method="import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
    )
    only = {"FT_HOST_PLUGINS": "ft-good,ft-old,ft-hook,ft-exit,ft-crash,ft-hang", "FT_HOST_BLOCK": "ft-host"}
    document = json.loads(plugins("--check", "--json", "--timeout", "5", site=tmp_path, code=3, **only))
    found = {entry["name"]: entry["check"] for entry in document["plugins"]}
    results = {name: check["result"] for name, check in found.items()}
    assert results == {
        "good": "ok",
        "old": "incompatible",
        "shut": "blocked",
        "hook": "broken",
        "exit": "broken",
        "crash": "broken",
        "hang": "broken",
        "transformers": "blocked",
        "gkd": "blocked",  # of ft-distill
        **{path.name.removeprefix("ft-"): "blocked" for path in Path(__file__).parent.parent.glob("plugins/ft-*")},
    }
    assert found["good"]["cause"] is None and found["good"]["seconds"] > 0
    assert found["hook"]["cause"].startswith(f"ft-hook 0.1.0 ({tmp_path / 'fake_hook' / 'method.py'}): implements 'ft")
    assert found["exit"]["cause"] == "its import ended the interpreter with exit code 0"
    assert found["crash"]["cause"] == "its import was ended by SIGKILL"
    assert found["hang"]["cause"] == "its import took longer than 5 s"

    only["FT_HOST_PLUGINS"] = "ft-good,ft-old"
    text = plugins("--check", site=tmp_path, code=0, **only)  # incompatible is known, not broken
    states = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.strip()}
    assert states["good"] == "ok" and states["old"] == "incompatible" and states["hook"] == "blocked"


@pytest.mark.parametrize("argv", [[], ["--json"], ["show", "sft"], ["--requirements"]])
def test_listing_imports_nothing_heavy_and_no_plugin(tmp_path, argv):
    for index in range(20):
        install(tmp_path, f"n{index}", method="raise RuntimeError('imported')")
    after = (
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "plugins = [name for name in sys.modules if name.partition('.')[0].startswith(('fake_', 'ft_sft'))]\n"
        "assert not heavy + plugins, heavy + plugins"
    )
    plugins(*argv, site=tmp_path, after=after)


def test_the_config_of_sft_imports_nothing_heavy():
    call = f"import sys, ft_sft.config; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_listing_with_twenty_plugins_is_quick(tmp_path):
    """A guard against importing or parsing something big; the aim of 0.2 s is measured by hand, not here."""
    for index in range(20):
        install(tmp_path, f"n{index}", method="raise RuntimeError('imported')")
    text = plugins(site=tmp_path, after="import time; print(time.process_time())")
    assert len(text.splitlines()) >= 22
    assert float(text.splitlines()[-1]) < 2.0


def test_a_config_that_imports_torch_is_noted(tmp_path):
    install(tmp_path, "alpha")
    install(tmp_path, "heavy")
    config = tmp_path / "fake_heavy" / "config.py"
    config.write_text("import torch\n" + config.read_text())
    heavy, alpha = (
        json.loads(plugins("show", name, "--check", "--json", site=tmp_path))["plugins"][0]["check"]
        for name in ("heavy", "alpha")
    )
    assert heavy["result"] == alpha["result"] == "ok" and alpha["notes"] == []
    assert heavy["notes"] == [
        "its config, fake_heavy.config:Config, imports torch, for which --help and every refusal then wait"
    ]
    assert heavy["notes"][0] in plugins("show", "heavy", "--check", site=tmp_path)
