"""From a config to a policy: weights, adapter, memory savings, and a probe that decides how batches are laid out."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from ft_host.batch import Batch, Segment, forest
from ft_host.errors import ConfigError
from ft_host.models.attention import NotFlat, install, original_of
from ft_host.models.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


def precision(config: RunConfig, device: torch.device) -> str:
    """accelerate's word for the type of the maths: "no", "bf16" or "fp16". bfloat16 by itself only on a GPU that has
    it: a CPU without such units is many times slower in it."""
    if config.fp16:
        if device.type == "cpu":
            raise ConfigError("fp16: float16 with loss scaling needs a GPU; leave it out")
        return "fp16"
    if config.bf16 is None:
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    return "bf16" if config.bf16 else "no"


# ---------------------------------------------------------------- weights


def _check_folder(name: str) -> None:
    """Refuse a folder that can't be a model, before transformers asks a hub for it."""
    place = Path(name)
    if place.is_dir():
        files = {path.name for path in place.iterdir()}
        if "adapter_config.json" in files:
            return
        if "config.json" not in files:
            raise ConfigError(f"model: {name} has no config.json; a model's folder is what save_pretrained writes")
        if not any(file.endswith(".safetensors") for file in files):
            others = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
            found = f"only {', '.join(others)}, which can run code when it is loaded" if others else "no weights"
            raise ConfigError(
                f"model: {name} holds {found}; expected safetensors. Convert it where it was made with "
                f"save_pretrained of a current transformers"
            )
    elif place.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ConfigError(f"model: there is no folder {name}{_nearest_folder(place)}")


def _nearest_folder(place: Path) -> str:
    beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, beside, n=1)
    return f"; did you mean {place.parent / near[0]}?" if near else ""


def _quantisation(config: RunConfig) -> Any:
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    field = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{field}: bitsandbytes is not installed (pip install bitsandbytes)")
    if not torch.cuda.is_available():
        raise ConfigError(f"{field}: bitsandbytes' kernels need a GPU, and there is none")
    if config.distributed_strategy == "fsdp2":
        raise ConfigError(f"{field}: quantised weights can't be sharded by fsdp2; use distributed_strategy: ddp")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_base(config: RunConfig, name: str) -> nn.Module:
    """The transformers model of a folder or hub id. Raises ConfigError for what can't be trained as a causal model."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    source = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    try:
        found = AutoConfig.from_pretrained(name, **source)
    except (OSError, ValueError) as error:
        hint = "" if Path(name).is_dir() else _nearest_folder(Path(name))
        raise ConfigError(f"model: {name} can't be loaded: {str(error).splitlines()[0]}{hint}") from error
    if found.is_encoder_decoder:
        raise ConfigError(f"model: {name} is an encoder-decoder ({found.model_type}); expected a causal language model")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attn_implementation,
            quantization_config=_quantisation(config),
            device_map={"": torch.cuda.current_device()} if _quantisation(config) else None,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below, by name
            **source,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"model: {name} can't be loaded: {str(error).splitlines()[0]}") from error
    for key, found_shape, expected_shape in sorted(report["mismatched_keys"]):
        raise ConfigError(
            f"model: {name} holds {key} of shape {tuple(found_shape)}; its config.json makes it {tuple(expected_shape)}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"model: {name} has no weights for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: they would "
            f"be random"
        )
    return model


def _linear_names(model: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    linear = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)})


def _attach_adapter(model: nn.Module, config: RunConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    names = _linear_names(model)
    children = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets: Any = "all-linear" if config.lora_target_modules == ["all-linear"] else config.lora_target_modules
    for field, given in (("lora_target_modules", config.lora_target_modules), ("lora_modules_to_save",
                                                                               config.lora_modules_to_save)):  # fmt: skip
        for name in given:
            if name != "all-linear" and name.rpartition(".")[2] not in children:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise ConfigError(f"{field}: the model has no module {name}{hint} Its linear layers: {', '.join(names)}")
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=config.lora_modules_to_save or None,
        use_rslora=config.use_rslora,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # of names that peft still uses and transformers has renamed
        warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")
        return get_peft_model(model, adapter)


def load_model(config: RunConfig) -> nn.Module:
    """The model to train: a base model, with a new adapter, or an adapter's folder with its base."""
    _check_folder(config.model)
    if (Path(config.model) / "adapter_config.json").is_file():
        if not config.use_peft:
            raise ConfigError(f"model: {config.model} is an adapter; set use_peft to train it further")
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(config.model).base_model_name_or_path
        _check_folder(base)
        return PeftModel.from_pretrained(load_base(config, base), config.model, is_trainable=True)
    model = load_base(config, config.model)
    return _attach_adapter(model, config) if config.use_peft else model


