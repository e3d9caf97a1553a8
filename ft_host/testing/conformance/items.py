"""The checks as pytest's items, one for each check and plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def conformance_tests(package: str, tier: str = "experimental") -> Callable[..., None]:
    """The test of a package: an item for each check of the tier and plugin, with its id.

        test_conformance = conformance_tests("ft-my-method")

    What the package declares in its conformance.toml ends as xfail, with the reason; what there is nothing to look at
    for is skipped. What goes wrong in the suite itself shows its traceback. Raises what `Suite` raises, while pytest
    collects.
    """
    import tempfile

    import pytest

    from ft_host.testing.conformance.check import DECLARED, FAILED, LEFT_OUT
    from ft_host.testing.conformance.run import Suite, checks_of

    scratch = tempfile.TemporaryDirectory(prefix="ft-host-check-")  # removed with the function that holds it
    suite = Suite(package, Path(scratch.name))
    items = suite.items(checks_of(tier))

    @pytest.mark.parametrize(
        ("check", "plugin"), items, ids=[f"{check.id}-{info.kind}-{info.name}" for check, info in items]
    )
    def test(check: Any, plugin: Any, _held: Any = scratch) -> None:
        found = suite.outcome(check, plugin)
        if found.error is not None:
            raise found.error
        if found.result == FAILED:
            pytest.fail(f"{check.id}: {found.said}\n{found.advice}", pytrace=False)
        if found.result == LEFT_OUT:
            pytest.skip(found.said)
        if found.result == DECLARED:
            pytest.xfail(found.said)

    return test
