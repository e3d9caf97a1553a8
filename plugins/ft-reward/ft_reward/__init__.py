"""Reward modelling on preference pairs, as a method package of ft-host."""
