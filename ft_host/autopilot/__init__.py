"""Repeated attempts at a run file, each with the remedy of the previous attempt's findings. Imports no torch."""
