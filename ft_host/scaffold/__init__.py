"""A new package, written by `ft-host new`: of a kind, from files in `common/` and `kinds/`, or from the source of an
installed method."""

from ft_host.scaffold.package import KINDS, new_package, package_from

__all__ = ["KINDS", "new_package", "package_from"]
