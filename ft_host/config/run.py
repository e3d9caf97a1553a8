"""The fields of every run. Imports nothing heavy: help, schema and validation must not wait for torch.

A method's config is a dataclass that extends `RunConfig` with its own fields, declared with `option`. Names are those
of `transformers.TrainingArguments` and TRL wherever the thing exists there.

Longer than 300 lines: it is one list of fields, each with its text, in the order of the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.config.combinations import check_combinations
from ft_host.config.deprecated import HOST, Deprecated
from ft_host.config.diagnostics_fields import DiagnosticsFields
from ft_host.config.distribution_fields import DistributionFields
from ft_host.config.lora_fields import LoRAFields
from ft_host.config.old_names import OldNames, old_names
from ft_host.config.optimisation_fields import OptimisationFields
from ft_host.config.options import SCHEDULES as SCHEDULES
from ft_host.config.options import TRACKERS, option
from ft_host.config.usual import Usual
from ft_host.errors import ConfigError

checked_by_host: set[int] = set()  # ids of configs that `RunConfig.check` has seen: a method's `check` must call it
# The formats of rows, in TRL's words.
FORMATS = ("language modeling", "prompt-only", "prompt-completion", "preference", "unpaired preference")


@dataclass(kw_only=True)
class RunConfig(LoRAFields, OptimisationFields, DiagnosticsFields, DistributionFields, OldNames):
    """The fields of every run, for any method."""

    formats: ClassVar[
        tuple[str, ...]
    ] = ()  # of FORMATS: rows that the method takes; error messages about such rows name it
    trl_names: ClassVar[tuple[str, ...]] = ()  # what TRL calls the method, where that is another name
    # TRL's defaults that change a run, where ours are others: {field: (TRL's, why ours is another)}, and behind that
    # the field without which it has no effect
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lora_dropout": (0.05, "short runs seldom gain from it", "use_peft"),
        # peft's choice where none is made; that of other families is no list that can be written here
        "lora_target_modules": (
            ["q_proj", "v_proj"],
            "peft's choice for Llama, Qwen, Mistral and Gemma; other families have another",
            "use_peft",
        ),
    }
    elsewhere: ClassVar[dict[str, str]] = {}  # names that other tools have for this method and it lacks: what to say
    metrics: ClassVar[tuple[str, ...]] = ()  # names that the method logs beside the host's; * stands for any text
    deprecated: ClassVar[tuple[Deprecated, ...]] = HOST  # what is going to go: of a method its own, beside the host's
    state_keys: ClassVar[tuple[str, ...]] = ()  # names in `run.state`, which a checkpoint keeps
    # Metrics that the printed line of a step has after loss, grad_norm and learning_rate, where they are logged.
    progress_metrics: ClassVar[tuple[str, ...]] = (
        "mean_token_accuracy",
        "rewards/accuracies",
        "rewards/margins",
        "accuracy",
        "kl",
        "completions/mean_length",
    )

    # Whether the first step's loss may not depend on some trained tensors: a method that warms up a critic first, say.
    trains_in_parts: ClassVar[bool] = False

    # -- model
    model: str = option(
        "",
        "Folder or hub id of the model to train.",
        group="model",
        aliases=("model_name_or_path",),
        required=True,
        example="Qwen/Qwen3-0.6B",
        path=True,
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.", group="model")
    trust_remote_code: bool = option(
        False, "Run Python code that comes with the model or its tokenizer. Only for sources you trust.", group="model"
    )
    dtype: str | None = option(
        None,
        "Type that the weights are held and updated in. Not set: float32 for what is trained, which loses no small "
        "update; bfloat16 for what is frozen (the base of an adapter, a reference, a teacher, a reward model) where "
        "the maths is in bfloat16, else float32.",
        group="model",
        choices=("float32", "bfloat16", "float16", "auto"),
        aliases=("torch_dtype",),
        also={"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
        | {f"torch.{name}": name for name in ("float32", "bfloat16", "float16")},
    )
    attn_implementation: str | None = option(
        None,
        "transformers' attention for generation and for models that can't take flat batches; training uses the "
        "segment attention (docs/architecture.md).",
        group="model",
    )
    segment_attention: str = option(
        "auto",
        "How attention over a flat batch is computed: 'sdpa' is one call per segment, 'flex' is one compiled "
        "kernel with a block mask (CUDA, XPU), 'varlen' is torch's variable-length attention where rows share no "
        "prompt (CUDA, in 16 bits), and flex or sdpa where they do, 'none' pads a rectangle instead. 'auto' takes "
        "varlen and flex where a probe shows that they work, then sdpa, then a rectangle; the plan says which and why "
        "(docs/attention.md).",
        group="model",
        choices=("auto", "sdpa", "flex", "varlen", "none"),
    )
    neftune_noise_alpha: float | None = option(
        None,
        "Noise on the embeddings in training: uniform up to alpha / sqrt(tokens of the row × width) (NEFTune, arXiv "
        "2310.05914, which has 5 to 15).",
        group="model",
        gt=0,
        usual=Usual(
            far=10,
            high=15,
            above=("no_learning", "divergence", "overfitting"),  # held-out rows are without it
            why="the noise drowns the words",
            source="NEFTune, arXiv 2310.05914: 5 to 15",
            new=5.0,
        ),
    )
    disable_dropout: bool = option(
        False, "Train without the model's own dropout; lora_dropout is not touched.", group="model"
    )
    gradient_checkpointing: bool | None = option(
        None,
        "Recompute activations in the backward pass: less memory, about a third more compute. Not set: only if "
        "the activations of a step would not fit (the plan says so).",
        group="model",
    )
    use_liger_kernel: bool = option(
        False, "Fused Triton kernels of the package liger-kernel. Needs a GPU.", group="model"
    )
    torch_compile: bool = option(False, "Compile each decoder layer with torch.compile.", group="model")
    load_in_8bit: bool = option(False, "Load the frozen base weights in 8 bits (bitsandbytes, LoRA).", group="model")
    load_in_4bit: bool = option(False, "Load the frozen base weights in 4 bits (bitsandbytes, LoRA).", group="model")
    bnb_4bit_quant_type: str = option("nf4", "Data type of 4-bit weights.", group="model", choices=("nf4", "fp4"))
    use_bnb_nested_quant: bool = option(False, "Quantise the quantisation constants too.", group="model")
    router_aux_loss_coef: float | None = option(
        None,
        "Weight of the load-balancing loss of a mixture of experts. Not set: the model config's own weight; 0: off.",
        group="model",
        ge=0,
    )
    chat_template_path: str | None = option(
        None, "A .jinja file, or a folder with a tokenizer, whose chat template is used.", group="model", path=True
    )
    eos_token: str | None = option(
        None, "Token that ends a turn or a text. Not set: the tokenizer's own.", group="model"
    )

    resize_token_embeddings: bool = option(
        False,
        "Add embeddings for tokens of the tokenizer that the model has none for. They are saved with the model; a LoRA "
        "adapter trains and saves them too.",
        group="model",
        aliases=("resize_vocab",),
    )

    # -- data
    dataset: str | list[dict[str, Any]] = option(
        "",
        "Hub id, file (.jsonl, .json, .csv, .parquet) or folder saved by `datasets`. Several: a list of "
        "{path, name, split, data_files, revision, weight, columns}, mixed by weight.",
        group="data",
        aliases=("dataset_name",),
        required=True,
        example="train.jsonl",
        path=True,
    )
    dataset_config: str | None = option(None, "Configuration name of a hub data set.", group="data")
    dataset_train_split: str = option("train", "Split to train on.", group="data")
    dataset_revision: str | None = option(
        None, "Branch, tag or commit of a hub data set. In a list, each has its own `revision`.", group="data"
    )
    eval_dataset: str | dict[str, Any] | list[Any] | None = option(
        None,
        "Hub id, file or folder to evaluate on, or {path, name, split, data_files, revision, columns}. Several: {NAME: "
        "one of these}, or a list; each has its metrics (eval_NAME_loss). Not set: dataset_test_split of `dataset`, if "
        "that is set.",
        group="data",
        path=True,
    )
    dataset_test_split: str | None = option(None, "Split of `dataset` to evaluate on.", group="data")
    dataset_streaming: bool = option(
        False, "Read the data row by row, without knowing its length: needs max_steps.", group="data"
    )
    dataset_columns: dict[str, str] = option(
        {}, "Columns to rename before anything else: {theirs: ours}.", group="data"
    )
    max_length: int | None = option(
        1024, "Longest row in tokens; longer rows are cut. none: no limit.", group="data", gt=1
    )
    truncation_mode: str = option(
        "keep_start", "Which end of a row that is too long is kept.", group="data", choices=("keep_start", "keep_end")
    )
    max_dropped_share: float = option(
        0.1,
        "Refuse to train if more than this share of the rows is dropped, for instance because none of their "
        "tokens is supervised. Checked on the first window of rows, then over all rows so far.",
        group="data",
        ge=0,
        le=1,
        usual=Usual(high=0.5, why="most rows may be left out before the run is refused", source="own judgement"),
    )
    train_sampling_strategy: str = option(
        "random",
        "Order of the rows: shuffled, in the order of the data, or shuffled and then sorted by length within a window.",
        group="data",
        choices=("random", "sequential", "group_by_length"),
    )
    packing: bool = option(
        False, "Fill blocks of max_length tokens with several rows; a row of the batch is then a block.", group="data"
    )
    packing_strategy: str = option(
        "bfd",
        "'bfd': best-fit decreasing, documents never see each other; 'bfd_split': rows over max_length are split "
        "rather than cut; 'wrapped': rows joined end to end and cut into blocks, documents see each other.",
        group="data",
        choices=("bfd", "bfd_split", "wrapped"),
    )
    data_window: int = option(
        1000,
        "Rows that packing, length grouping and the shuffling of a stream work on at a time.",
        group="data",
        gt=0,
        usual=Usual(
            low=64,
            below=("divergence",),
            why="neighbours of the data stay neighbours in training",
            source="own judgement",
            only={"dataset_streaming": (True,)},
        ),
    )
    dataloader_num_workers: int = option(
        0,
        "Processes that tokenise in advance. 0: the training process does it.",
        group="data",
        ge=0,
        usual=Usual(high=64, why="each is a process with a tokenizer of its own", source="own judgement"),
    )

    # -- batches
    per_device_train_batch_size: int = option(8, "Rows per device and micro-batch.", group="batches", gt=0)
    gradient_accumulation_steps: int = option(1, "Micro-batches per optimizer step.", group="batches", gt=0)
    max_tokens_per_micro_batch: int | None = option(
        None,
        "Split the rows of an optimizer step into micro-batches of this many tokens instead of by rows. Changes "
        "memory and speed, not the gradient.",
        group="batches",
        gt=0,
        usual=Usual(low=64, why="a micro-batch holds next to nothing", source="own judgement", new=4096),
    )
    per_device_eval_batch_size: int = option(
        8, "Rows per device in evaluation. The result doesn't depend on it.", group="batches", gt=0
    )
    num_train_epochs: float = option(
        3.0,
        "Passes over the data; max_steps overrides it.",
        group="batches",
        gt=0,
        le=1e6,
        usual=Usual(
            low=0.01,
            high=20,
            below=("no_learning",),
            above=("overfitting",),
            why=("hardly a row is seen", "rows are learnt by heart"),
            source="LIMA, arXiv 2305.11206: 15; own judgement",
        ),
    )
    max_steps: int = option(-1, "Optimizer steps in all; -1: as many as num_train_epochs has.", group="batches", ge=-1)

    # -- evaluation
    eval_steps: int | None = option(
        None, "Evaluate every so many steps. Not set: before and after training only.", group="evaluation", gt=0
    )
    eval_on_start: bool = option(True, "Evaluate before the first step too.", group="evaluation")
    eval_reward: list[str] = option(
        [],
        "Rewards that score completions of the evaluation prompts, before training, every eval_steps, and after: "
        "functions (file.py:function or package.module:function), or folders of reward models.",
        group="evaluation",
        path=True,
    )
    eval_max_rows: int | None = option(
        None,
        "Use the first so many evaluation rows (of each set) only.",
        group="evaluation",
        gt=0,
        usual=Usual(low=8, why="a mean of so few rows is mostly chance", source="own judgement", new=100),
    )
    eval_temperature: float = option(
        0.0,
        "Sampling temperature of evaluation; 0 takes the likeliest token.",
        group="evaluation",
        ge=0,
        usual=Usual(
            high=1.5,
            above=("forgetting",),
            why="completions are drawn from what is unlikely, and earn less for it",
            source="own judgement",
            new=0.0,
        ),
    )
    eval_top_p: float = option(
        1.0,
        "In evaluation, sample from the likeliest tokens that hold this much probability.",
        group="evaluation",
        gt=0,
        le=1,
        usual=Usual(low=0.1, why="next to nothing is left to sample from", source="own judgement"),
    )
    eval_top_k: int = option(
        0, "In evaluation, sample from the k likeliest tokens; 0: from all.", group="evaluation", ge=0
    )

    # -- generation
    backend: str = option("transformers", "Generation backend, as listed by `ft-host plugins`.", group="generation")
    backend_config: dict[str, Any] = option(
        {}, "The backend's own fields, as its documentation lists them: {field: value}.", group="generation"
    )
    max_completion_length: int = option(256, "Longest completion in tokens.", group="generation", gt=0)
    decode_batch_size: int | None = option(
        None,
        "Completions that are generated at a time. Not set: 64; on an accelerator up to 256, as its memory allows.",
        group="generation",
        gt=0,
        usual=Usual(low=4, below=("slow",), why="completions are generated nearly one by one", source="own judgement"),
    )

    # -- run
    output_dir: str = option(
        "", "The run's folder. Not set: runs/METHOD-DATE-TIME.", group="run", path=True, compared=False, also={None: ""}
    )
    save_steps: int = option(500, "Write a checkpoint every so many steps; 0: none but the last.", group="run", ge=0)
    save_total_limit: int | None = option(
        2, "Keep the newest so many checkpoints. 2, so that one is left if the newest is damaged.", group="run", gt=0
    )
    logging_steps: int = option(
        10, "Print and send to trackers every so many steps; metrics.jsonl has every step.", group="run", gt=0
    )
    report_to: list[str] = option(
        [],
        "Trackers that get the metrics too, by accelerate's names; all: those that are installed.",
        group="run",
        choices=(*TRACKERS, "all"),
        also={"comet": "comet_ml"},
    )
    run_name: str | None = option(None, "Name of the run in trackers. Not set: that of its folder.", group="run")
    progress: str = option(
        "auto",
        "What is printed: a bar on a terminal and plain lines elsewhere (auto), 'json' lines for programs, or 'quiet'.",
        group="run",
        choices=("auto", "bar", "lines", "json", "quiet"),
    )
    parent_run: str | None = option(
        None,
        "Folder of the run that this one comes from; run.json and the report name it.",
        group="run",
        path=True,
        compared=False,
    )
    resume_from_checkpoint: str | None = option(
        None,
        "Start from a checkpoint of another run: a folder checkpoints/step-N. Weights, optimizer, data position "
        "and the metrics so far come from there, everything else from this config.",
        group="run",
        path=True,
        compared=False,
    )
    required_plugins: list[str] = option(
        [], "Requirements such as ft-sft>=0.1,<1, checked before anything is imported.", group="run"
    )

    def refuse(self, fields: dict[str, Any], why: str) -> None:
        """Raise ConfigError for the first of {field: default} that was changed: it has no effect, and `why`."""
        for name, usual in fields.items():
            if getattr(self, name) != usual:
                raise ConfigError(f"{name}: has no effect {why}")

    def check(self) -> None:
        """Refuse combinations that can't work. Called after each field on its own has been checked.

        A method's config extends it and calls `super().check()`. Raises ConfigError, naming the fields.
        """
        checked_by_host.add(id(self))
        check_combinations(self)


OLD_NAMES = old_names(RunConfig)  # of the host's fields, each with the new one; a method may have a field of its own so
