"""The contract. Read these four modules and you know what a plugin can do.

data.py and loss.py are implemented by methods, generation.py by backends, diagnostics.py by any plugin.
"""

from pluggy import HookimplMarker, HookspecMarker

NAME = "ft_host"
hookspec = HookspecMarker(NAME)
hookimpl = HookimplMarker(NAME)
