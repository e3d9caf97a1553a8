"""Measures data, rewards, gradients, memory and stalls beside the training, and runs the rules."""
