"""Runs as TRL's documentation, its examples and its scripts have them, from 0.7 on, in words of our own: command lines,
YAML files and scripts, with what becomes of each.

`left`: names that have no counterpart. `person`: what only a person can say (rewards that a script computes, say).
`needed`: what the source doesn't say and a run must have. `same`: whether two steps of it, its model and its rows made
tiny, are those of TRL; where not, docs/from-trl.md and the packages' READMEs say why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    method: str
    text: str
    left: tuple[str, ...] = ()
    person: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    same: bool = True  # as TRL's own two steps, where the installed TRL has the method

    @property
    def kind(self) -> str:
        if "\nfrom " in self.text:
            return "py"
        return "line" if " --" in self.text else "yaml"


CASES = [
    # ---------------------------------------------------------------- sft
    Case(
        "sft-full",
        "sft",
        "trl sft --model_name_or_path Qwen/Qwen2-0.5B --dataset_name trl-lib/Capybara "
        "--learning_rate 2.0e-5 --num_train_epochs 1 --packing --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 8 --eos_token <|im_end|> --eval_strategy steps --eval_steps 100 "
        "--output_dir Qwen2-0.5B-SFT",
    ),
    Case(
        "sft-lora",
        "sft",
        "python trl/scripts/sft.py --model_name_or_path Qwen/Qwen2-0.5B --dataset_name "
        "trl-lib/Capybara --learning_rate 2.0e-4 --num_train_epochs 1 --packing --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 8 --use_peft --lora_r 32 --lora_alpha 16 --output_dir out",
    ),
    Case(
        "sft-yaml",
        "sft",
        """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: stanfordnlp/imdb
report_to: none
learning_rate: 0.0001
lr_scheduler_type: cosine
dataset_text_field: text
max_length: 512
bf16: true
gradient_checkpointing: true
""",
    ),
    Case(
        "sft-old-cli",
        "sft",
        "trl sft --model_name_or_path facebook/opt-125m --dataset_name stanfordnlp/imdb "
        "--dataset_text_field text --max_seq_length 128 --report_to none --lr_scheduler_type cosine --packing",
    ),
    Case(
        "sft-fsdp",
        "sft",
        "trl sft --config nothing.yaml --model_name_or_path org/m --dataset_name org/d "
        "--accelerate_config fsdp2 --num_processes 8 --assistant_only_loss true --attn_implementation "
        "flash_attention_2",
        left=("attn_implementation",),
    ),
    Case(
        "sft-neftune",
        "sft",
        "accelerate launch --config_file zero3.yaml sft.py --model_name_or_path org/m "
        "--dataset_name org/d --neftune_noise_alpha 5 --warmup_ratio 0.03 --logging_strategy steps --save_strategy "
        'epoch --evaluation_strategy epoch --gradient_checkpointing_kwargs {"use_reentrant":false}',
        left=("save_strategy", "evaluation_strategy", "gradient_checkpointing_kwargs"),
    ),
    Case(
        "sft-mixture",
        "sft",
        """
model_name_or_path: org/m
datasets:
  - path: org/a
    split: train
    columns: [messages]
    fraction: 0.7
  - path: org/b
    name: small
    fraction: 0.3
learning_rate: 2.0e-5
loss_type: chunked_nll
chat_template_path: HuggingFaceTB/SmolLM3-3B
""",
    ),
    Case(
        "sft-script",
        "sft",
        """
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("stanfordnlp/imdb", split="train")
trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=SFTConfig(output_dir="/tmp", packing=True))
trainer.train()
""",
    ),
    Case(
        "sft-old-script",
        "sft",
        """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import DataCollatorForCompletionOnlyLM, SFTTrainer

rows = load_dataset("lucasmccabe-lmi/CodeAlpaca-20k", split="train")
name = "facebook/opt-350m"
model = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto")
collator = DataCollatorForCompletionOnlyLM("### Answer:", tokenizer=tokenizer)
trainer = SFTTrainer(model, train_dataset=rows, formatting_func=prompts, data_collator=collator, max_seq_length=1024,
                     args=TrainingArguments(output_dir="out", per_device_train_batch_size=4, bf16=True))
""",
        left=("DataCollatorForCompletionOnlyLM",),
        person=("formatting_func",),
    ),
    Case(
        "sft-qlora-script",
        "sft",
        """
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                          bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained("org/m", quantization_config=bits, attn_implementation="sdpa")
rows = load_dataset("org/chats")
peft_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM",
                         target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], modules_to_save=["lm_head"])
