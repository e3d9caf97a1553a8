"""Every method on the device: it runs there, and gives the CPU's numbers."""

from __future__ import annotations

import pytest

from device import cases
from ft_host.testing import assert_same

# Values near 0 are differences of larger ones; sums are in another order on the device, whose attention is another.
TOLERANCE, ABSOLUTE = 1e-4, 1e-5


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Where the cases' models are made once, and their runs."""
    return tmp_path_factory.mktemp("device")


@pytest.mark.parametrize("case", cases.CASES)
def test_the_device_gives_the_numbers_of_the_cpu(case, root, on_device):
    cpu, device = on_device(cases.on_both, case, root / case.replace(" ", "-"))
    assert cpu
    assert_same(cpu, device, TOLERANCE, ABSOLUTE)
