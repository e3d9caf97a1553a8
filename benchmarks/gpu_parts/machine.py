"""What a machine is and has: `python -P machine.py DEVICE` prints it as JSON.

It is asked in a process of its own, since a process that has used a device holds some of its memory.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "vllm", "liger-kernel", "flash-attn", "kernels")
PACKAGES += ("triton", "pytest")
FLASH_KERNELS = "kernels-community/flash-attn2"
NEEDED = ("memory_allocated", "max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats", "synchronize")


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def flash() -> tuple[str | None, str]:
    """The fastest attention that transformers can be given here, by its name there (None: sdpa), and why that one.

    Each is loaded, since one that is installed may be of another torch or another card.
    """
    import torch
    from transformers.integrations.hub_kernels import load_and_register_attn_kernel

    reasons = []
    ways = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
    if torch.cuda.get_device_capability()[0] != 9:
        del ways["flash_attention_3"]
    for name, module in ways.items():
        if importlib.util.find_spec(module) is None:
            reasons.append(f"{module} isn't installed")
            continue
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{module} can't be imported ({first_line(error)})")
        else:
            return name, f"{module} is installed"
    if importlib.util.find_spec("kernels") is None:
        reasons.append("kernels isn't installed")
    else:
        try:
            load_and_register_attn_kernel(FLASH_KERNELS)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # not in the cache, and nothing is fetched
            reasons.append(f"{FLASH_KERNELS} can't be loaded ({first_line(error)})")
        else:
            return FLASH_KERNELS, "kernels has it in its cache"
    return None, "; ".join(reasons)


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def describe(device: str) -> dict[str, Any]:
    """Raises SystemExit where there is no such device, or torch doesn't count its memory."""
    import torch

    about: dict[str, Any] = {
        "device": device,
        "name": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": None,
        "packages": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "attention": None,
        "attention_why": "FlashAttention needs CUDA",
    }
    if device == "cpu":
        return about
    try:
        module = torch.get_device_module(device)
        available = module.is_available()
    except (RuntimeError, ImportError):
        available = False
    if not available:
        raise SystemExit(f"torch sees no {device} here; --device cpu --tiny rehearses the benchmark without one")
    lacking = [name for name in NEEDED if name not in dir(module)]
    if lacking:
        raise SystemExit(f"torch.{device} has no {', '.join(lacking)}: its memory can't be measured")
    properties = module.get_device_properties(0)
    about |= {"name": properties.name, "memory_gib": properties.total_memory / 2**30}
    if device == "cuda":
        about["attention"], about["attention_why"] = flash()
        about["cuda"] = torch.version.cuda or torch.version.hip
    return about


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
