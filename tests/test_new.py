"""`ft-host new`: from a name to a package that trains, of each kind, or from the source of an installed method."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import ft_gold
import pytest

from ft_host import registry
from ft_host.cli import main
from ft_host.errors import UsageError
from ft_host.scaffold import KINDS, new_package, package_from
from ft_host.scaffold.copied import EVIDENCE
from ft_host.scaffold.names import Names, names_of
from ft_host.testing import assert_same, lines, preference_texts, run_in, save_tiny, tiny_run


def test_names():
    names = Names("my-method")
    assert (names.distribution, names.package, names.config) == ("ft-my-method", "ft_my_method", "MyMethodConfig")
    assert names.letters == "MYMETH"  # two initials would be anybody's
    assert [Names(name).letters for name in ("orpo", "x", "best-of-n", "kl-2-step-thing")] == [
        "ORPO",
        "XX",
        "BON",
        "KST",
    ]
    assert names_of("ft-my-method", "method") == names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My_Method", "did you mean my-method?"),
        ("2fast", "expected words of a-z and 0-9"),
        ("a--b", "did you mean a-b?"),
        ("class", "can't be the name"),
        ("dpo", "ft-dpo is installed already"),
        ("gkd", "the method 'gkd' is offered by ft-distill"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name, said):
    with pytest.raises(UsageError, match=said):
        names_of(name, "method")


@pytest.mark.parametrize("kind", KINDS)
def test_its_files_are_whole(kind, tmp_path):
    folder = new_package("my-try", kind, tmp_path)
    for file in folder.rglob("*"):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        assert "$" not in text.replace("${{", "").replace("$GITHUB_", ""), file
        if file.suffix == ".py":
            ast.parse(text)
            assert max(map(len, text.splitlines()), default=0) <= 120, file
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    [(group, entries)] = project["project"]["entry-points"].items()
    assert group.removeprefix("ft_host.").removesuffix("s") in ("method", "backend", "diagnostic")
    module = Path(folder, *entries["my-try"].split(".")).with_suffix(".py")
    assert module.is_file() and (folder / "tests" / "test_ft_my_try.py").is_file()
    suite = (folder / "tests" / "test_conformance.py").read_text(encoding="utf-8")
    assert suite.endswith('test_conformance = conformance_tests("ft-my-try")\n')
    assert tomllib.loads((folder / "ft_my_try" / "conformance.toml").read_text(encoding="utf-8")) == {}
    assert project["tool"]["setuptools"]["package-data"] == {"*": ["*.toml", "*.json"]}
    host = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["project"]["dependencies"] == [f"ft-host>={host['version'].rpartition('.')[0]},<2"]
    with pytest.raises(UsageError, match="exists already"):
        new_package("my-try", kind, tmp_path)


def installed(install_plugin, folder: Path) -> None:
    """Install what a new package holds, for this test."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = folder / project["name"].replace("-", "_")
    modules = {
        ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): file.read_text(
            encoding="utf-8"
        )
        for file in package.rglob("*.py")
    }
    install_plugin(
        project["name"], entry_points=project["entry-points"], modules=modules, requires=project["dependencies"]
    )


def test_a_copy_of_a_method_gives_its_numbers_under_its_own_name(install_plugin, tmp_path):
    from ft_dpo.config import DPOConfig

    folder = package_from("sharp", "dpo", tmp_path)
    installed(install_plugin, folder)
    config_class = registry.config_class("sharp")
    assert config_class.__name__ == "SharpConfig" and "ft_dpo" not in (folder / "ft_sharp/method.py").read_text()
    rules = registry.load(registry.find("diagnostics", "sharp")).RULES
    assert {rule.code[:-3] for rule in rules} == {"SHARP"}
    model, rows = save_tiny(tmp_path / "model"), preference_texts()[:8]
    theirs, ours = (tiny_run(each, model, tmp_path, rows, max_steps=2) for each in (DPOConfig, config_class))
    assert_same(lines(run_in(theirs, "theirs")), lines(run_in(ours, "ours")), 0, 0)
    assert "It began as a copy of ft-dpo" in (folder / "README.md").read_text()


def test_a_copy_says_of_itself_what_the_original_does_without_its_evidence(tmp_path):
    folder = package_from("taught", "gold", tmp_path)
    theirs, ours = (
        tomllib.loads(file.read_text(encoding="utf-8"))
        for file in (Path(ft_gold.__file__).with_name("conformance.toml"), folder / "ft_taught" / "conformance.toml")
    )
    assert theirs.get("config") and {name: part for name, part in theirs.items() if name != "evidence"} == ours
    assert not list(folder.rglob("*.json"))  # nothing has been recorded of it
    assert 'conformance_tests("ft-taught")' in (folder / "tests" / "test_conformance.py").read_text()
    assert "TAUGHT" in (folder / "ft_taught" / "cases.py").read_text().replace("GOLD", "?")


