"""Simple preference optimization and contrastive preference optimization, as a method package of ft-host."""
