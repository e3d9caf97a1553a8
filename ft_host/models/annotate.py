"""What a method's `ft_annotate` and `ft_step` are made with: values per row, from a model, without gradient.

    def reference_log_probs(model, batch):               # the method's: a batch of its ft_collate to values per row
        out = model(batch, want=("logp",))
        ...
        return {"ref_logps": sums}                       # each (rows,), in the order that ft_collate was given

    @hookimpl
    def ft_annotate(rows, run):
        return annotate(rows, run, "reference", reference_log_probs, identity=("prompt_ids", "completion_ids"))

`annotate` asks a companion, through the store where there is one; `policy_values` asks the policy as it is now. A value
may also be one a target: a list of tensors, one a row, as `ft_host.batch.by_row` splits them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ft_host.data.micro_batches import split_micro_batches
from ft_host.distributed.processes import agreed
from ft_host.errors import UsageError
from ft_host.models.aux_models import frozen_eval
from ft_host.models.store import Store, cache_folder, model_key, row_key
from ft_host.util.moved import names_of

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.data.stream import StepRows
    from ft_host.run import Run

Row = dict[str, Any]
__getattr__ = names_of(__name__, {"evaluate_rows": "ft_host.models.annotate:policy_values"})
Values = Callable[[Any, "Batch"], "dict[str, torch.Tensor | list[torch.Tensor]]"]

CHUNK = 256  # rows of a rank that are asked about together before training, where each stands for itself
TELL_EVERY = 30.0  # seconds between two sentences on how far it is; what is done by then is on disk


def annotate(
    rows: list[Row], run: Run, role: str, values: Values, *, identity: tuple[str, ...] = (), key: str = ""
) -> list[Row]:
    """The rows, each with what `values(model, batch)` gives for it as further columns (Python floats, or lists of
    them).

    `model` is `run.models[role]`. Where its values are made ahead, those that the store has are taken from it, and new
    ones put there; a row is known by its columns `identity` (lists of token ids) and by `key`, which must name every
    setting that `values` depends on. All ranks must call it at once; one may have no rows.
    """
    companion = run.models[role]
    if companion.spec.precompute is None or run.store is None:
        return added(rows, passes(rows, run, companion, values))
    names = [row_key(row, identity, f"{role} {key}") for row in rows]
    missing = {name: row for name, row in zip(names, rows, strict=True) if name not in run.store}
    if any(run.gather(len(missing))):
        found = passes(list(missing.values()), run, companion, values)
        for made in run.gather(dict(zip(missing, found, strict=True))):  # in another epoch it may be another rank's row
            run.store.put(made)
    return added(rows, [run.store[name] for name in names])


def policy_values(rows: list[Row], run: Run, values: Values) -> list[Row]:
    """As `annotate`, with the policy as it is now, in evaluation mode. Nothing is kept."""
    with frozen_eval(run.policy):
        return added(rows, passes(rows, run, run.policy, values))


def added(rows: list[Row], found: list[dict[str, float]]) -> list[Row]:
    return [row | more for row, more in zip(rows, found, strict=True)]


def passes(rows: list[Row], run: Run, model: Any, values: Values) -> list[dict[str, float]]:
    """Rows of like length together, `per_device_eval_batch_size` of them or a token budget at a time, through
    `values`. Ranks with fewer micro-batches take part in the others' with empty ones."""
    config = run.config
    order = list(range(len(rows)))
    if not any("group" in row for row in rows):  # rows of a group stand together and share their prompt
        order.sort(key=lambda index: rows[index]["length"])
    units = [[{"length": rows[index]["length"], "index": index}] for index in order]
    cuts = split_micro_batches(units, config.per_device_eval_batch_size, config.max_tokens_per_micro_batch)
    found: list[dict[str, float]] = [{} for _ in rows]
    parts: list[tuple[list[int], dict[str, Any]]] = []
    for at in range(max(run.gather(len(cuts)))):
        indices = [each["index"] for each in cuts[at]] if at < len(cuts) else []
        batch = run.collate([rows[index] for index in indices]).to(run.device)
        with torch.no_grad(), run.accelerator.autocast():
            parts.append((indices, values(model, batch)))
    for indices, made in parts:  # read only now: a device works on while the next batch is laid out
        for name, column in made.items():
            each = column.tolist() if isinstance(column, torch.Tensor) else [value.tolist() for value in column]
            for index, value in zip(indices, each, strict=True):
                found[index][name] = value
    return found


# ---------------------------------------------------------------- before the first step


def open_store(run: Run) -> None:
    """Give the run the store of what its companions say of rows. All ranks read it; the main process writes."""
    [spec] = [
        each.spec for each in run.models.values() if each.spec.precompute
    ]  # a second one would need its own store
    key = model_key(run.config, spec, run.device) if run.accelerator.is_main_process else None
    key = agreed(run.accelerator, key)
    run.store = Store(cache_folder() / "log-probs" / key if key else None)


def precompute(
    run: Run, steps: Iterable[StepRows], total: int | None, per_epoch: int | None, held_out: list[Row]
) -> None:
    """Annotate the rows of all steps to come, and this rank's held-out rows, so that the store has what they need.

    Where rows stand for themselves, many are asked about at once, and those of one epoch are enough: `per_epoch` is its
    number of raw rows, None where an epoch has other rows than the one before it. Raises UsageError for a row that
    can't be used, on all ranks.
    """
    alone = all(companion.spec.precompute in (None, "rows") for companion in run.models.values())
    limit = per_epoch if alone else None
    started = told = time.perf_counter()
    done = 0
    run.annotate(held_out)
    for rows in _chunks(run, iter(steps), total, limit, CHUNK if alone else 1):
        run.annotate(rows)
        done += sum(run.gather(len(rows)))
        if time.perf_counter() - told > TELL_EVERY:
            told = time.perf_counter()
            run.say(f"{', '.join(run.models)}: {done:,} rows are done")
            flush(run)
    flush(run)
    for companion in run.models.values():
        companion.release()
    run.say(
        f"{', '.join(run.models)}: values of {done:,} rows, {run.store.made:,} made in "
        f"{time.perf_counter() - started:.1f} s, the others from {run.store.folder or 'memory'}"
    )


def _chunks(
    run: Run, steps: Iterator[StepRows], total: int | None, limit: int | None, size: int
) -> Iterator[list[Row]]:
    """This rank's rows, `size` or more at a time, and as often on each rank."""
    count, ended = 0, False
    while not ended:
        rows: list[Row] = []
        error = None
        taken = 0
        while not ended and taken < size:
            try:
                step = next(steps, None) if total is None or count < total else None
            except UsageError as problem:
                error = str(problem)
                break
            ended = step is None
            if step is not None:
                count += 1
                taken += max(1, sum(len(unit) for unit in step.units))
                rows += [row for unit in step.units for row in unit]
                ended = limit is not None and step.rows_consumed >= limit
        problems = run.gather((error, ended))
        for problem, _ in problems:
            if problem:
                raise UsageError(problem)
        ended = all(over for _, over in problems)
        yield rows


def flush(run: Run) -> None:
    """Write what is new in the store, once."""
    if run.accelerator.is_main_process:
        run.store.flush()
