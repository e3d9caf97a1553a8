"""Online direct preference optimization, as a method package of ft-host."""
