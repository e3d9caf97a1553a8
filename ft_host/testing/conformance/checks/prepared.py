"""Preparing rows: in other processes, again, and as `ft-host data` shows it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import pickle
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.step import prepares
from ft_host.types import Drop
from ft_host.util.imports import cause

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

ROWS = 6  # that are prepared
# Another process: what it prints goes elsewhere than its rows.
THERE = """
import os, pickle, sys
given, rows = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path[:] = pickle.load(given)
prepare, raw = pickle.load(given)
rows.write(pickle.dumps([prepare(row) for row in raw]))
"""


def pure(subject: Subject) -> Figures:
    """The same rows again, in another order, and what a call leaves behind."""
    from ft_host.util.seeds import random_states

    _, prepare = prepares(subject)
    raw = subject.rows(count=ROWS)
    given, before = copy.deepcopy(raw), random_states()
    first = [prepare(row) for row in given]
    if given != raw:
        raise NotMet("ft_prepare changes the raw row that it is given")
    moved = [name for name, state in random_states().items() if state != before[name]]
    if moved:
        raise NotMet(f"ft_prepare draws from the random state of {' and of '.join(moved)}")
    again = [prepare(row) for row in reversed(copy.deepcopy(raw))][::-1]
    for one, other, row in zip(first, again, raw, strict=True):
        if repr(one) != repr(other):
            raise NotMet(f"ft_prepare gives something else when it is asked again, of {str(row)[:80]}")
    return {"rows": len(raw)}


def picklable(subject: Subject) -> Figures:
    """What goes to a process that prepares rows, and what comes back from it."""
    _, prepare = prepares(subject)
    raw = subject.rows(count=ROWS)
    try:
        theirs = pickle.loads(pickle.dumps(prepare))
    except Exception as error:  # of whatever the config or the tokenizer holds
        raise NotMet(f"the config or the tokenizer can't be sent to another process: {cause(error)}") from error
    for row in raw:
        made = theirs(row)
        try:
            found = pickle.loads(pickle.dumps(made))
        except Exception as error:  # of whatever a row holds
            raise NotMet(f"what ft_prepare gives can't be sent to another process: {cause(error)}") from error
        if repr(found) != repr(made):
            raise NotMet(f"what ft_prepare gives is something else in another process: {str(found)[:80]}")
    return {"rows": len(raw)}


def workers(subject: Subject) -> Figures:
    """The same rows, in a process that has none of this one's state."""
    _, prepare = prepares(subject)
    raw = subject.rows(count=ROWS)
    given = pickle.dumps(sys.path) + pickle.dumps((prepare, raw))
    process = subprocess.run([sys.executable, "-c", THERE], input=given, capture_output=True)
    if process.returncode:
        last = process.stderr.decode(errors="replace").strip().splitlines()[-1]
        raise NotMet(f"ft_prepare fails in a process of its own: {last}")
    for row, here, there in zip(raw, map(prepare, raw), pickle.loads(process.stdout), strict=True):
        if repr(here) != repr(there):
            raise NotMet(
                f"ft_prepare gives something else in a process of its own, of {str(row)[:80]}: {str(there)[:80]}"
                f" instead of {str(here)[:80]}"
            )
    return {"rows": len(raw)}


def shown(subject: Subject) -> Figures:
    """`ft-host data` on the suite's rows, and the targets of the batches of those rows."""
    from ft_host.cli.data import show
    from ft_host.cli.sides import sides_of
    from ft_host.data.prepare import prepared

    run, prepare = prepares(subject)
    raw = subject.rows(count=ROWS)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        show(subject.plugin, subject.config(raw), 2, ROWS, False)
    if subject.samples:
        return {"lines": len(said.getvalue().splitlines())}
    supervised = tokens = 0
    for number, row in enumerate(raw):
        for made in [] if isinstance(found := prepared(prepare, f"row {number + 1}", row), Drop) else found:
            batch = run.collate([made])
            sides = sides_of(made, lambda each: run.collate([each]), run.policy.head == "reward")
            learnt = Counter(token for side in sides.sides for token in side.labels if token >= 0)
            learnt += Counter(token for token in (sides.shared.labels if sides.shared else []) if token >= 0)
            targets = Counter(batch.targets.tolist())
            if run.policy.head != "reward" and learnt != targets:
                words = run.tokenizer.decode(list((targets - learnt or learnt - targets).elements()))
                raise NotMet(
                    f"`ft-host data` shows {learnt.total()} tokens of row {number + 1} as learnt, and the batch has"
                    f" {targets.total()} targets; among what differs: {words!r}"
                )
            supervised += sides.supervised
            tokens += made.get("length", sides.tokens)
    share = re.search(r"^  supervised +([\d.]+)%", said.getvalue(), re.MULTILINE)
    if share is not None and not math.isclose(float(share[1]), 100 * supervised / tokens, abs_tol=0.06):
        raise NotMet(f"`ft-host data` says that {share[1]} % are supervised; the batches have {supervised} of {tokens}")
    return {"supervised": supervised, "tokens": tokens}


CHECKS: list[Check] = [
    Check(
        id="data-pure",
        title="Preparing a row depends on the row alone, and leaves it as it is",
        about="method",
        why="Rows are prepared in several processes, again in each epoch, and once more by a run that is resumed.",
        looks_at="The same rows prepared again in the opposite order, the raw rows, and random states afterwards.",
        mend="Keep nothing between calls, copy what is changed, and seed a generator of its own by the row's content.",
        test=pure,
    ),
    Check(
        id="data-picklable",
        title="Config, tokenizer and rows can be sent to other processes",
        about="method",
        why="With `dataloader_num_workers` rows are prepared in processes beside the training.",
        looks_at="`ft_prepare` with its config and tokenizer, and what it gives, written with pickle and read again.",
        mend="Give rows of numbers, texts, lists and dicts: no functions, no open files.",
        test=picklable,
    ),
    Check(
        id="data-workers",
        title="Another process prepares the same rows",
        about="method",
        tier="stable",
        why="State that another hook has set in the training process isn't there, and the rows are others, silently.",
        looks_at="The same rows prepared in a process that was started for them.",
        mend="Compute what `ft_prepare` needs from its arguments. What is costly may be kept by a function with "
        "`functools.cache`, which each process fills for itself.",
        test=workers,
    ),
    Check(
        id="data-shown",
        title="`ft-host data` shows the targets that the batch has",
        about="method",
        why="It is where users look what is learnt before they pay for a run.",
        looks_at="What the command prints of a few rows, the tokens that it marks, and the targets of their batches.",
        mend="Make batches with `flat_batch` from segments and labels; targets that are something else than the next "
        "token can't be shown.",
        test=shown,
    ),
]
