"""Give the language model of a small Spa3-VLM more layers, which at first change nothing.

    python -m spa3r.trainers.world.deeper runs/world/aligned/model runs/world/deeper --layers 7

The way from the places of objects to an answer takes layers of its own. They are added once the language model finds
the places.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from ...data_scripts.common.files import new_folder, require_empty_folder
from ...modeling_spa3r.checkpoints.cards import tuned_card, write_card
from ...modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm, require_checkpoint
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..runs.errors import run_module
from ..runs.initialization import initialize_for_scratch


def add_layers(model: Spa3VLMForConditionalGeneration, num_layers: int, seed: int = 0):
    """Append layers to a language model until it has `num_layers`.

    Each new layer adds zero to the hidden states, so that all outputs stay the same; its other weights are drawn as
    for training from nothing.

    Args:
        model (`Spa3VLMForConditionalGeneration`): Changed in place. A cache made before does not fit it.
        num_layers (`int`): Layers in the end.
        seed (`int`, *optional*, defaults to 0): Seed of the new weights.

    Raises:
        ValueError: If the model has as many layers already.
    """
    layers: nn.ModuleList = model.model.language_model.layers
    if num_layers <= len(layers):
        raise ValueError(f"`layers` must be more than the {len(layers)} of the model, got {num_layers}; give more.")
    torch.manual_seed(seed)
    while len(layers) < num_layers:
        layer = deepcopy(layers[-1])
        layer.self_attn.layer_idx = len(layers)
        initialize_for_scratch(layer)
        for name, module in layer.named_modules():
            if type(module).__name__.endswith("Norm"):
                nn.init.ones_(module.weight)
            elif name in ("self_attn.o_proj", "mlp.down_proj"):
                nn.init.zeros_(module.weight)
        layers.append(layer)
    for config in (model.model.language_model.config, model.config.get_text_config()):
        config.num_hidden_layers = num_layers
        config.layer_types = [config.layer_types[-1]] * num_layers


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Spa3-VLM")
    parser.add_argument("output", type=Path, help="new or empty folder for the result")
    parser.add_argument("--layers", type=int, required=True, help="layers of its language model in the end")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new weights (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None):
    """Write a deeper model; see the top of this file."""
    options = parse_options(arguments)
    require_empty_folder(options.output)
    require_checkpoint(options.model)
    model = load_spa3_vlm(options.model, dtype=torch.float32)
    before = len(model.model.language_model.layers)
    add_layers(model, options.layers, options.seed)
    line = f"{options.layers - before} layers more in the language model, which at first changed nothing."
    with new_folder(options.output) as folder:
        model.save_pretrained(folder)
        load_processor(options.model).save_pretrained(folder)
        write_card(folder, tuned_card(options.output.name, model.config, [line], trained=()))
    print(f"Wrote {options.output}: a language model of {options.layers} layers, {before} of them as they were.")


if __name__ == "__main__":
    run_module(main, "spa3r.trainers.world.deeper")
