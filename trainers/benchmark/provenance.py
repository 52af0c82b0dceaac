"""What answers depend on besides the questions: the model, and the software that runs it."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "pillow", "av", "spa3r")


def describe_model(model: Spa3VLMForConditionalGeneration, processor: ProcessorMixin) -> dict[str, Any]:
    """Collect settings of a loaded model that can change its answers."""
    device = model.device
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "image_width": processor.image_processor.image_width,
        **({"image_fit": fit} if (fit := processor.image_processor.image_fit) != "crop" else {}),
        "repetition_penalty": model.generation_config.repetition_penalty or 1.0,
    }


def describe_software() -> dict[str, Any]:
    """Collect the versions of libraries that can change answers, and the commit of this package."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _find_commit()}


def _find_commit() -> str | None:
    """Return the commit of this package's own checkout, with a mark if files changed since; `None` outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed package may lie in the checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
