"""Self-distillation from a demonstration in context (SDFT), as a method package of ft-host."""
