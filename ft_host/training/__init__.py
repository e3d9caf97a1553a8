"""One run: set up, trained, evaluated, saved."""
