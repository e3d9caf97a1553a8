"""From prompts to the rows of a step: rollouts, the buffer, conversations with tools."""
