"""The usual ranges of the backend's fields, each with its source. Imports no torch."""

from __future__ import annotations

from ft_host.api import Usual

MAX_NUM_SEQS = Usual(low=8, below=("slow",), why="completions wait for each other", source="vLLM's documentation: 256")
GPU_MEMORY_UTILIZATION = Usual(
    low=0.1,
    high=0.97,
    below=("slow",),
    why=("the cache holds few completions at once", "nothing is left for the kernels and the trainer"),
    source="vLLM's documentation: 0.9",
)
START_TIMEOUT = Usual(low=30.0, why="reading the weights may take longer", source="own judgement")
TIMEOUT = Usual(low=30.0, why="an answer that is slow once fails", source="own judgement")
TRANSFER_TIMEOUT = Usual(low=10.0, why="handing over a large model may take longer", source="own judgement")
HEALTH_PERIOD = Usual(
    low=0.1,
    high=300.0,
    why=("servers are asked all the time", "a server that died is noticed late"),
    source="own judgement",
)
HEALTH_TIMEOUT = Usual(low=0.5, why="a server that is busy counts as dead", source="own judgement")
