"""Load the models that a benchmark asks: a Spa3-VLM, or the plain vision-language model for comparison."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, ProcessorMixin
from transformers.utils import cached_file

from ...modeling_spa3r.checkpoints.assemble import BASES, assemble_spa3_vlm, load_base_vlm, make_processor
from ...modeling_spa3r.checkpoints.cards import CARD
from ...modeling_spa3r.checkpoints.loading import load_config, load_processor, load_spa3_vlm, require_checkpoint
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..runs.errors import first_line

OURS = "spa3_vlm"


def load_benchmark_model(
    name: str, device: torch.device, dtype: str | None = None, attn_implementation: str | None = None
) -> tuple[Spa3VLMForConditionalGeneration, ProcessorMixin]:
    """Load a model and its processor.

    A plain vision-language model becomes a Spa3-VLM with `fusion="none"`. Its logits are the same bit for bit, and the
    same code asks it about images of the same size.

    Args:
        name (`str`): Folder, or name on the Hub.
        device (`torch.device`): Device to load it to.
        dtype (`str`, *optional*): Type of the weights; by default as in the checkpoint.
        attn_implementation (`str`, *optional*): Attention; by default the library's choice.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If it holds another kind of model, or an incomplete one.
    """
    require_checkpoint(name)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"The folder `{name}` holds no config.json; give the folder of a model.")
    try:
        model_type = load_config(AutoConfig, name).model_type
    except OSError as error:
        if folder.is_dir():
            raise
        raise OSError(f"`{name}` is neither a folder nor a model on the Hub: {first_line(error)}") from error
    # Pickled weights are refused: the fingerprint does not cover them.
    options: dict[str, Any] = {"dtype": dtype or "auto", "device_map": {"": device}, "use_safetensors": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if model_type == OURS:
        return load_spa3_vlm(name, **options).eval(), load_processor(name)
    if model_type in BASES:
        vlm, tokenizer = load_base_vlm(name, **options)
        model = assemble_spa3_vlm(vlm, None, fusion="none")
        return model.eval(), make_processor(model.config, tokenizer)
    known = ", ".join(f"`{base}`" for base in BASES)
    raise ValueError(f"`{name}` holds a `{model_type}`; give a `{OURS}`, or a plain model of type {known}.")


def fingerprint_checkpoint(name: str) -> str:
    """Hash the weights, configurations and tokenizer of a checkpoint.

    Args:
        name (`str`): Folder, or name on the Hub of a checkpoint that is in the cache.
    """
    folder = Path(name) if Path(name).is_dir() else Path(cached_file(name, "config.json")).parent
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".txt") and file.name != CARD:
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
