"""Runs in which nothing is wrong, some of which look as if there were. Every method, several rates that work, short and
long, both architectures and a mixture of experts."""

from __future__ import annotations

from cases.kinds import RIGHT, SOLVABLE, TEXTS, Kind, Times

TRAINED = {"model": "@model/start", "learning_rate": Times(0.2)}
LORA = {"model": "@model/start", "use_peft": True, "lora_r": 8, "lora_alpha": 16}
TWO = ("transduction", "lookup")


def healthy(method: str, name: str, what: str, **fields: object) -> Kind:
    return Kind(name=f"healthy-{method}{'-' if name else ''}{name}", method=method, what=what, **fields)


KINDS = [
    # -- sft
    healthy("sft", "", "from random weights"),
    healthy("sft", "long", "twice as long, a cosine", config={"max_steps": 240, "lr_scheduler_type": "cosine"}),
    healthy("sft", "twenty-steps", "a trained model, twenty steps", config=TRAINED | {"max_steps": 20, "warmup_steps": 2}),
    healthy("sft", "third-rate", "a third of the rate", config={"learning_rate": Times(1 / 3)}),
    healthy("sft", "double-rate", "twice the rate", config={"learning_rate": Times(2)}),
    healthy("sft", "other", "another architecture", config={"model": "@model/other", "learning_rate": Times(0.7)}),
    healthy("sft", "moe", "a mixture of experts", config={"model": "@model/moe", "router_aux_loss_coef": 0.02}),
    healthy("sft", "tuned", "a model that is good from the start: a low loss",
            config={"model": "@model/able", "learning_rate": Times(0.03)}),
    healthy("sft", "slow-warm-up", "half of the run is warm-up", config={"warmup_steps": 0.5}),
    healthy("sft", "two-rows", "two rows a step: noisy",
            config={"per_device_train_batch_size": 2, "learning_rate": Times(0.3), "max_steps": 200}, families=SOLVABLE),
    healthy("sft", "clipping", "clipped at most steps, and learns", config={"max_grad_norm": 0.3}),
    healthy("sft", "packing", "packed blocks",
            config={"packing": True, "max_length": 128, "per_device_train_batch_size": 4},
            own={"gsm8k": {"max_length": 512, "per_device_train_batch_size": 2}}),
    healthy("sft", "by-length", "rows grouped by length",
            config={"train_sampling_strategy": "group_by_length", "data_window": 400}, families=TEXTS),
    healthy("sft", "lora", "LoRA on all linear layers at a rate for it", config=LORA | {"learning_rate": 3e-3}),
    healthy("sft", "adapter", "an adapter is trained on", config={"model": "@model/adapter", "use_peft": True, "learning_rate": 3e-3}),
    healthy("sft", "restarts", "a cosine that restarts twice", families=TWO,
            config={"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}, "max_steps": 180}),
    healthy("sft", "accumulation", "four micro-batches a step", families=TWO,
            config={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
    healthy("sft", "constant-rate", "a constant rate without warm-up",
            config={"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": Times(0.6)}),
    healthy("sft", "stream", "rows of a stream", config={"dataset_streaming": True, "max_steps": 60}, families=TWO),
    healthy("sft", "scored", "completions of held-out rows scored",
            config=TRAINED | {"eval_steps": 40, "eval_reward": [RIGHT]}),
    healthy("sft", "dft", "another loss", config=TRAINED | {"loss_type": "dft", "learning_rate": Times(0.1)}),
    # -- preferences
    healthy("dpo", "", "with the family's loss"),
    healthy("dpo", "sigmoid", "the plain loss, at a third of the rate",
            config={"loss_type": ["sigmoid"], "loss_weights": [], "learning_rate": Times(1 / 3)}),
    healthy("dpo", "late", "accuracy rises late",
            config={"learning_rate": Times(0.1), "lr_scheduler_type": "constant", "warmup_steps": 30, "max_steps": 160}),
    healthy("dpo", "thirty-steps", "thirty steps", config={"max_steps": 30, "warmup_steps": 3, "eval_steps": 10}),
    healthy("dpo", "lora", "LoRA, whose reference is the model without it",
            config=LORA | {"learning_rate": 1e-3}),
    healthy("kto", "", "weights that balance the labels"),
    healthy("kto", "long", "half the rate and more steps", config={"learning_rate": Times(0.5), "max_steps": 200}),
    healthy("reward", "", "pairs"),
    healthy("reward", "margins", "pairs with margins", train="with_margins", held_out="with_margins"),
    healthy("reward", "third-rate", "a third of the rate", config={"learning_rate": Times(1 / 3)}),
    # -- rewards of completions
    healthy("grpo", "", "no reference: the loss is about 0"),
    healthy("grpo", "long", "half the rate, and twice as long", config={"learning_rate": Times(0.5), "max_steps": 120}),
    healthy("grpo", "solved", "goes on until the task is solved", families=SOLVABLE,
            config={"model": "@model/able", "learning_rate": Times(0.2)}),
    healthy("grpo", "kl", "KL rises slowly, with the reward", config={"beta": 0.02}),
    healthy("grpo", "iterations", "two passes over each rollout", config={"num_iterations": 2, "learning_rate": Times(0.5)}),
    healthy("grpo", "small", "four prompts a step: noisy",
            config={"per_device_train_batch_size": 32, "learning_rate": Times(0.3), "max_steps": 80}),
    healthy("rloo", "", "no reference"),
    healthy("rloo", "kl", "with a reference", config={"beta": 0.01}),
    healthy("ppo", "", "no reference"),
    healthy("ppo", "kl", "with a reference", config={"kl_coef": 0.01}),
    # -- teachers
    healthy("distill", "", "the forward KL of a better model"),
    healthy("distill", "reverse", "the reverse KL", config={"beta": 1.0, "learning_rate": Times(0.5)}),
    healthy("gkd", "", "half of the completions are the student's"),
    healthy("gkd", "rows", "completions of the rows only", config={"lmbda": 0.0}),
    healthy("gold", "", "a teacher with another tokenizer"),
    healthy("sdft", "", "demonstrations that the model makes use of"),
    healthy("sdft", "third-rate", "a third of the rate", config={"learning_rate": Times(1 / 3)}),
    healthy("sdpo", "", "solutions that the model makes use of"),
    healthy("sdpo", "third-rate", "a third of the rate", config={"learning_rate": Times(1 / 3)}),
]
