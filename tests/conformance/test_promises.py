"""What was promised: each break in a copy of ft-sft is refused, whatever is announced or new is let through."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.wrong import Wrong, assert_caught

from ft_host.registry import catalog
from ft_host.surface import package_surface
from ft_host.testing.conformance.check import FAILED, PASSED
from ft_host.testing.conformance.checks import promises
from ft_host.testing.conformance.run import Suite, checks_of
from ft_host.testing.distributions import make_distribution

SFT = Path(__file__).parents[2] / "plugins" / "ft-sft" / "ft_sft"
WRONG = [
    Wrong(
        name="something in run.state that nothing lists",
        kind="pairs",
        old="    beta, pairs = run.config.beta",
        new='    run.state["seen"] = run.step\n    beta, pairs = run.config.beta',
        fails="contract-state",
    )
]


class Copy:
    """A copy of ft-sft under another name, with a version, a stability and a changelog, that is changed in place."""

    count = 0

    def __init__(self, folder: Path, version: str, stable: bool) -> None:
        Copy.count += 1
        self.name, self.package = f"ft-kept{Copy.count}", f"ft_kept{Copy.count}"
        self.root, self.stable = folder / self.name, stable
        self.root.mkdir()
        (self.root / "pyproject.toml").touch()
        self.change(version, lambda text: text, "Begins.")

    def change(self, version: str, edit: Callable[[str], str], changelog: str, contract: bool = False) -> None:
        """Write it anew as `version`, with its config changed by `edit`. `contract`: keep that of now as released."""
        config = (SFT / "config.py").read_text(encoding="utf-8")
        module = edit(config)
        assert module != config or not changelog.startswith("Change"), "nothing was changed"
        for name in [name for name in sys.modules if name.partition(".")[0] == self.package]:
            del sys.modules[name]
        shutil.rmtree(self.root / self.package, ignore_errors=True)
        for old in self.root.glob("*.dist-info"):
            shutil.rmtree(old)
        modules = {
            f"{self.package}.{file.stem}": file.read_text(encoding="utf-8").replace("ft_sft", self.package)
            for file in SFT.glob("*.py")
            if file.stem != "__init__"
        }
        make_distribution(
            self.root,
            self.name,
            version,
            entry_points={
                "ft_host.methods": {self.package: f"{self.package}.method"},
                "ft_host.configs": {self.package: f"{self.package}.config:SFTConfig"},
            },
            modules={self.package: ""} | modules | {f"{self.package}.config": module.replace("ft_sft", self.package)},
            requires=["ft-host"],
            classifiers=[f"Development Status :: {'5 - Production/Stable' if self.stable else '4 - Beta'}"],
        )
        (self.root / "CHANGELOG.md").write_text(f"# Changes\n\n## {version}\n\n- {changelog}\n", encoding="utf-8")
        catalog.cache_clear()

    def release(self) -> None:
        """Keep the contract of now in contracts/, as the repository of a package does."""
        surface = package_surface(self.name)
        kept = self.root / "contracts"
        kept.mkdir(exist_ok=True)
        (kept / f"{self.name}-{surface['version']}.json").write_text(json.dumps(surface), encoding="utf-8")

    def asked(self, folder: Path, against: Path | None = None) -> tuple[str, str]:
        """How contract-kept ends, and what it says."""
        suite = Suite(self.name, folder / "suite", against=against)
        [found] = suite.run(checks_of("experimental", ["contract-kept"]))
        return found.result, found.said


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes copies, which are gone after the test."""

    def made(version: str = "1.2.0", stable: bool = True) -> Copy:
        copy = Copy(tmp_path, version, stable)
        monkeypatch.syspath_prepend(str(copy.root))
        catalog.cache_clear()
        copy.release()
        return copy

    yield made
    monkeypatch.undo()
    catalog.cache_clear()


def without(name: str, kind: str = "field") -> Callable[[str], str]:
    """The config without a field."""
    return lambda text: re.sub(rf"    {name}: [^\n]* = option\(.*?\n    \)\n", "", text, flags=re.DOTALL)


