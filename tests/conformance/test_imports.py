"""Checks about imports and hooks: each catches a package that is wrong in this way, and a right one passes."""

from __future__ import annotations

import ast

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.check import FAILED, LEFT_OUT, PASSED
from ft_host.testing.conformance.checks import imports
from ft_host.testing.conformance.probe import package_of
from ft_host.testing.conformance.run import Suite

AT_TOP = "import torch\nfrom ft_host.api import "
CONFIG = {"file": "config.py"}
WRONG = [
    Wrong(
        **CONFIG,
        name="a config that imports torch",
        old="from typing import ClassVar\n",
        new="from typing import ClassVar\n\nimport torch\n",
        fails="imports-config",
    ),
    Wrong(
        name="a seed that is set by an import",
        old=AT_TOP,
        new=AT_TOP.replace("\n", "\n\ntorch.manual_seed(0)\n"),
        fails="imports-side-effects",
    ),
    Wrong(
        name="a second of work in an import",
        old=AT_TOP,
        new=f"import time\nbegan = time.process_time()\nwhile time.process_time() < began + 1.1:\n    pass\n{AT_TOP}",
        fails="imports-time",
    ),
    Wrong(
        name="a module of the host behind the doors",
        old=AT_TOP,
        new=AT_TOP.replace("\n", "\nfrom ft_host.batch import IGNORE\n"),
        fails="imports-doors",
    ),
    Wrong(
        name="a module of the host inside a function",
        old="    tokens = tokenize_row(",
        new="    import ft_host.training.loop\n    tokens = tokenize_row(",
        fails="imports-doors",
    ),
    Wrong(name="a slip in a hook's name", old="def ft_collate(", new="def ft_colate(", fails="imports-hooks"),
    Wrong(
        name="an argument that a hook hasn't",
        old="def ft_prepare(row, tokenizer, config)",
        new="def ft_prepare(row, tokenizer, config, model)",
        fails="imports-hooks",
    ),
    Wrong(
        name="a backend's hook in a method",
        old="@hookimpl\ndef ft_prepare",
        new="@hookimpl\ndef ft_generate(requests, sampling, run):\n    return []\n\n\n@hookimpl\ndef ft_prepare",
        fails="imports-hooks",
    ),
    Wrong(
        name="two losses",
        old="@hookimpl\ndef ft_prepare",
        new='@hookimpl(specname="ft_loss")\ndef another(model, batch, run):\n    pass\n\n\n@hookimpl\ndef ft_prepare',
        fails="imports-one-loss",
        also=("imports-hooks",),
    ),
    Wrong(
        name="a loss that isn't marked",
        old="@hookimpl\ndef ft_loss",
        new="def ft_loss",
        fails="imports-one-loss",
        also=("imports-hooks",),
    ),
]


