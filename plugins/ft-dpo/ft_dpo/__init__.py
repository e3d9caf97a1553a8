"""Direct Preference Optimization and its kin, as a method package of ft-host."""
