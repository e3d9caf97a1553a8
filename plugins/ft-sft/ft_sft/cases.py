"""The rules of SFT, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_host.testing import Told, steps

CASES = {
    "SFT001": (
        Told(lines=steps(60, loss=6.0, entropy=1.1)),
        # another kind of text at first, which the model gets used to
        Told(lines=steps(60, loss=lambda step: 0.9 + 4 / step, entropy=lambda step: 0.8 + 1 / step)),
    )
}
