"""What a new package and its parts are called, from the one name that is given."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from ft_host.errors import UsageError
from ft_host.registry import catalog
from ft_host.registry.metadata import normalise

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 6  # letters of a rule's code


@dataclass(frozen=True)
class Names:
    """Of `my-method`, or `ft-my-method`, which is the same."""

    name: str  # my-method: what `ft-host train` is given

    @property
    def distribution(self) -> str:
        return f"ft-{self.name}"

    @property
    def package(self) -> str:
        return f"ft_{self.name.replace('-', '_')}"

    @property
    def config(self) -> str:
        """MyMethodConfig."""
        return "".join(part.capitalize() for part in self.name.split("-")) + "Config"

    @property
    def letters(self) -> str:
        """What codes of its rules begin with: initials of several words, or the first letters of one."""
        parts = re.sub(r"[0-9]", "", self.name).split("-")
        initials = "".join(part[:1] for part in parts if part)
        letters = initials if len(initials) > 2 else "".join(parts)
        return letters[:LONGEST].upper().ljust(2, "X")


def names_of(given: str, kind: str) -> Names:
    """Return the names. Raises UsageError for one that can't be a name, or that an installed package has."""
    name = given.removeprefix("ft-")
    if not NAME.fullmatch(name) or keyword.iskeyword(name.replace("-", "_")):
        said = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        hint = f"; did you mean {said}?" if NAME.fullmatch(said) else ""
        raise UsageError(
            f"{given!r} can't be the name of a package: expected words of a-z and 0-9, with - between{hint}"
        )
    names = Names(name)
    for info in catalog():
        if normalise(info.distribution) == names.distribution:
            raise UsageError(f"{names.distribution} is installed already ({info.location}); choose another name")
        if (info.kind, info.name) == (kind, name):
            raise UsageError(
                f"the {kind} {name!r} is offered by {info.distribution}, installed here; choose another name"
            )
    return names