def test_evidence_is_left_out_wherever_it_stands():
    text = '[config]\na = 1\n\n[evidence]\nparity = "x"\n[evidence.docs]\npage = "y"\n[not_met]\nb = "c"\n'
    assert EVIDENCE.sub("", text) == '[config]\na = 1\n\n[not_met]\nb = "c"\n'
    assert EVIDENCE.sub("", '[evidence]\nparity = "x"\n') == ""


@pytest.mark.parametrize(
    ("method", "said"), [("gkd", "has several methods"), ("dop", "did you mean 'dpo'?"), ("./mine.py", "mine.py")]
)
def test_what_cannot_be_copied_is_refused(method, said, capsys, tmp_path):
    assert main(["new", "sharp", "--from", method, "--output", str(tmp_path)]) != 0
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the whole ladder


def environment(folder: Path) -> Path:
    """An environment of its own that has what this one has. Returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/*/site-packages"), folder / "Lib" / "site-packages")
    (site / "all.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin" / "python"


def called(*words: object, cwd: Path) -> str:
    made = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, f"{words}\n{made.stdout}{made.stderr}"
    return made.stdout


RUNS = {  # what `ft-host train` is given, beside the model and rows
    "offline": ["{name}"],
    "pairs": ["{name}"],
    "rollouts": ["{name}", "--reward", "{folder}/rewards.py:right", "--max-completion-length", "8"],
    "backend": [
        "grpo", "--backend", "{name}", "--reward", "{rewards}:right", "--max-completion-length", "4",
        "--num-generations", "2",
    ],
    "diagnostics": ["sft", "--diagnostics", "{name}"],
}  # fmt: skip
ROWS = {"backend": "rollouts", "diagnostics": "offline"}  # whose rows


@pytest.mark.slow
@pytest.mark.nightly("offline", "pairs", "rollouts", "backend")
@pytest.mark.parametrize("kind", KINDS)
def test_the_ladder(kind, tmp_path):
    """New, installed as it is, listed, its own tests, with what it is held to; built; the wheel in another environment,
    where a run of it trains and `ft-host check` passes."""
    name = f"climb-{kind}"
    folder = new_package(name, kind, tmp_path)
    rewards = new_package("unused", "rollouts", tmp_path) / "rewards.py"
    python = environment(tmp_path / "first")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    called(*pip, "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", "-e", folder, cwd=tmp_path)
    assert f"ft-{name}" in called(python, "-m", "ft_host", "plugins", cwd=tmp_path)
    called(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    called(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", folder, cwd=tmp_path)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    other = environment(tmp_path / "second")
    called(*pip, "--python", other, "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    model = save_tiny(tmp_path / "model")
    rows = new_package("rows", ROWS.get(kind, kind), tmp_path) / "rows.jsonl"
    words = [word.format(name=name, folder=folder, rewards=rewards) for word in RUNS[kind]]
    more = ["--model", model, "--dataset", rows, "--max-steps", "2", "--use-cpu", "--per-device-train-batch-size", "4"]
    called(other, "-m", "ft_host", "train", *words, *more, "--output-dir", tmp_path / "run", cwd=tmp_path)
    assert [line["step"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == [1, 2]
    said = called(other, "-m", "ft_host", "check", f"ft-{name}", cwd=tmp_path)
    assert "FAILED" not in said and "passed" in said


def test_the_command_says_what_comes_next(capsys, tmp_path):
    assert main(["new", "my-try", "--kind", "pairs", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "ft-my-try" in said and "pip install -e '.[test]'" in said and "python -m pytest" in said


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_new_method_trains(kind, install_plugin, tmp_path):
    folder = new_package(f"try-{kind}", kind, tmp_path)
    installed(install_plugin, folder)
    rows = [*map(ast.literal_eval, (folder / "rows.jsonl").read_text().splitlines())]
    more = {"reward": [f"{folder / 'rewards.py'}:right"], "max_completion_length": 8} if kind == "rollouts" else {}
    config = tiny_run(
        registry.config_class(f"try-{kind}"), save_tiny(tmp_path / "model"), tmp_path, rows, max_steps=2, **more
    )
    found = lines(run_in(config, "run"))
    assert [line["step"] for line in found if line["kind"] == "train"] == [1, 2]
    declared = set(type(config).metrics)
    assert declared <= {name for line in found for name in line}


@pytest.mark.parametrize("kind", ["offline", "pairs"])
def test_the_loss_of_a_new_method_is_its_formula(kind, install_plugin, tmp_path):
    """By its own test, from the model's logits."""
    folder = new_package(f"hand-{kind}", kind, tmp_path)
    installed(install_plugin, folder)
    namespace: dict = {}
    exec(
        compile((folder / f"tests/test_ft_hand_{kind}.py").read_text(encoding="utf-8"), f"of {kind}", "exec"), namespace
    )
    tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
    assert len(tests) == 2
    for name, test in tests.items():
        given = {"tmp_path": tmp_path, "power": 0.5} if name == "test_the_first_loss_is_the_formula" else {}
        test(**{word: given[word] for word in inspect.signature(test).parameters})
