"""The order of causes and consequences, written once: what can follow from what. Imports no torch.

A finding can follow only from one at its own level or an earlier one. Rules say whether one explains another (`mutes`,
`follows_from`); this order says which way that can go. Of two findings that ask for contrary changes of a field, the
earlier one is right.
"""

from __future__ import annotations

LEVELS = {  # from cause to consequence
    "settings": "what the config alone shows",
    "rows": "the data: rows, tokens, labels",
    "numbers": "numbers that aren't finite, or overflow",
    "models": "the model and what is beside it: its reference, its teacher, what samples",
    "machine": "memory, processes, disks: what keeps a run from going on",
    "rewards": "rewards that fail, apply to nothing, or cancel",
    "signal": "nothing to learn from: groups that earn the same, a teacher with nothing to say",
    "updates": "steps that go too far",
    "gradients": "gradients that spike or vanish",
    "loss": "a loss that jumps or rises",
    "policy": "what a method sees of its policy or its preferences: entropy, KL, margins, lengths",
    "results": "what comes of it: rewards that fall, held-out rows, labels that teach nothing",
    "standstill": "nothing is learnt, which anything above may be the reason of",
    "notes": "remarks on a run that goes on as it should, or on a small part of it",
    "speed": "time, and memory that is left over",
}
OF_STAGE = {"before": "rows", "probe": "models", "train": "policy", "after": "notes"}  # of rules that name no level
PLACES = {level: place for place, level in enumerate(LEVELS)}
