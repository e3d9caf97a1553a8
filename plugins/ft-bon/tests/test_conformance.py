"""What every package is held to: `ft-host check ft-bon`, a test for each check."""

from ft_host.testing import conformance_tests

test_conformance = conformance_tests("ft-bon")
