"""What is measured of a run beside its training: data, rewards, gradients, memory, silence; and the rules at work."""
