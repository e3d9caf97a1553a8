"""Reads run folders and makes pages and tables of them. Imports no torch and makes no network request."""

from ft_host.report.compare import write_comparison
from ft_host.report.run_page import write_report
from ft_host.rundir.find import find_runs
from ft_host.rundir.record import RunRecord, RunUnreadable, read_run

__all__ = ["RunRecord", "RunUnreadable", "find_runs", "read_run", "write_comparison", "write_report"]
