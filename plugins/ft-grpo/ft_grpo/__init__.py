"""Group relative policy optimization and its kin, as a method package of ft-host."""
