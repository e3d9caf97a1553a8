"""What a package promises to those who use it, as data: its public surface, and what has changed since another one."""

from ft_host.surface.compare import Change, changes
from ft_host.surface.host import host_surface
from ft_host.surface.package import package_surface
from ft_host.surface.verdict import Verdict, verdict

__all__ = ["Change", "Verdict", "changes", "host_surface", "package_surface", "verdict"]
