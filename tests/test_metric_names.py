"""The names of metrics are a promise: the host's table, each method's list, and docs/metrics.md are the same, and a run
logs no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ft_host import registry
from ft_host.surface.metric_names import EVERY_RUN, LINE, ROLLOUTS, unnamed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("\n## Facts")[0]
TABLES = dict(zip(*[iter(re.split(r"^##+ (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
METHODS = sorted(
    info.name for info in registry.catalog() if info.kind == "method" and ROOT in Path(info.location).resolve().parents
)


def rows_of(title: str) -> list[tuple[list[str], list[str]]]:
    """The rows of a table: the names, and the other cells. `a/b_mean`, `b_max` are of one family."""
    found = []
    for line in re.findall(r"^\| .*`.* \|$", TABLES[title], re.MULTILINE):
        cells = re.split(r"\s*\|\s*", line.strip("| "))
        names = re.findall(r"`([^`]+)`", cells[0])
        family = names[0].rpartition("/")[0] if names[0].startswith("completions/") else ""
        found.append(([f"{family}/{name}" if family and "/" not in name else name for name in names], cells[1:]))
    return found


def names_in(*titles: str) -> list[str]:
    return [name for title in titles for names, _ in rows_of(title) for name in names]


def test_the_tables_of_the_host_are_those_of_the_page():
    assert sorted((*LINE, *EVERY_RUN)) == sorted(names_in("Every run"))
    assert sorted(ROLLOUTS) == sorted(names_in("Methods with rollouts", "Rollouts that don't wait"))


def loggers(cell: str) -> set[str]:
    """The methods that a cell of the column `from` names: "distill" is distill and gkd, "distill (gkd)" gkd alone."""
    words = set(re.findall(r"[\w-]+", cell.replace("distill (gkd)", "gkd")))
    return words | {"gkd"} if "distill" in words else words


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_lists_is_what_the_page_says_of_it(method):
    listed = registry.config_class(registry.find("method", method)).metrics
    page = [name for names, cells in rows_of("Methods") if method in loggers(cells[2]) for name in names]
    assert sorted(listed) == sorted(page) and len(set(listed)) == len(listed)


def test_a_star_stands_for_any_text_and_an_evaluation_has_each_name_too():
    own = ("entropy", "val/*/share")
    logged = ["loss", "eval_loss", "eval_math_loss", "entropy", "eval_entropy", "val/a/share", "eval_rewards/x/mean"]
    assert unnamed(logged, own) == []
    assert unnamed(["entropi", "eval_los", "val//share", "rewards/x/mean"], own) == [
        "entropi",
        "eval_los",
        "rewards/x/mean",
        "val//share",
    ]
    assert unnamed(["rewards/x/mean", "completions/mean_length"], own, rollouts=True) == []
