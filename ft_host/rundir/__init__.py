"""A run's folder: how it is written, and how it is read later. Imports no torch."""
