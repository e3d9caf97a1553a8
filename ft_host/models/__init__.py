"""The policy: a transformers model that takes a forest of segments and gives per-target values."""
