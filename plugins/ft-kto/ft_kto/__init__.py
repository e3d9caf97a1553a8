"""Learning from single completions marked good or bad (KTO), as a method package of ft-host."""
