"""What a run tells about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.run import Run


@hookspec
def ft_log(entry: dict[str, Any], run: Run) -> None:
    """Receive an entry of metrics.jsonl as it is written: a sink (progress bar, trackers) or an observer.

    Implemented by any plugin; runs on the main process after every optimizer step (`kind` is "train") and every
    evaluation (`kind` is "eval"). Must not change the entry. Since 0.1.
    """
