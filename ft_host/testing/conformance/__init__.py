"""What a package is held to, by tier: asked by `ft-host check`, and as tests of a package in three lines.

from ft_host.testing import conformance_tests

test_conformance = conformance_tests("ft-my-method")
"""

from __future__ import annotations
