"""Attempts at a run file, each with the remedy of what the one before has found. Imports no torch."""
