"""What a package has promised with its last release: its contract, and what it keeps of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ft_host.cli.contract import surface_of
from ft_host.surface import verdict
from ft_host.surface.released import changelog_of, given_contract, last_contract
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.invariants import run_in

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject


def kept(subject: Subject) -> Figures:
    if not subject.distribution:
        raise DoesNotApply("a file has no release")
    surface = surface_of(subject.distribution)
    if subject.against is not None:
        place, old = subject.against, given_contract(subject.against, subject.distribution)
    else:
        found = last_contract(subject.distribution, surface["version"], subject.package)
        if found is None:
            raise DoesNotApply(f"no contract of a release is there: ft-host contract {subject.distribution} --record")
        place, old = found
    judged = verdict(old, surface, changelog_of(subject.package))
    if not judged.kept:
        raise NotMet(f"against {place.name}, version {old['version']}:\n{judged.as_text()}")
    return {"against": old["version"], "changes": len(judged.found)}


def state(subject: Subject) -> Figures:
    """The names in `run.state` that a checkpoint of a tiny run has are those that the class lists."""
    file = run_in(subject.config(), "state", max_steps=1, save_steps=1) / "checkpoints" / "step-1" / "progress.json"
    found = sorted(json.loads(file.read_text(encoding="utf-8"))["state"])
    lacking = [name for name in found if name not in subject.config_class.state_keys]
    if lacking:
        raise NotMet(
            f"run.state of a checkpoint has {', '.join(found)}, and {subject.config_class.__name__}.state_keys lacks "
            f"{', '.join(lacking)}"
        )
    return {"state": found}


CHECKS: list[Check] = [
    Check(
        id="contract-kept",
        title="What the last release promised is kept, or the version and the changelog say that it isn't",
        about="package",
        why="Run files, scripts and dashboards of others rely on fields, defaults, columns and names of metrics. Who "
        "takes a minor version of a stable package must not have to look.",
        looks_at="`ft-host contract` of the package against that of its last release: `--against`, `contracts/` of the "
        "repository, or contract.json in the package. It imports the package, and is left out where there is no "
        "contract yet.",
        mend="Of a stable package: keep the old name and announce it (`deprecated` of the config class), and take it "
        "away two minor versions later, or with the next major version; raise the minor version for what is new. Of an "
        "experimental one: name what breaks in the top section of CHANGELOG.md.",
        test=kept,
    ),
    Check(
        id="contract-state",
        title="The class lists what the method keeps in checkpoints",
        about="method",
        why="What a checkpoint holds is a promise: a run that an older release began is resumed with what it wrote.",
        looks_at="`run.state` in the checkpoint of a tiny run of one step, and `state_keys` of the config class.",
        mend="Add the names to `state_keys`.",
        test=state,
    ),
]