args = SFTConfig(output_dir="out", optim="paged_adamw_8bit", lr_scheduler_type="constant", max_grad_norm=0.3,
                 warmup_ratio=0.03, tf32=True, push_to_hub=True, eval_strategy="steps", dataset_kwargs={"a": 1})
SFTTrainer(model=model, args=args, train_dataset=rows["train"], eval_dataset=rows["test"], peft_config=peft_config)
""",
        left=("bnb_4bit_compute_dtype", "tf32", "push_to_hub", "dataset_kwargs"),
    ),
    Case(
        "sft-json-script",
        "sft",
        """
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("json", data_files="train.jsonl", split="train").shuffle(seed=1)
SFTTrainer(model="org/m", args=SFTConfig(completion_only_loss=True, max_length=None), train_dataset=rows)
""",
        person=("dataset_name",),
    ),
    # ---------------------------------------------------------------- dpo
    Case(
        "dpo-full",
        "dpo",
        "python trl/scripts/dpo.py --dataset_name trl-lib/ultrafeedback_binarized "
        "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --learning_rate 5.0e-7 --num_train_epochs 1 "
        "--per_device_train_batch_size 2 --max_steps 1000 --gradient_accumulation_steps 8 --eval_strategy steps "
        "--eval_steps 50 --output_dir Qwen2-0.5B-DPO --no_remove_unused_columns",
    ),
    Case(
        "dpo-lora",
        "dpo",
        "trl dpo --dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path "
        "Qwen/Qwen2-0.5B-Instruct --learning_rate 5.0e-6 --per_device_train_batch_size 2 --use_peft --lora_r 32 "
        "--lora_alpha 16 --eval_strategy steps --eval_steps 50 --no_remove_unused_columns",
    ),
    Case(
        "dpo-old-cli",
        "dpo",
        "trl dpo --model_name_or_path facebook/opt-125m --output_dir trl-hh-rlhf --dataset_name "
        "trl-internal-testing/hh-rlhf-helpful-base-trl-style --beta 0.1 --max_length 512 --max_prompt_length 128 "
        "--logging_first_step --warmup_steps 150",
        left=("max_prompt_length", "logging_first_step"),
    ),
    Case(
        "dpo-ipo",
        "dpo",
        "trl dpo --model_name_or_path org/m --dataset_name org/d --loss_type ipo --beta 0.1 "
        "--precompute_ref_log_probs true --precompute_ref_batch_size 16 --rpo_alpha 1.0",
    ),
    Case(
        "dpo-mpo",
        "dpo",
        "trl dpo --model_name_or_path org/m --dataset_name org/d --loss_type sigmoid bco_pair sft "
        "--loss_weights 0.8 0.2 1.0 --padding_free --use_liger_kernel",
    ),
    Case(
        "dpo-wpo",
        "dpo",
        "trl dpo --model_name_or_path org/m --dataset_name org/d --use_weighting --ld_alpha 0.5 "
        "--f_divergence_type js_divergence --sync_ref_model --ref_model_sync_steps 64 --ref_model_mixup_alpha 0.9 "
        "--label_smoothing 0.1 --dataset_num_proc 4",
        left=("label_smoothing",),
    ),
    Case(
        "dpo-script",
        "dpo",
        """
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct")
train_dataset = load_dataset("trl-lib/ultrafeedback_binarized", split="train")
training_args = DPOConfig(output_dir="Qwen2-0.5B-DPO", logging_steps=10, beta=0.05)
trainer = DPOTrainer(model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset)
""",
    ),
    Case(
        "dpo-old-script",
        "dpo",
        """
from transformers import TrainingArguments
from trl import DPOTrainer

trainer = DPOTrainer(model, ref_model, args=TrainingArguments("out", learning_rate=5e-5, remove_unused_columns=False),
                     beta=0.1, loss_type="hinge", train_dataset=rows, tokenizer=tokenizer, max_length=1024,
                     max_prompt_length=512, max_target_length=512, label_pad_token_id=-100)