def other(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


RENAME = other("label_smoothing_factor: float", "smoothing: float")
DEPRECATED = (
    "    deprecated: ClassVar[tuple[Deprecated, ...]] = (\n"
    '        Deprecated(old="label_smoothing_factor", new="smoothing", since="{since}", removed_in="{until}"),\n'
    "    )\n"
)


def renamed(since: str, until: str) -> Callable[[str], str]:
    """The field under another name, and the old one announced."""

    def edit(text: str) -> str:
        text = text.replace("from ft_host.api import", "from ft_host.api import Deprecated,")
        return RENAME(text).replace("    formats:", DEPRECATED.format(since=since, until=until) + "    formats:", 1)

    return edit


BREAKS = {
    "a field that is gone": (without("label_smoothing_factor"), "label_smoothing_factor: is gone"),
    "a field that is called otherwise": (RENAME, "label_smoothing_factor: is gone"),
    "another default": (
        other(
            "    label_smoothing_factor: float = option(\n        0.0",
            "    label_smoothing_factor: float = option(\n        0.1",
        ),
        "its default is 0.1, and was 0.0",
    ),
    "another type": (
        lambda text: text.replace("only_loss: bool = option(", "only_loss: int = option(").replace("False, ", "0, "),
        "assistant_only_loss: takes less",
    ),
    "a metric less": (other('"entropy", "mean_token_accuracy"', '"mean_token_accuracy",'), "metrics/entropy: is gone"),
    "a format less": (
        other('"language modeling", "prompt-completion"', '"prompt-completion",'),
        "formats/language modeling: is gone",
    ),
}
CAUGHT = {"contract-kept": [f"{name}, in a minor version of a copy of ft-sft" for name in BREAKS]}  # for the page


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_refused_in_a_minor_version_of_a_stable_package(name, make, tmp_path):
    edit, said = BREAKS[name]
    copy = make("1.2.0")
    assert copy.asked(tmp_path)[0] == PASSED
    copy.change("1.3.0", edit, "Changes label_smoothing_factor, assistant_only_loss, entropy, language modeling.")
    result, found = copy.asked(tmp_path)
    assert result == FAILED and said in found and "that asks for version 2.0.0" in found, found
    copy.change("2.0.0", edit, "Changed.")
    assert copy.asked(tmp_path)[0] == PASSED


@pytest.mark.parametrize("name", BREAKS)
def test_an_experimental_package_says_it_in_its_changelog(name, make, tmp_path):
    edit, said = BREAKS[name]
    copy = make("0.2.0", stable=False)
    copy.change("0.2.1", edit, "Changes something.")
    result, found = copy.asked(tmp_path)
    assert result == FAILED and said in found and "changelog doesn't name" in found, found
    copy.change(
        "0.2.1",
        edit,
        "Changes `label_smoothing_factor`, `assistant_only_loss`, `entropy`, language modeling, `smoothing`.",
    )
    assert copy.asked(tmp_path) == (PASSED, "")


def test_what_is_new_asks_for_a_minor_version(make, tmp_path):
    edit = other('"entropy", ', '"entropy", "surprise", ')
    copy = make("1.2.0")
    copy.change("1.2.1", edit, "Changes nothing.")
    assert copy.asked(tmp_path)[1].endswith("metrics/surprise: is new; that asks for version 1.3.0 at least")
    copy.change("1.3.0", edit, "Changed.")
    assert copy.asked(tmp_path)[0] == PASSED
    copy.change("1.1.0", lambda text: text, "Older.")
    assert "its version is 1.1.0, and 1.2.0 is out" in copy.asked(tmp_path)[1]


def test_a_stable_package_becomes_experimental_with_a_major_version_alone(make, tmp_path):
    copy = make("1.2.0")
    copy.stable = False
    copy.change("1.3.0", lambda text: text, "Beta again.")
    assert "1.2.0 is stable, and this is experimental: that asks for a major version" in copy.asked(tmp_path)[1]


def test_a_field_that_is_announced_goes_two_minor_versions_later(make, tmp_path):
    copy = make("1.2.0")
    edit = renamed("1.3.0", "1.5.0")
    copy.change("1.3.0", edit, "Changes the name.")
    assert copy.asked(tmp_path) == (PASSED, "")
    copy.release()
    copy.change("1.4.0", RENAME, "Changed.")
    assert (
        "no longer answers to label_smoothing_factor; it was to go in 1.5.0, and this is 1.4.0"
        in copy.asked(tmp_path)[1]
    )
    copy.change("1.4.0", renamed("1.3.0", "1.4.0"), "Changed.")
    assert "goes in 1.4.0, and was to go in 1.5.0" in copy.asked(tmp_path)[1]
    copy.change("1.5.0", RENAME, "Changed.")
    assert copy.asked(tmp_path) == (PASSED, "")


def test_a_deprecation_is_as_old_as_the_release_that_announces_it(make, tmp_path):
    copy = make("1.2.0")
    copy.change("1.3.0", renamed("1.1.0", "1.4.0"), "Changes the name.")
    assert "says that it is deprecated since 1.1.0, and 1.2.0 doesn't announce it" in copy.asked(tmp_path)[1]
    copy.change("1.3.0", renamed("1.3.0", "1.4.0"), "Changes the name.")
    copy.release()
    copy.change("1.4.0", RENAME, "Changed.")
    assert "it is deprecated since 1.3.0, and works until 1.5.0" in copy.asked(tmp_path)[1]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(promises.CHECKS, wrong, tmp_path)


def test_every_check_has_a_wrong_package():
    assert {check.id for check in promises.CHECKS} == {wrong.fails for wrong in WRONG} | {"contract-kept"}