# ---------------------------------------------------------------- the probe


def _rows_alone(policy: Policy, rows: list[list[int]]) -> torch.Tensor:
    """Log-probs of the tokens of each row after its first, from the model's own attention and its full logits."""
    out = []
    for row in rows:
        ids = torch.tensor([row], device=policy.device)
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1]
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        out.append(logs.gather(1, ids[0, 1:, None]).squeeze(1))
    return torch.cat(out)


def _forest_of(policy: Policy, rows: list[list[int]]) -> Batch:
    """The second row as a prompt of 13 tokens and a child, between the other two."""
    first, second, third = rows
    return forest(
        [
            Segment(input_ids=first, labels=first, row=0),
            Segment(input_ids=second[:13], labels=second[:13], row=1),
            Segment(input_ids=second[13:], labels=second[13:], row=1, parent=1),
            Segment(input_ids=third, labels=third, row=2),
        ],
        num_rows=3,
    ).to(policy.device)


def probe(policy: Policy) -> tuple[float, float]:
    """The largest difference in log-probs between a small forest through the policy and its rows alone through the
    model; and how much the log-probs of later rows change when all tokens of the first are others. The second has no
    rounding in it, so that it shows state that leaks between rows in half precision too.

    It goes through the policy in training mode as well: what a kernel can't do only there (dropout) shows now, not in
    the first step. Leaves random states and train mode as they were.
    """
    generator = torch.Generator().manual_seed(0)
    size = policy.config.vocab_size
    rows = [torch.randint(size, (n,), generator=generator).tolist() for n in (9, 20, 5)]
    others = [[(token + size // 2) % size for token in rows[0]], *rows[1:]]
    training = policy.training
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            policy.train()
            policy(_forest_of(policy, rows), want=("logp",))
            policy.eval()
            ours = policy(_forest_of(policy, rows), want=("logp",))["logp"]
            changed = policy(_forest_of(policy, others), want=("logp",))["logp"]
            theirs = _rows_alone(policy, rows)
    finally:
        policy.train(training)
    later = len(rows[0]) - 1
    return float((ours - theirs).abs().max()), float((ours - changed)[later:].abs().max())


def _tolerance(policy: Policy) -> float:
    wide = next(p.dtype for p in policy.model.parameters() if p.is_floating_point())
    return 1e-3 if wide in (torch.float32, torch.float64) else 0.5


def _mixes_otherwise(model: Any) -> str | None:
    """What in the model is known to carry something from token to token other than by attention."""
    kinds = model.config.get_text_config().to_dict().get("layer_types") or ()
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        return f"it has layers of type {', '.join(others)}"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            return f"{name} is a convolution over tokens"
    return None


def choose_layout(policy: Policy, config: RunConfig) -> None:
    """Set `policy.kernel` to the first of the allowed ways that gives the model's own log-probs.

    Raises ConfigError where none does: then the head isn't understood, or the one way asked for doesn't work.
    """
    auto = ("flex", "sdpa", "none") if policy.device.type == "cuda" else ("sdpa", "none")
    ways = auto if config.segment_attention == "auto" else (config.segment_attention,)
    model, tolerance, reasons = policy.causal_lm, _tolerance(policy), []
    original = original_of(model.config)
    for kernel in ways:
        try:
            if kernel == "flex" and policy.device.type != "cuda":
                raise NotFlat("torch has a backward pass of flex_attention on CUDA only")
            if kernel != "none":
                mixer = _mixes_otherwise(model)
                if mixer:
                    raise NotFlat(mixer)
                install(model)
            policy.kernel = kernel
            difference, leak = probe(policy)
        except (NotFlat, RuntimeError, TypeError, AttributeError) as error:  # it may look into its mask, say
            difference, reason = float("inf"), str(error).splitlines()[0]
        else:
            reason = f"log-probs differ by {difference:.2g} from those of single rows"
            if kernel != "none" and leak > tolerance / 100:
                difference, reason = float("inf"), f"a row changes the log-probs of another one by {leak:.2g}"
        if difference <= tolerance:
            if kernel == "none":
                why = f" ({reasons[0]})" if reasons else ""
                policy.notes.append(f"{type(model).__name__} takes padded batches: it can't take flat ones{why}")
            return
        reasons.append(f"{kernel}: {reason}")
        if original_of(model.config) != model.config._attn_implementation:
            model.set_attn_implementation(original)
    raise ConfigError(
        f"model: {type(model).__name__} does not give its own log-probs through segment_attention "
        f"{config.segment_attention} ({'; '.join(reasons)})"
    )


# ---------------------------------------------------------------- memory


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available  # with what the page cache would give back


def activation_bytes(policy: Policy, config: RunConfig) -> int:
    """About what a micro-batch keeps for its backward pass: per token and layer, the inputs of each product and norm
    (ten widths of the hidden state, three of the MLP)."""
    model = policy.config
    fields = model.to_dict()
    wide = fields.get("intermediate_size") or 4 * model.hidden_size
    experts = fields.get("num_experts_per_tok") or 1
    width = 4 if precision(config, policy.device) == "no" else 2
    rows = config.per_device_train_batch_size * (config.max_length or 2048)
    tokens = config.max_tokens_per_micro_batch or rows
    return tokens * model.num_hidden_layers * width * (10 * model.hidden_size + 3 * wide * experts)


def _checkpointing(policy: Policy, config: RunConfig) -> None:
    wanted = config.gradient_checkpointing
    if not policy.causal_lm.supports_gradient_checkpointing:
        if wanted:
            raise ConfigError(f"gradient_checkpointing: {type(policy.causal_lm).__name__} doesn't support it")
        return
    if wanted is None:
        trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
        left = _free_memory(policy.device) - 3 * trained  # gradients and Adam's two moments
        need = activation_bytes(policy, config)
        wanted = need > 0.8 * left
        if wanted:
            policy.notes.append(
                f"gradient checkpointing is on: activations would take about {need / 2**30:.1f} GiB of "
                f"{max(left, 0) / 2**30:.1f} GiB"
            )
    if wanted:
        policy.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


# ---------------------------------------------------------------- all of it


def _router_coefficient(policy: Policy, config: RunConfig) -> float:
    fields = policy.config.to_dict()
    given = config.router_aux_loss_coef
    balances = "load_balancing_loss_func" in vars(sys.modules[type(policy.causal_lm).__module__])
    if "output_router_logits" not in fields or not balances:
        if given:
            raise ConfigError(
                f"router_aux_loss_coef: {type(policy.causal_lm).__name__} has no load-balancing loss"
            )
        return 0.0
    return fields.get("router_aux_loss_coef") or 0.0 if given is None else given


def load_policy(config: RunConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Policy:
    """The policy of a run, on its device, in training mode. Raises ConfigError for what can't work, by field."""
    policy = Policy(load_model(config))
    size = policy.causal_lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ConfigError(
            f"model: {config.model} has embeddings for {size} tokens, the tokenizer has {len(tokenizer)}; resize the "
            f"embeddings or use the model's own tokenizer"
        )
    if not (config.load_in_4bit or config.load_in_8bit):
        policy.to(device)
    choose_layout(policy, config)
    policy.router_aux_loss_coef = _router_coefficient(policy, config)
    if config.use_liger_kernel:
        if importlib.util.find_spec("liger_kernel") is None or device.type != "cuda":
            raise ConfigError("use_liger_kernel: needs a GPU and the package liger-kernel (pip install liger-kernel)")
        from transformers.integrations.liger import apply_liger_kernel

        # its head works on full rows of tokens; ours already never holds the logits
        apply_liger_kernel(policy.model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    _checkpointing(policy, config)
    if config.torch_compile:
        for layer in decoder_layers(policy):
            layer.compile(dynamic=True)
    policy.train()
    return policy


def decoder_layers(policy: Policy) -> list[nn.Module]:
    """The blocks that the model says must not be split, in order. Raises ConfigError for a model that names none."""
    names = set(policy.causal_lm._no_split_modules or ())
    layers = [module for module in policy.model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(f"model: {type(policy.causal_lm).__name__} doesn't say which modules are its layers")
    return layers
