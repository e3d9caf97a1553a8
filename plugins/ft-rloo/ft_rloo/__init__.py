"""REINFORCE with leave-one-out baselines (RLOO), as a method package of ft-host."""
