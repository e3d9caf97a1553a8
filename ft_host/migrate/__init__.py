"""Run files from elsewhere: of an older release, or of TRL or axolotl, as one of this release."""

from ft_host.migrate.axolotl import read_axolotl
from ft_host.migrate.older import current_text, leaving
from ft_host.migrate.sources import Found, read_trl
from ft_host.migrate.translate import Translated, translate
from ft_host.migrate.write import run_file

__all__ = ["Found", "Translated", "current_text", "leaving", "read_axolotl", "read_trl", "run_file", "translate"]
