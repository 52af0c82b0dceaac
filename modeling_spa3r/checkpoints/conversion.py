"""What the commands of `spa3r convert` do."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...configuration import load_preset
from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import new_folder
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..spa3r.image_processing_spa3r import Spa3RImageProcessor
from ..spa3r.modeling_spa3r import Spa3RForPreTraining, Spa3RModel
from .assemble import assemble_spa3_vlm, load_base_vlm, load_tokenizer, make_processor
from .byte_tokenizer import byte_tokenizer
from .cards import PARTS, parts_of, spa3_vlm_card
from .loading import load_config, load_whole
from .official import dinov3_from_official, spa3_vlm_from_official, spa3r_from_official, vggt_from_official
from .self_contained import save_self_contained
from .tensors import read_tensors

__all__ = ["run"]

IMPORTERS = {"vggt": vggt_from_official, "spa3r": spa3r_from_official, "dinov3": dinov3_from_official}


def run(options: argparse.Namespace):
    """Run the command of `spa3r convert` that the options name."""
    commands = {"spa3-vlm": _import_spa3_vlm, "assemble": _assemble}
    commands.get(options.command, _import_model)(options)


def _import_model(options: argparse.Namespace):
    model, reasons = IMPORTERS[options.command](read_tensors(options.input), **_given_config(options))
    _print_left_out(reasons)
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    with new_folder(options.output) as folder:
        model.save_pretrained(folder)
        if isinstance(model, Spa3RForPreTraining):
            Spa3RImageProcessor(patch_size=model.config.vggt_config.patch_size).save_pretrained(folder)
    print(f"Wrote {type(model).__name__} to {options.output}.")


def _import_spa3_vlm(options: argparse.Namespace):
    config_file = options.input / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"There is no `{config_file}`; give the whole folder of an official Spa3-VLM.")
    model, reasons = spa3_vlm_from_official(
        read_tensors(options.input), json.loads(config_file.read_text()), **_given_config(options)
    )
    if (options.input / "generation_config.json").is_file():
        model.generation_config = load_config(GenerationConfig, str(options.input))
    tokenizer = load_tokenizer(options.input)
    processor = None if tokenizer is None else make_processor(model.config, tokenizer, options.image_width)
    _print_left_out(reasons)
    _write_spa3_vlm(model, processor, dict.fromkeys(PARTS, options.input), options)
    if processor is None:
        print(f"{options.input} has no tokenizer, so no processor was written; make one with `make_processor`.")


def _assemble(options: argparse.Namespace):
    torch.manual_seed(options.seed)
    if options.spa3r is None and options.fusion != "none":
        raise ValueError(
            f"`--spa3r` is missing: the fusion `{options.fusion}` needs a Spa3R; give its folder, or `--fusion none`."
        )
    spa3r = None if options.spa3r is None else load_whole(Spa3RModel, options.spa3r)
    vlm, tokenizer = _load_vlm(options.vlm, options.dtype)
    model = assemble_spa3_vlm(vlm, spa3r, fusion=options.fusion, spatial_representation=options.spatial_representation)
    processor = make_processor(model.config, tokenizer, options.image_width)
    origins = {
        "vlm": options.vlm if _is_checkpoint(options.vlm) else None,
        "vggt": spa3r and (spa3r.config.vggt_checkpoint or options.spa3r),
        "spatial_encoder": options.spa3r,
        "fusion": None,
    }
    _write_spa3_vlm(model, processor, origins, options)


def _load_vlm(name: str, dtype: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a vision-language model and its tokenizer, or make an untrained one by the name of a preset."""
    if _is_checkpoint(name):
        return load_base_vlm(name, dtype=dtype or "auto")
    config, tokenizer = Spa3VLMConfig(**load_preset(name)), byte_tokenizer()
    make_processor(config, tokenizer)  # refuses a large vocabulary before weights are made
    print(f"`{name}` is an architecture: its vision-language model is untrained, and its tokens are bytes.")
    return AutoModelForImageTextToText.from_config(config.vlm_config, dtype=dtype), tokenizer


def _is_checkpoint(name: str) -> bool:
    """Whether `name` is a folder or a repository on the Hub rather than a preset."""
    return Path(name).is_dir() or "/" in name


def _given_config(options: argparse.Namespace) -> dict:
    return json.loads(options.config.read_text()) if options.config else {}


def _print_left_out(reasons: Mapping[str, str]):
    for reason, number in Counter(reasons.values()).items():
        first = next(name for name in reasons if reasons[name] == reason)
        print(f"Left out {number} tensors such as `{first}`: {reason}.")


def _write_spa3_vlm(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor | None,
    origins: Mapping[str, str | os.PathLike | None],
    options: argparse.Namespace,
):
    """Write a checkpoint that carries its code, and a card that names the origin of its weights."""
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    names = {part: _public_name(origins[part]) for part in parts_of(model.config)}
    model.config.vlm_config.name_or_path = names["vlm"] or ""
    model.config.spatial_config.name_or_path = ""
    save_self_contained(model, processor, options.output, spa3_vlm_card(options.output.name, model.config, names))
    and_processor = "" if processor is None else f" and {type(processor).__name__}"
    print(f"Wrote {type(model).__name__}{and_processor} to {options.output}.")


def _public_name(checkpoint: str | os.PathLike | None) -> str | None:
    """Name a checkpoint by its name on the Hub or that of its folder: paths of this machine mean nothing elsewhere."""
    if checkpoint is None or not Path(checkpoint).is_dir():
        return checkpoint
    return Path(checkpoint).resolve().name