""",
        left=("max_prompt_length", "max_target_length", "label_pad_token_id"),
        person=("model_name_or_path", "dataset_name"),
    ),
    # ---------------------------------------------------------------- kto
    Case(
        "kto-full",
        "kto",
        "trl kto --dataset_name trl-lib/kto-mix-14k --model_name_or_path "
        "trl-lib/qwen1.5-1.8b-sft --per_device_train_batch_size 16 --num_train_epochs 1 --learning_rate 5e-7 "
        "--lr_scheduler_type cosine --gradient_accumulation_steps 1 --eval_steps 500 --warmup_steps 0.1 "
        "--logging_first_step",
        left=("eval_steps", "logging_first_step"),
    ),
    Case(
        "kto-qlora",
        "kto",
        "python examples/scripts/kto.py --dataset_name org/d --model_name_or_path org/m "
        "--learning_rate 5e-7 --warmup_ratio 0.1 --bf16 --use_peft --load_in_4bit --lora_target_modules all-linear "
        "--lora_r 16 --lora_alpha 16",
    ),
    Case(
        "kto-apo",
        "kto",
        """
model_name_or_path: org/m
dataset_name: org/d
loss_type: apo_zero_unpaired
beta: 0.1
desirable_weight: 1.33
undesirable_weight: 1.0
max_prompt_length: 256
precompute_ref_log_probs: false
""",
        left=("max_prompt_length",),
    ),
    # ---------------------------------------------------------------- reward
    Case(
        "reward-full",
        "reward",
        "python trl/scripts/reward.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
        "--dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2-0.5B-Reward --per_device_train_batch_size "
        "8 --num_train_epochs 1 --learning_rate 1.0e-5 --eval_strategy steps --eval_steps 50 --max_length 2048",
    ),
    Case(
        "reward-lora",
        "reward",
        "trl reward --model_name_or_path org/m --dataset_name org/d --use_peft "
        "--lora_task_type SEQ_CLS --lora_r 32 --lora_alpha 16 --center_rewards_coefficient 0.01 "
        "--gradient_checkpointing True",
        left=("lora_task_type",),
    ),
    Case(
        "reward-script",
        "reward",
        """
from datasets import load_dataset
from trl import RewardConfig, RewardTrainer

rows = load_dataset("trl-lib/ultrafeedback_binarized")
args = RewardConfig(output_dir="out", per_device_train_batch_size=2, disable_dropout=True)
RewardTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", args=args, train_dataset=rows["train"], eval_dataset=rows["test"])
""",
        left=("dataset_test_split",),
    ),
    # ---------------------------------------------------------------- grpo
    Case(
        "grpo-full",
        "grpo",
        "trl grpo --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name "
        "trl-lib/DeepMath-103K --reward_funcs accuracy_reward --per_device_train_batch_size 8 --num_generations 4 "
        "--max_completion_length 512 --learning_rate 1e-6",
    ),
    Case(
        "grpo-vllm-server",
        "grpo",
        "CUDA_VISIBLE_DEVICES=0,1 accelerate launch trl/scripts/grpo.py "
        "--model_name_or_path org/m --dataset_name org/d --reward_funcs think_format_reward my_lib.rewards.short "
        "--use_vllm --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8001 --vllm_server_timeout 300",
    ),
    Case(
        "grpo-vllm-colocate",
        "grpo",
        """
model_name_or_path: org/m
dataset_name: org/d
reward_funcs: [get_soft_overlong_punishment]
reward_model_name_or_path: org/judge
reward_weights: [1.0, 0.2]
use_vllm: true
vllm_mode: colocate
vllm_gpu_memory_utilization: 0.3
vllm_tensor_parallel_size: 2
vllm_enable_sleep_mode: true
log_completions: true
num_completions_to_print: 4
use_peft: true
lora_target_modules: [q_proj, v_proj]
""",
        left=("vllm_enable_sleep_mode",),
    ),
    Case(
        "grpo-gspo",
        "grpo",
        "trl grpo --model_name_or_path org/m --dataset_name org/d --reward_funcs "
        "think_format_reward --importance_sampling_level sequence --loss_type grpo --beta 0.0 --epsilon 3e-4 "
        "--epsilon_high 4e-4 --gradient_accumulation_steps 1 --steps_per_generation 4",
    ),
    Case(
        "grpo-dapo",
        "grpo",
        "trl grpo --model_name_or_path org/m --dataset_name org/d --reward_funcs "
        "think_format_reward --loss_type dapo --epsilon_high 0.28 --mask_truncated_completions true --beta 0 "
        "--num_iterations 2 --temperature 1.0 --scale_rewards false",
    ),
    Case(
        "grpo-old",
        "grpo",
        "trl grpo --model_name_or_path org/m --dataset_name org/d --reward_funcs "
        "think_format_reward --beta 0.04 --max_prompt_length 512 --use_vllm --vllm_device cuda:7 "
        "--vllm_gpu_memory_utilization 0.7 --num_generations 8 --log_completions",
        left=("vllm_device",),
    ),
    Case(
        "grpo-script",
        "grpo",
        """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

