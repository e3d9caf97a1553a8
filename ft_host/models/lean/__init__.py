"""Layers that keep less for the backward pass, and go through memory less often, for the time of a run.

Three parts, each of which works without the others:

- `norm`, `gated` and `rotary`: autograd functions in place of what a model's own norms, gated MLPs and rotations of
  queries and keys compute. A norm keeps its input and one number a token; a gated MLP keeps gate and up.
- `recognise`: finds the modules that compute just that, by their own forward and backward on random input. There is no
  list of architectures. Names, weights and what is saved stay the model's own.
- `remaking`: while a policy's forward runs, tensors that cheap operations can make again from what is kept anyway are
  not kept: outputs of norms, activations and their products, in whatever type a layer wants them.
"""

from ft_host.models.lean.recognise import Found, make_lean

__all__ = ["Found", "make_lean"]
