"""Packages that only some options need, and how to install them."""

import argparse
import importlib.util
from typing import Any

from transformers.utils import is_flash_attn_2_available, logging

logger = logging.get_logger(__name__)

# Packages that are an extra of this one.
EXTRAS = {"peft": "lora", "deepspeed": "deepspeed", "trackio": "tracking"}
# Trackers that the library's Trainer knows by the name of their package.
TRACKERS = ("trackio", "wandb", "mlflow", "comet_ml", "clearml", "swanlab", "dvclive", "neptune", "codecarbon")
FLASH = "flash_attention_2"


def require_packages(options: argparse.Namespace):
    """Refuse options whose package is not installed, before anything is read.

    Raises:
        ImportError: Names the option, and the extra or the package to install.
    """
    report_to = getattr(options, "report_to", None) or []
    trackers = [report_to] if isinstance(report_to, str) else report_to
    needed = {name: f"`report_to` {name}" for name in TRACKERS if name in trackers}
    needed |= {"peft": "`use_peft`"} if getattr(options, "use_peft", False) else {}
    needed |= {"deepspeed": "`deepspeed`"} if getattr(options, "deepspeed", None) else {}
    for package, what in needed.items():
        if importlib.util.find_spec(package) is None:
            name = f"spa3r[{EXTRAS[package]}]" if package in EXTRAS else package
            raise ImportError(f"{what} needs the package {package}: `pip install '{name}'`, or leave the option out.")


def without_missing_flash_attention(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe that asks for flash attention only where it is installed, and for torch's attention elsewhere."""
    if recipe.get("attn_implementation") != FLASH or is_flash_attn_2_available():
        return recipe
    logger.warning(f"The recipe asks for {FLASH}, which is not installed here: the model uses sdpa instead.")
    return recipe | {"attn_implementation": "sdpa"}
