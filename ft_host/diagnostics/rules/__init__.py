"""The host's rules: about what every run has. Those of methods are in their packages (`ft_dpo/rules.py`).

settings   CFG   what the config alone shows
relations  CFG   values that are unusual, or don't go together
data, data_set, data_templates, data_rows, data_exchanges, data_texts, data_values
           DATA  rows and tokens, before a model is loaded
probes     PRB   what must hold before the first update
numbers    NUM   numbers that aren't finite
losses, gradients, optimisation, held_out  OPT  loss, gradients, updates, evaluations
no_rewards REW   rewards that apply to nothing
experts    MOE   the balance of a mixture of experts
engines, engine_times  ENG  the sampler beside the trainer
asynchrony, rollout_failures  ASY  rollouts that don't wait for training
gpu_memory, speed  PERF  memory and time
machine    SYS   stalls, disk
ranks      SYS   ranks that hold up the others
memory     SYS, PERF  memory that doesn't suffice
"""

from ft_host.diagnostics.rule import Rule
from ft_host.diagnostics.rules import (
    asynchrony,
    data,
    data_exchanges,
    data_rewards,
    data_rows,
    data_set,
    data_templates,
    data_texts,
    data_values,
    engine_times,
    engines,
    experts,
    gpu_memory,
    gradients,
    held_out,
    losses,
    machine,
    memory,
    no_rewards,
    numbers,
    optimisation,
    probes,
    ranks,
    references,
    relations,
    reward_noise,
    rollout_failures,
    settings,
    speed,
)

RULES: list[Rule] = [
    *settings.RULES,
    *relations.RULES,
    *data.RULES,
    *data_rewards.RULES,
    *data_set.RULES,
    *data_templates.RULES,
    *data_rows.RULES,
    *data_exchanges.RULES,
    *data_texts.RULES,
    *data_values.RULES,
    *numbers.RULES,
    *losses.RULES,
    *gradients.RULES,
    *optimisation.RULES,
    *held_out.RULES,
    *probes.RULES,
    *references.RULES,
    *no_rewards.RULES,
    *reward_noise.RULES,
    *engines.RULES,
    *engine_times.RULES,
    *asynchrony.RULES,
    *rollout_failures.RULES,
    *experts.RULES,
    *gpu_memory.RULES,
    *speed.RULES,
    *machine.RULES,
    *ranks.RULES,
    *memory.RULES,
]
