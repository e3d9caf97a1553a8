"""Self-distillation from feedback and successful attempts (SDPO), as a method package of ft-host."""
