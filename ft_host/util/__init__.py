"""What every room may use: hints, imports, the terminal, memory. Imports no room but errors."""
