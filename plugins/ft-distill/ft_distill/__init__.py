"""Learning from a teacher of the same vocabulary: on-policy distillation and GKD, as a method package of ft-host."""
