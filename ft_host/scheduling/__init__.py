"""Rollouts that don't wait for training: `rollouts: overlap` and `async`.

A *unit* is a prompt on its way (`unit`), from the moment that it is drawn until the step that learns from it. The
`ledger` holds all units, admits them within `max_staleness`, and says which of them a step takes. A `source` completes
them: `local` in the trainer's process (overlap), `remote` in a rollout process (async), whose other side is `process`.
In both a `Producer` runs `ft_rollout` for each unit in a thread, and its `Inbox` hands the requests of all threads to
one engine.

    ledger -> units -> source [ producer: ft_rollout in threads -> inbox -> engine ] -> events -> ledger -> buffer
"""
