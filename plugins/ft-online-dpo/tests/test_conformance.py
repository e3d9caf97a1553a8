"""What every package is held to: `ft-host check ft-online-dpo`, a test for each check."""

from ft_host.testing import conformance_tests

test_conformance = conformance_tests("ft-online-dpo")