dataset = load_dataset("trl-lib/DeepMath-103K", split="train")
trainer = GRPOTrainer(model="Qwen/Qwen2-0.5B-Instruct", reward_funcs=accuracy_reward, train_dataset=dataset)
trainer.train()
""",
    ),
    Case(
        "grpo-own-reward",
        "grpo",
        """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")

def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]

training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", logging_steps=10, shuffle_dataset=False)
GRPOTrainer(model="org/m", reward_funcs=reward_len, args=training_args, train_dataset=dataset).train()
""",
        person=("reward_funcs",),
    ),
    Case(
        "grpo-entropy",
        "grpo",
        "trl grpo --model_name_or_path org/m --dataset_name org/d --reward_funcs "
        "think_format_reward --top_entropy_quantile 0.2 --loss_type cispo --epsilon_high 5.0 --beta 0.001 "
        "--sync_ref_model --repetition_penalty 1.05 --generation_kwargs '{\"top_k\": 20}'",
    ),
    # ---------------------------------------------------------------- rloo
    Case(
        "rloo-full",
        "rloo",
        "trl rloo --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name "
        "trl-lib/DeepMath-103K --reward_funcs accuracy_reward --num_generations 4 --beta 0.05 "
        "--normalize_advantages true --reward_clip_range -1 1",
    ),
    Case(
        "rloo-old",
        "rloo",
        "python -i examples/scripts/rloo/rloo_tldr.py --dataset_name "
        "trl-internal-testing/tldr-preference-sft-trl-style --dataset_test_split validation --learning_rate 3e-6 "
        "--output_dir models/minimal/rloo_tldr --num_ppo_epochs 1 --num_mini_batches 1 --rloo_k 2 "
        "--per_device_train_batch_size 16 --gradient_accumulation_steps 4 --total_episodes 1000 --model_name_or_path "
        "EleutherAI/pythia-1b-deduped --sft_model_path cleanrl/sft --reward_model_path cleanrl/reward "
        "--missing_eos_penalty 1.0 --response_length 53 --stop_token eos --kl_coef 0.05",
        left=(
            "dataset_test_split",
            "num_mini_batches",
            "total_episodes",
            "sft_model_path",
            "missing_eos_penalty",
            "stop_token",
        ),
    ),
    # ---------------------------------------------------------------- distillation, gkd, gold
    Case(
        "distillation",
        "distill",
        "trl distillation --model_name_or_path Qwen/Qwen3-0.6B --teacher_model_name_or_path "
        "Qwen/Qwen3-4B --dataset_name trl-lib/DeepMath-103K --beta 0.5 --max_completion_length 1024 "
        "--learning_rate 1e-5",
    ),
    Case(
        "distillation-script",
        "distill",
        """
from datasets import load_dataset
from trl import DistillationConfig, DistillationTrainer

trainer = DistillationTrainer(model="org/small", teacher_model="org/large", args=DistillationConfig(temperature=0.9),
                              train_dataset=load_dataset("org/prompts", split="train"))
""",
    ),
    Case(
        "gkd",
        "gkd",
        "python trl/experimental/gkd/gkd.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
        "--teacher_model_name_or_path Qwen/Qwen2-1.5B-Instruct --dataset_name trl-lib/chatbot_arena_completions "
        "--learning_rate 2e-5 --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --output_dir gkd-model "
        "--num_train_epochs 1 --push_to_hub --lmbda 0.7 --beta 0.3",
        left=("push_to_hub",),
        same=False,
    ),
    Case(
        "gkd-script",
        "gkd",
        """
