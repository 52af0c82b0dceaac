"""Import published checkpoints, or assemble a Spa3-VLM.

    spa3r convert vggt VGGT-1B/model.safetensors checkpoints/vggt-1b
    spa3r convert spa3r spa3r.ckpt checkpoints/spa3r --dtype bfloat16
    spa3r convert dinov3 dinov3_vitl16_pretrain_lvd1689m.pth checkpoints/dinov3-vitl16
    spa3r convert spa3-vlm official-spa3-vlm checkpoints/spa3-vlm-4b
    spa3r convert assemble checkpoints/spa3-vlm-4b --vlm Qwen/Qwen2.5-VL-3B-Instruct --spa3r checkpoints/spa3r
    spa3r convert assemble runs/spa3-vlm --vlm spa3-vlm-tiny --spa3r runs/quickstart/model --image-width 112

Each command writes a folder that `from_pretrained` loads.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...configuration import load_preset
from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import new_folder, require_empty_folder
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

__all__ = ["main"]

IMPORTERS = {"vggt": vggt_from_official, "spa3r": spa3r_from_official, "dinov3": dinov3_from_official}


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r convert`."""
    options = _parser().parse_args(arguments)
    require_empty_folder(options.output)
    options.run(options)


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


def _parser() -> argparse.ArgumentParser:
    source, result, width = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    source.add_argument("input", type=Path, metavar="INPUT", help="file, or folder of .safetensors files")
    source.add_argument("--config", type=Path, metavar="FILE", help="JSON of sizes that shapes do not determine")
    result.add_argument("output", type=Path, metavar="OUTPUT", help="new or empty folder for the result")
    dtypes = ["float32", "bfloat16", "float16"]
    result.add_argument("--dtype", choices=dtypes, help="dtype of the weights (default: unchanged)")
    help = "width in pixels that Spa3R was trained with (default: 518)"
    width.add_argument("--image-width", type=int, default=518, metavar="PIXELS", help=help)

    parser = argparse.ArgumentParser(
        prog="spa3r convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, run, text, parents in [
        ("vggt", _import_model, "import VGGT as facebook/VGGT-1B", [source, result]),
        ("spa3r", _import_model, "import the official Spa3R, teachers included", [source, result]),
        ("dinov3", _import_model, "import DINOv3 as Meta publishes it", [source, result]),
        ("spa3-vlm", _import_spa3_vlm, "import the official Spa3-VLM from its folder", [source, result, width]),
        ("assemble", _assemble, "join a Qwen2.5-VL or Qwen3-VL and a Spa3R with a new adapter", [result, width]),
    ]:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
        command.set_defaults(run=run)
    help = "Qwen2.5-VL, Qwen3-VL, or a Spa3-VLM with one: folder, name on the Hub, or untrained by a preset"
    command.add_argument("--vlm", required=True, help=help)
    command.add_argument("--spa3r", help="Spa3R of this package: folder or name on the Hub; --fusion none needs none")
    fusions = {"choices": ["cross_attention", "append", "none"], "default": "cross_attention"}
    command.add_argument("--fusion", **fusions, help="how the scene enters the model (default: cross_attention)")
    representations = {"choices": ["spa3r", "vggt"], "default": "spa3r"}
    command.add_argument("--spatial-representation", **representations, help="of the scene (default: spa3r)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of untrained weights (default: 0)")
    return parser
