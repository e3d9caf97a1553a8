"""Learning from a teacher with another tokenizer, as a method package of ft-host."""
