"""Turn a trained model into the form that ships with the package: small, with a card, and without code.

    python -m spa3r.trainers.world.ship --model runs/world/tuned/model \
        --output modeling_spa3r/nano/spa3-vlm-nano

Weights are stored in bfloat16 and loaded in float32, which halves the file and keeps cameras exact to its rounding.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoProcessor,
)

from ...data_scripts.common.files import new_folder, write_text
from ...modeling_spa3r.checkpoints.loading import require_checkpoint


def write_shipped(model: str, output: Path):
    """Write the shipped form of a trained model into a new folder, complete or not at all.

    Args:
        model (`str`): Folder of a Spa3R or a Spa3-VLM.
        output (`Path`): New folder.
    """
    require_checkpoint(model)
    is_vlm = AutoConfig.from_pretrained(model).model_type == "spa3_vlm"
    model_class = AutoModelForImageTextToText if is_vlm else AutoModelForPreTraining
    loaded = model_class.from_pretrained(model, dtype=torch.float32)
    processor = (AutoProcessor if is_vlm else AutoImageProcessor).from_pretrained(model)
    with new_folder(output) as folder:
        loaded.save_pretrained(folder)
        processor.save_pretrained(folder)
        file = folder / "model.safetensors"
        weights = {name: value.to(torch.bfloat16) for name, value in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        _leave_out_places(folder / "config.json")


def _leave_out_places(file: Path):
    """Drop from a configuration what points to files of the machine that trained the model."""
    config = json.loads(file.read_text())
    for part in (config, config.get("spatial_config", {})):
        part["vggt_checkpoint"] = None
        for teacher in part.get("teachers", {}).values():
            teacher["checkpoint"] = None
    if config["model_type"] == "spa3_vlm":
        del config["vggt_checkpoint"]
    config.pop("auto_map", None)
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(arguments: Sequence[str] | None = None):
    """Write a shipped model; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="trained Spa3R or Spa3-VLM")
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder")
    options = parser.parse_args(arguments)
    write_shipped(options.model, options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir()) / 1e6
    print(f"{options.output}: {size:.1f} MB")


if __name__ == "__main__":
    main()