ALONE = ("imports-config", "imports-side-effects", "imports-time")  # in processes of their own: seconds


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    """What is asked in a process of its own is asked about what is wrong there alone."""
    checks = [check for check in imports.CHECKS if (check.id in ALONE) == (wrong.fails in ALONE)]
    assert_caught(checks, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts", "backend", "diagnostics"])
def test_a_right_one_passes(kind, tmp_path):
    checks = [check for check in imports.CHECKS if kind == "rollouts" or check.id not in ALONE]
    assert failures(checks, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_package():
    assert {check.id for check in imports.CHECKS} == {wrong.fails for wrong in WRONG}


# ---------------------------------------------------------------- what an import may do

ALL_OF_IT = """
import logging, os, random, signal, subprocess, sys, threading, time, warnings
import numpy, torch
from ft_host.api import hookimpl

random.seed(1); numpy.random.rand(); torch.rand(1)
os.environ["TOKENIZERS_PARALLELISM"] = "false"; os.environ.pop("TO_BE_TAKEN_AWAY", None)
logging.basicConfig(level=logging.DEBUG); logging.getLogger("transformers").setLevel(logging.DEBUG)
warnings.filterwarnings("ignore", message="all of them")
open("left.txt", "w").write("x")
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="a thread of it").start()
CHILD = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
torch.set_default_dtype(torch.bfloat16); torch.set_grad_enabled(False)
sys.path.insert(0, "/nowhere"); signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("hello")
"""
LOOKED_AT = [
    "the random state of random has moved",
    "the random state of numpy has moved",
    "the random state of torch has moved",
    "the environment: TOKENIZERS_PARALLELISM is false, and was absent",
    "the environment: TO_BE_TAKEN_AWAY is absent, and was here",
    "logging: root is level 10",
    "logging: transformers is level 10",
    "warnings: the filter ('ignore', re.compile('all of them'",
    "files: left.txt is of 1 bytes, and was absent",
    "threads: a thread of it",
    "processes: ",
    "torch: get_default_dtype is torch.bfloat16, and was torch.float32",
    "torch: is_grad_enabled is False, and was True",
    "the interpreter: sys.path is",
    "the interpreter: the handler of SIGTERM is 1",
    "output: 'hello\\n' is printed",
]


def test_each_thing_that_an_import_may_change_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TO_BE_TAKEN_AWAY", "here")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    file = tmp_path / "does_it_all.py"
    file.write_text(ALL_OF_IT + "\n\n@hookimpl\ndef ft_prepare(row):\n    return row\n")
    checks = [check for check in imports.CHECKS if check.id == "imports-side-effects"]
    [found] = Suite(str(file), tmp_path / "suite").run(checks)
    assert found.result == FAILED
    missed = [said for said in LOOKED_AT if said not in found.said]
    assert missed == [], found.said
    assert found.said.count("; ") == len(LOOKED_AT) - 1, found.said


def test_what_a_library_does_is_not_the_packages_doing(tmp_path, monkeypatch):
    (tmp_path / "library_of_others.py").write_text(
        "import os, logging\nos.environ['BY_A_LIBRARY'] = '1'\nlogging.basicConfig()"
    )
    (tmp_path / "uses_it.py").write_text(
        "from ft_host.api import hookimpl\ntry:\n    import library_of_others\nexcept ImportError:\n    pass\n\n\n"
        "@hookimpl\ndef ft_prepare(row):\n    return row\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    checks = [check for check in imports.CHECKS if check.id == "imports-side-effects"]
    [found] = Suite(str(tmp_path / "uses_it.py"), tmp_path / "suite").run(checks)
    assert (found.result, found.said) == (PASSED, "")


def test_an_import_that_ends_the_interpreter_is_told(tmp_path):
    file = tmp_path / "ends_it.py"
    file.write_text("import os\nos._exit(3)\n")
    checks = [check for check in imports.CHECKS if check.id == "imports-time"]
    [found] = Suite(str(file), tmp_path / "suite").run(checks)
    assert found.result == FAILED and "ends the interpreter with exit code 3" in found.said


@pytest.mark.parametrize(
    ("statement", "is_package", "expected"),
    [
        ("import a.b, c", False, ["a.b", "c"]),
        ("from x.y import z", False, ["x.y", "x.y.z"]),
        ("from . import z", False, ["ft_a", "ft_a.z"]),
        ("from . import z", True, ["ft_a.b", "ft_a.b.z"]),
        ("from .q import z", False, ["ft_a.q", "ft_a.q.z"]),
        ("from ..q import z", True, ["ft_a.q", "ft_a.q.z"]),
    ],
)
def test_modules_that_a_statement_names(statement, is_package, expected):
    assert package_of(ast.parse(statement).body[0], "ft_a.b", is_package) == expected


# ---------------------------------------------------------------- doors


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ft_host.api import Drop, hookimpl", []),
        ("from ft_host import train, hookimpl, __version__, api", []),
        ("import ft_host, ft_host.api, ft_host.testing", []),
        ("import ft_host\nft_host.train(1)\nft_host.api.Drop", []),
        ("import ft_hostile.batch", []),
        ("from .batch import x", []),
        ("from ft_host.batch import flat_batch", ["imports flat_batch of ft_host.batch; ft_host.api offers it"]),
        ("from ft_host.api import nothing", ["ft_host.api doesn't offer nothing"]),
        ("from ft_host import config", ["imports it of ft_host.config"]),
        ("import ft_host\nft_host.training.launch", ["uses ft_host.training"]),
        ("def f():\n    import ft_host.models as m", ["imports it of ft_host.models"]),
        (
            "if TYPE_CHECKING:\n    from ft_host.run import Run as R",
            ["imports Run of ft_host.run; ft_host.api offers it"],
        ),
        ("importlib.import_module('ft_host.cli')", ["imports it of ft_host.cli"]),
    ],
)
def test_what_passes_the_doors(source, expected):
    assert [what for _, what in imports.past_the_doors(ast.parse(source))] == expected


# ---------------------------------------------------------------- a method in one file


def test_a_method_in_one_file(tmp_path):
    file = tmp_path / "one_file.py"
    file.write_text(
        "from ft_host.api import RunConfig as Config, hookimpl\n\n\n@hookimpl\ndef ft_prepare(row):\n    return row\n"
        "\n\n@hookimpl\ndef ft_collate(rows):\n    return None\n\n\n@hookimpl\ndef ft_loss(model):\n    return None\n"
    )
    checks = [check for check in imports.CHECKS if check.id not in ("imports-side-effects", "imports-time")]
    found = {each.check.id: each.result for each in Suite(str(file), tmp_path / "suite").run(checks)}
    assert found == {id: LEFT_OUT if id == "imports-config" else PASSED for id in found}
