"""A tiny model that knows the words of the suite's rows: what a healthy run begins with. New weights are no such thing,
and the host says so."""

from __future__ import annotations

import random
from pathlib import Path

STEPS, SENTENCES = 60, 16  # enough for half of the nats of guessing; a second


def save_taught(path: Path) -> None:
    """Write the suite's model after some steps on sentences of its rows' words, the same at every call."""
    import torch

    from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
    from ft_host.testing.rows import sentence

    model, tokenizer, noise = tiny_llama(), tiny_tokenizer(), random.Random(11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        texts = [f"{sentence(noise, 8)}? {sentence(noise, 9)}" for _ in range(SENTENCES)]
        tokens = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        longest = max(map(len, tokens))
        ids = torch.tensor([each + [tokenizer.pad_token_id] * (longest - len(each)) for each in tokens])
        labels = torch.tensor([each + [-100] * (longest - len(each)) for each in tokens])
        model(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    save_tiny(path, model, tokenizer)