from transformers import AutoModelForCausalLM
from trl.experimental.gkd import GKDConfig, GKDTrainer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct")
teacher = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-1.5B-Instruct")
training_args = GKDConfig(output_dir="gkd-model", per_device_train_batch_size=1, seq_kd=True, max_new_tokens=64)
GKDTrainer(model=model, teacher_model=teacher, args=training_args, train_dataset=train_dataset)
""",
        person=("dataset_name",),
        same=False,
    ),
    Case(
        "gold",
        "gold",
        "accelerate launch trl/experimental/gold/gold.py --model_name_or_path org/small "
        "--teacher_model_name_or_path org/large --dataset_name org/chats --use_uld_loss "
        "--teacher_tokenizer_name_or_path org/large --uld_use_hybrid_loss --learning_rate 2e-5 --lmbda 0.0 "
        "--max_length 2048",
        same=False,
    ),
    Case(
        "gkd-same-temperature",
        "gkd",
        "python trl/experimental/gkd/gkd.py --model_name_or_path org/small --teacher_model_name_or_path org/large "
        "--dataset_name org/chats --temperature 1.0 --beta 0.5 --lmbda 0.0 --use_peft --lora_r 64",
    ),
    Case(
        "gold-bayesian",
        "gold",
        "trl gold --model_name_or_path org/small --teacher_model_name_or_path org/large --dataset_name org/chats "
        "--use_uld_loss --uld_token_merge_strategy bayesian --uld_use_hybrid_loss --temperature 1.0 "
        "--uld_skip_student_eos false --uld_skip_teacher_eos false",
    ),
    # ---------------------------------------------------------------- orpo, simpo
    Case(
        "orpo",
        "orpo",
        "accelerate launch examples/scripts/orpo.py --dataset_name trl-lib/ultrafeedback_binarized "
        "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --per_device_train_batch_size 4 --learning_rate 8e-6 --beta 0.2 "
        "--lr_scheduler_type linear --max_prompt_length 128 --max_length 256 --gradient_accumulation_steps 1 "
        "--logging_steps 10 --warmup_steps 150 --report_to wandb --bf16 --logging_first_step "
        "--no_remove_unused_columns",
        left=("max_prompt_length", "logging_first_step"),
    ),
    Case(
        "cpo",
        "simpo",
        "python examples/scripts/cpo.py --dataset_name org/pairs --model_name_or_path gpt2 --learning_rate 8e-6 "
        "--cpo_alpha 0.5 --beta 0.1 --use_peft --lora_r 16 --lora_alpha 16",
    ),
    Case(
        "simpo-script",
        "simpo",
        """
from trl.experimental.cpo import CPOConfig, CPOTrainer

args = CPOConfig(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=2.0, label_smoothing=0.1)
CPOTrainer(model="org/m", args=args, train_dataset=load_dataset("org/pairs", split="train"))
""",
    ),
    # ---------------------------------------------------------------- ppo
    Case(
        "ppo-tldr",
        "ppo",
        "python examples/scripts/ppo/ppo_tldr.py --dataset_name "
        "trl-internal-testing/tldr-preference-sft-trl-style --dataset_test_split validation --learning_rate 3e-6 "
        "--output_dir models/minimal/ppo_tldr --per_device_train_batch_size 1 --gradient_accumulation_steps 64 "
        "--total_episodes 30000 --model_name_or_path EleutherAI/pythia-1b-deduped --reward_model_path cleanrl/reward "
        "--missing_eos_penalty 1.0 --stop_token eos --eval_strategy steps --eval_steps 100",
        left=("stop_token",),
    ),
    Case(
        "ppo-v2",
        "ppo",
        "accelerate launch examples/scripts/ppo/ppo.py --dataset_name org/d --learning_rate 3e-6 "
        "--num_ppo_epochs 1 --num_mini_batches 2 --output_dir out --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 2 --total_episodes 10000 --model_name_or_path org/m --sft_model_path org/m2 "
        "--reward_model_path org/r --local_rollout_forward_batch_size 8 --missing_eos_penalty 1.0 --kl_estimator k3",
        left=("sft_model_path",),
    ),
    Case(
        "ppo-0.7",
        "ppo",
        """
from trl import PPOConfig, PPOTrainer

config = PPOConfig(model_name="lvwerra/gpt2-imdb", learning_rate=1.41e-5, log_with="wandb", batch_size=128,
                   mini_batch_size=32, gradient_accumulation_steps=2, ppo_epochs=4, init_kl_coef=0.2, adap_kl_ctrl=True,
                   target=6, horizon=10000, cliprange=0.2, vf_coef=0.1, steps=20000, reward_model="a:b", seed=0)
trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset=dataset, data_collator=collator)
""",
        left=("reward_model", "adap_kl_ctrl", "target", "horizon"),
        person=("dataset_name",),
        needed=("reward",),
    ),
    Case(
        "ppo-script",
        "ppo",
        """
from trl import PPOConfig, PPOTrainer

args = PPOConfig(output_dir="out", total_episodes=4096, per_device_train_batch_size=8, whiten_rewards=True, lam=1.0)
PPOTrainer(args=args, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward_model,
           train_dataset=train_dataset, value_model=value_model)
""",
        person=("model_name_or_path", "reward_model", "dataset_name", "value_model"),
    ),
]
