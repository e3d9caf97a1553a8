"""vLLM as the generation backend of ft-host. `ft_vllm.backend` has the hooks.

This package is installed in two environments: the trainer's, which needs no vLLM unless `mode` is `inprocess`, and
vLLM's, which needs no ft-host: there only `ft_vllm.engines` is imported.
"""

__version__ = "0.5.0"
