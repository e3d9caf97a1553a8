"""Helpers for a method's `ft_annotate` and `ft_step`: values per row, from a model, without gradient.

    def reference_log_probs(model, batch):               # from a batch of the method to values per row
        out = model(batch, want=("logp",))
        ...
        return {"ref_logps": sums}                       # each (rows,), in the order of ft_collate's rows

    @hookimpl
    def ft_annotate(rows, run):
        return annotate(rows, run, "reference", reference_log_probs, identity=("prompt_ids", "completion_ids"))

`annotate` calls an auxiliary model, through the store if there is one; `policy_values` calls the current policy. There
may also be one value per target: a list of tensors, one per row, as `ft_host.rollouts.rows.by_row` splits them.
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
from ft_host.models.store import Store, model_key, row_key
from ft_host.types import Row
from ft_host.util.cache import cache_folder
from ft_host.util.moved import names_of

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.data.stream import StepRows
    from ft_host.run import Run

__getattr__ = names_of(__name__)
Values = Callable[[Any, "Batch"], "dict[str, torch.Tensor | list[torch.Tensor]]"]

CHUNK = 256  # rows of a rank that are annotated together before training, where rows are independent
TELL_EVERY = 30.0  # seconds between two progress messages; finished values are on disk by then


def annotate(
    rows: list[Row], run: Run, role: str, values: Values, *, identity: tuple[str, ...] = (), key: str = ""
) -> list[Row]:
    """Return the rows with the results of `values(model, batch)` as further columns (Python floats, or lists of
    floats).

    `model` is `run.models[role]`. If its values are precomputed, they are read from the store, and new ones are written
    to it. A row is identified by its columns `identity` (lists of token ids) and by `key`, which must name every
    setting that `values` depends on. All ranks must call it at once; a rank may have no rows.
    """
    aux_model = run.models[role]
    if aux_model.spec.precompute is None or run.store is None:
        return added(rows, passes(rows, run, aux_model, values))
    names = [row_key(row, identity, f"{role} {key}") for row in rows]
    missing = {name: row for name, row in zip(names, rows, strict=True) if name not in run.store}
    if any(run.gather(len(missing))):
        computed = passes(list(missing.values()), run, aux_model, values)
        for values_of_rank in run.gather(
            dict(zip(missing, computed, strict=True))
        ):  # in another epoch the row may be on another rank
            run.store.put(values_of_rank)
    return added(rows, [run.store[name] for name in names])


def policy_values(rows: list[Row], run: Run, values: Values) -> list[Row]:
    """As `annotate`, with the current policy in evaluation mode. Nothing is stored."""
    with frozen_eval(run.policy):
        return added(rows, passes(rows, run, run.policy, values))


def added(rows: list[Row], columns: list[dict[str, float]]) -> list[Row]:
    return [row | more for row, more in zip(rows, columns, strict=True)]


def passes(rows: list[Row], run: Run, model: Any, values: Values) -> list[dict[str, float]]:
    """Run `values` over rows of similar length, `per_device_eval_batch_size` rows or a token budget at a time.

    Ranks with fewer micro-batches take part in the others' with empty ones.
    """
    config = run.config
    order = list(range(len(rows)))
    if not any("group" in row for row in rows):  # rows of a group stay together and share their prompt
        order.sort(key=lambda index: rows[index]["length"])
    units = [[{"length": rows[index]["length"], "index": index}] for index in order]
    cuts = split_micro_batches(units, config.per_device_eval_batch_size, config.max_tokens_per_micro_batch)
    results: list[dict[str, float]] = [{} for _ in rows]
    parts: list[tuple[list[int], dict[str, Any]]] = []
    for at in range(max(run.gather(len(cuts)))):
        indices = [each["index"] for each in cuts[at]] if at < len(cuts) else []
        batch = run.collate([rows[index] for index in indices]).to(run.device)
        with torch.no_grad(), run.accelerator.autocast():
            parts.append((indices, values(model, batch)))
    for indices, columns in parts:  # read only now: the device works while the next batch is laid out
        for name, column in columns.items():
            for index, value in zip(indices, _read(column), strict=True):
                results[index][name] = value
    return results


def _read(column: torch.Tensor | list[torch.Tensor]) -> list[Any]:
    """Return a column's values of each row, in one look at the device."""
    if isinstance(column, torch.Tensor) or not column:
        return column.tolist() if isinstance(column, torch.Tensor) else []
    values = torch.cat([value.flatten() for value in column]).cpu().split([value.numel() for value in column])
    return [read.view(value.shape).tolist() for read, value in zip(values, column, strict=True)]


# ---------------------------------------------------------------- before the first step


def open_store(run: Run) -> None:
    """Give the run the store of its auxiliary models' values. All ranks read it; the main process writes."""
    [spec] = [
        each.spec for each in run.models.values() if each.spec.precompute
    ]  # a second model would need its own store
    key = model_key(run.config, spec, run.device) if run.accelerator.is_main_process else None
    key = agreed(run.accelerator, key)
    run.store = store = Store(cache_folder() / "log-probs" / key if key else None)
    if store.damaged:
        more = f"; and {len(store.damaged) - 3} more" if len(store.damaged) > 3 else ""
        run.say(
            f"{store.folder}: {'; '.join(store.damaged[:3])}{more}. Their values are computed again; the files can be"
            " deleted",
            "warning",
        )


def precompute(
    run: Run, steps: Iterable[StepRows], total: int | None, per_epoch: int | None, held_out: list[Row]
) -> None:
    """Annotate the rows of all steps to come, and this rank's held-out rows, to fill the store.

    Where rows are independent, many are annotated at once, and those of one epoch are enough: `per_epoch` is its number
    of raw rows, None where each epoch has other rows. Raises UsageError for a row that can't be used, on all ranks.
    """
    alone = all(aux_model.spec.precompute in (None, "rows") for aux_model in run.models.values())
    limit = per_epoch if alone else None
    started = reported = time.perf_counter()
    done = 0
    run.annotate(held_out)
    for rows in _chunks(run, iter(steps), total, limit, CHUNK if alone else 1):
        run.annotate(rows)
        done += sum(run.gather(len(rows)))
        if time.perf_counter() - reported > TELL_EVERY:
            reported = time.perf_counter()
            run.say(f"{', '.join(run.models)}: {done:,} rows done")
            flush(run)
    flush(run)
    for aux_model in run.models.values():
        aux_model.release()
    run.say(
        f"{', '.join(run.models)}: values of {done:,} rows, {run.store.made:,} made in "
        f"{time.perf_counter() - started:.1f} s, the others from {run.store.folder or 'memory'}"
    )


def _chunks(
    run: Run, steps: Iterator[StepRows], total: int | None, limit: int | None, size: int
) -> Iterator[list[Row]]:
    """Yield this rank's rows, at least `size` at a time, equally often on each rank."""
    count, ended = 0, False
    while not ended:
        rows: list[Row] = []
        error = None
        size_so_far = 0
        while not ended and size_so_far < size:
            try:
                step = next(steps, None) if total is None or count < total else None
            except UsageError as problem:
                error = str(problem)
                break
            ended = step is None
            if step is not None:
                count += 1
                size_so_far += max(1, sum(len(unit) for unit in step.units))
                rows += [row for unit in step.units for row in unit]
                ended = limit is not None and step.rows_consumed >= limit
        problems = run.gather((error, ended))
        for problem, _ in problems:
            if problem:
                raise UsageError(problem)
        ended = all(over for _, over in problems)
        yield rows


def flush(run: Run) -> None:
    """Write new values of the store, once."""
    if run.accelerator.is_main_process:
        run.store.flush()
