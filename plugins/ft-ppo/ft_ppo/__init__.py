"""Learning from rewards with a policy and a value model (PPO), as a method package of ft-host."""
