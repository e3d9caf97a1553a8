"""A run's folder: writing it during the run, and reading it later. Imports no torch."""
