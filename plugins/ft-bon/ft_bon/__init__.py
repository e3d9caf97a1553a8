"""Best of n (rejection sampling, RAFT), as a method package of ft-host."""
