"""Helpers for all other packages: hints, imports, the terminal, memory. Imports only ft_host.errors."""
