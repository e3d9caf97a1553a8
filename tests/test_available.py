"""The index of published packages: read, refused by key, printed; and that this repository's own is current."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from ft_host.cli import main
from ft_host.errors import UsageError
from ft_host.registry.available import packages

ROOT = Path(__file__).parent.parent
ENTRY = {
    "name": "ft-mine",
    "what": "A method of mine.",
    "offers": ["mine", "mine-2"],
    "stability": "experimental",
    "link": "https://example.org/ft-mine",
}
CHECKED = {"version": "0.2.0", "host": "1.0.0", "tier": "experimental", "date": "2026-11-29", "passed": 31}


def index(folder: Path, *entries: dict) -> str:
    def value(it) -> str:
        if isinstance(it, dict):
            return "{" + ", ".join(f"{key} = {json.dumps(inner)}" for key, inner in it.items()) + "}"
        return json.dumps(it)

    text = "\n".join(
        "[[package]]\n" + "".join(f"{key} = {value(it)}\n" for key, it in each.items()) for each in entries
    )
    (folder / "index.toml").write_text(text, encoding="utf-8")
    return str(folder / "index.toml")


def test_an_index_is_read(tmp_path):
    other = ENTRY | {"name": "ft-another"}
    first, second = packages(index(tmp_path, ENTRY | {"checked": CHECKED}, other))
    assert (first.name, second.name) == ("ft-another", "ft-mine")  # by name
    assert second.offers == ("mine", "mine-2") and first.checked is None
    assert str(second.checked) == "0.2.0 passed 31 experimental checks with ft-host 1.0.0 on 2026-11-29"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ENTRY | {"stabilty": "stable"}, "package 1: 'stabilty'; did you mean stability?"),
        ({name: value for name, value in ENTRY.items() if name != "link"}, "package 1: has no link"),
        (ENTRY | {"stability": "beta"}, "stability is 'beta'; expected experimental, stable, deprecated"),
        (ENTRY | {"offers": "mine"}, "offers is 'mine'; expected a list of texts"),
        (ENTRY | {"offers": [1]}, r"offers is \[1\]; expected a list of texts"),
        (ENTRY | {"checked": CHECKED | {"passed": "31"}}, "checked: passed is '31'; expected a whole number"),
        (ENTRY | {"checked": "yes"}, "checked: expected a table, found 'yes'"),
    ],
)
def test_what_is_wrong_is_named(entry, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        packages(index(tmp_path, entry))


def test_other_things_than_entries_are_refused(tmp_path):
    with pytest.raises(UsageError, match="ft-mine stands there twice"):
        packages(index(tmp_path, ENTRY, ENTRY))
    with pytest.raises(UsageError, match="can't read .*missing.toml"):
        packages(str(tmp_path / "missing.toml"))
    with pytest.raises(UsageError, match="expected a file or an https address"):
        packages("http://example.org/index.toml")
    file = tmp_path / "other.toml"
    file.write_text('title = "no index"', encoding="utf-8")
    with pytest.raises(UsageError, match=r"expected \[\[package\]\] entries and nothing else, found title"):
        packages(str(file))
    file.write_text("title", encoding="utf-8")
    with pytest.raises(UsageError, match="other.toml: Expected"):
        packages(str(file))


def test_the_list_says_what_is_installed(capsys, install_plugin, tmp_path):
    install_plugin(
        "ft-mine", "0.3.0", entry_points={"ft_host.methods": {"mine": "ft_mine_method"}}, requires=["ft-host"]
    )
    file = index(tmp_path, ENTRY | {"checked": CHECKED}, ENTRY | {"name": "ft-absent"})
    assert main(["plugins", "--available", file]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line.split() for line in said[1:3]}
    assert rows["ft-mine"][-3:] == ["0.3.0", "2026-11-29,", "0.2.0"]
    assert rows["ft-absent"][-2:] == ["no", "never"]
    assert "ft-mine: A method of mine. https://example.org/ft-mine" in said
    assert main(["plugins", "--json", "--available", file]) == 0
    absent, mine = json.loads(capsys.readouterr().out)["available"]
    assert (absent["installed"], absent["checked"], mine["installed"]) == (None, None, "0.3.0")
    assert mine["checked"] == CHECKED | {"declared": 0}
    assert main(["plugins", "--available", file, "--check"]) == 2


def test_the_index_of_this_repository_is_current():
    spec = importlib.util.spec_from_file_location("generate_packages", ROOT / "docs" / "generate_packages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stale = [str(path) for path, text in module.written().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run: python docs/generate_packages.py; stale: {', '.join(stale)}"
    assert {each.name for each in packages()} >= {path.name for path in (ROOT / "plugins").iterdir()}


# ---------------------------------------------------------------- releases


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_call_scripts_that_are_there(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    scripts = {run.split()[0] for run in runs if run.startswith(".ci/")}
    assert scripts and all((ROOT / script).stat().st_mode & 0o100 for script in scripts)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("ft-dpo", "usage: .ci/release NAME-vVERSION"),
        ("ft-dop-v1.0.0", "usage: .ci/release NAME-vVERSION"),
        ("ft-dpo-v9.9.9", "the tag is for ft-dpo 9.9.9, and plugins/ft-dpo/pyproject.toml says"),
        ("ft-host-v9.9.9", "the tag is for ft-host 9.9.9, and ./pyproject.toml says"),
    ],
)
def test_a_tag_that_fits_no_package_is_refused(tag, said):
    done = subprocess.run([ROOT / ".ci" / "release", tag], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2) and said in done.stdout
