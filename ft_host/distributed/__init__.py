"""The processes of a run: starting them, and communication between them."""
