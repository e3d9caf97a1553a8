"""The contract with plugins: four modules of typed specifications, and nothing else.

Methods implement those of data.py and loss.py, and `ft_rollout`; backends those of generation.py; any plugin those of
diagnostics.py.
"""

from pluggy import HookimplMarker, HookspecMarker

NAME = "ft_host"
hookspec = HookspecMarker(NAME)
hookimpl = HookimplMarker(NAME)
