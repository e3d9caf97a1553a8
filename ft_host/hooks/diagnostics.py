"""What a run reports about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.diagnostics import Finding, Rule
    from ft_host.run import Run


@hookspec
def ft_rules() -> list[Rule]:
    """Return the rules that recognise this plugin's troubles: the same for every run.

    Implemented by a method's diagnostics, which are used with it, by diagnostics that a config names, or by a method in
    a file. Runs once, before anything is loaded, and without a run for `ft-host rules`. A rule whose metrics or config
    fields a run lacks is skipped, by name. Since 0.4.
    """


@hookspec
def ft_start(run: Run, resumed_from: int | None) -> None:
    """Prepare for a run that begins: its folder and its model exist, and nothing has been logged yet.

    Implemented by any plugin; runs on the main process, once, before `ft_log` and `ft_finding`. `resumed_from` is the
    step of the checkpoint that the run goes on from: later steps are logged again. None: it begins at step 0, whatever
    an earlier attempt has left. Since 0.5.
    """


@hookspec
def ft_finding(finding: Finding, run: Run) -> None:
    """Receive a finding as it is written to findings.jsonl: opened, worse, cleared or muted. A sink, as `ft_log` is.

    Implemented by any plugin; runs on the main process. Must not change the finding. Since 0.4.
    """


@hookspec
def ft_log(entry: dict[str, Any], run: Run) -> None:
    """Receive an entry of metrics.jsonl as it is written: a sink (progress bar, trackers) or an observer.

    Implemented by any plugin; runs on the main process after every optimizer step (`kind` is "train") and every
    evaluation (`kind` is "eval"). Must not change the entry. Since 0.1.
    """
