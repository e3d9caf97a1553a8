"""Supervised fine-tuning, as a method package of ft-host."""
