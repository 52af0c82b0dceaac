"""Speed and memory of Spa3R: attention across views, latents, and where the time of a pre-training step goes.

    python tests/benchmarks/bench_spa3r.py --output runs/bench.json
    python tests/benchmarks/bench_spa3r.py --preset base --device cuda --dtype bfloat16

Weights are random, views too except in the pre-training step, which reads rendered rooms. `measuring.py` says how time
is taken. Peak memory is above weights and inputs; `memory_tracking.MemoryTracker` says how it is counted.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    compare_times,
    make_model_parser,
    parse_model_options,
    print_table,
    print_verdict,
    shares,
    timed,
    write_figures,
)
from memory_tracking import peak_memory
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTModel
from spa3r.configuration import Spa3RConfig
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.views import SceneViews, collate_views
from spa3r.modeling_spa3r.layers import LayerScale

PRESETS = {
    "small": {"hidden_size": 256, "layers": 8, "image_size": 168},
    "base": {"hidden_size": 1024, "layers": 24, "image_size": 518},
}
LATENT_VIEWS = (8, 16, 32)
# As in the paper's recipe.
IMAGES_PER_DEVICE = 24
MAX_TIME_RATIO = 0.8
# Relative, between ways to compute the same features in float32.
TOLERANCE = 1e-4


def build_config(hidden_size: int, layers: int) -> Spa3RConfig:
    """The preset spa3r-base, scaled: 1024 channels and 24 layers of VGGT give the preset itself."""
    heads = hidden_size // 64
    return Spa3RConfig(
        vggt_config={
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "patch_embedding_layers": layers,
            "patch_embedding_heads": heads,
            "camera_heads": heads,
            "dense_hidden_size": hidden_size // 4,
            "dense_channels": [hidden_size // 4, hidden_size // 2, hidden_size, hidden_size],
            "dense_layers": [layers * layer // 24 for layer in (4, 11, 17, 23)],
        },
        teachers={
            "semantic": {
                "vision_config": {
                    "model_type": "dinov3_vit",
                    "hidden_size": hidden_size,
                    "intermediate_size": 4 * hidden_size,
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "num_register_tokens": 4,
                    "patch_size": 16,
                }
            }
        },
        hidden_size=3 * hidden_size // 4,
        num_attention_heads=3 * heads // 4,
        num_encoder_layers=layers // 4,
        num_decoder_layers=layers // 4,
        num_latents=hidden_size // 4,
    )


def random_views(num_views: int, options: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(1, num_views, 3, options.image_size, options.image_size, generator=generator)
    return views.to(options.device)


class DenseMaskAttention:
    """The asymmetric attention as one product with a mask over all pairs of tokens, as the official code computes it.

    An attention function for transformers' `AttentionInterface`.
    """

    def __init__(self):
        self.mask: Tensor | None = None

    def __call__(self, module, query, key, value, attention_mask, scaling, **kwargs):
        # Blocks within a view see fewer tokens and have no mask.
        mask = self.mask if query.shape[2] == self.mask.shape[0] else None
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return output.transpose(1, 2), None

    def run(self, model: VGGTModel, pixel_values: Tensor, num_context_views: int) -> Tensor:
        """Features of all views from a model that attends by this function."""
        num_views, (rows, columns) = pixel_values.shape[1], model.grid_size(pixel_values)
        num_tokens = 1 + model.config.num_register_tokens + rows * columns
        is_target = torch.arange(num_views * num_tokens, device=pixel_values.device) >= num_context_views * num_tokens
        self.mask = is_target[:, None] | ~is_target[None, :]
        try:
            return model(pixel_values).patch_tokens
        finally:
            self.mask = None


def check_equal(variants: dict[str, Callable[[], Any]], num_context_views: int):
    """Refuse to compare the cost of features that differ."""
    asymmetric, masked, (full, context) = (function() for function in variants.values())
    asymmetric_context, unmasked_context = asymmetric[:, :num_context_views], full[:, :num_context_views]
    for name, actual, expected in (
        ("the dense mask", asymmetric, masked),
        ("the pass over context views", asymmetric_context, context),
    ):
        error = ((actual - expected).norm() / expected.norm()).item()
        if error > TOLERANCE:
            raise RuntimeError(f"Asymmetric aggregation differs from {name} by {error:.1e} of the features' norm.")
    influence = ((unmasked_context - context).norm() / context.norm()).item()
    if influence < 10 * TOLERANCE:
        raise RuntimeError(f"Target views change context views by {influence:.1e} only: the check would miss a mask.")


@torch.no_grad()
def bench_aggregation(options: argparse.Namespace) -> dict[str, Any]:
    """VGGT features of context views that must not see the target views, and of target views that see all."""
    torch.manual_seed(0)
    model = VGGTModel(build_config(options.hidden_size, options.layers).vggt_config)
    for module in model.modules():
        # Initialised to 0.01, at which attention hardly changes the features and the comparison would mean little.
        if isinstance(module, LayerScale):
            module.scale.fill_(1.0)
    model = model.to(options.device).eval()
    dense_attention = DenseMaskAttention()
    AttentionInterface.register("dense_mask", dense_attention)
    dense_model = copy.deepcopy(model)
    dense_model.set_attn_implementation("dense_mask")

    views, num_context_views = random_views(options.views, options), options.views // 2
    variants = {
        "asymmetric": lambda: model(views, num_context_views).patch_tokens,
        "dense mask": lambda: dense_attention.run(dense_model, views, num_context_views),
        "two passes": lambda: (model(views).patch_tokens, model(views[:, :num_context_views]).patch_tokens),
    }
    check_equal(variants, num_context_views)
    # In place; equality was checked in float32.
    model.to(options.dtype)
    dense_model.to(options.dtype)

    seconds = compare_times(variants, options.repeats, options.device)
    memory = {name: peak_memory(function, options.device) for name, function in variants.items()}
    rows = [
        {
            "variant": name,
            "seconds": seconds[name],
            "peak_bytes": memory[name],
            "asymmetric_time_ratio": seconds["asymmetric"] / seconds[name],
            "asymmetric_memory_ratio": memory["asymmetric"] / memory[name],
        }
        for name in variants
    ]
    return {
        "views": options.views,
        "context_views": num_context_views,
        "rows": rows,
        "target_time_ratio_to_two_passes": MAX_TIME_RATIO,
        "target_is_met": seconds["asymmetric"] <= MAX_TIME_RATIO * seconds["two passes"],
    }


@torch.no_grad()
def bench_latents(options: argparse.Namespace) -> dict[str, Any]:
    """Latents of more and more views; memory also for a model with half the layers."""
    torch.manual_seed(0)
    model, shallow = (
        Spa3RModel(build_config(options.hidden_size, layers)).to(options.device, options.dtype).eval()
        for layers in (options.layers, options.layers // 2)
    )
    views = {num_views: random_views(num_views, options) for num_views in LATENT_VIEWS}
    variants = {num_views: lambda inputs=inputs: model(inputs) for num_views, inputs in views.items()}
    seconds = compare_times(variants, options.repeats, options.device)
    memory = {num_views: peak_memory(function, options.device) for num_views, function in variants.items()}
    half = {
        num_views: peak_memory(lambda inputs=inputs: shallow(inputs), options.device)
        for num_views, inputs in views.items()
    }
    rows, before = [], None
    for num_views in LATENT_VIEWS:
        row = {
            "views": num_views,
            "seconds": seconds[num_views],
            "peak_bytes": memory[num_views],
            "peak_bytes_at_half_the_layers": half[num_views],
        }
        if before is not None:
            row["time_ratio"] = seconds[num_views] / seconds[before]
            row["memory_ratio"] = memory[num_views] / memory[before]
            row["bytes_per_additional_view"] = (memory[num_views] - memory[before]) / (num_views - before)
        rows.append(row)
        before = num_views
    return {"layers": [options.layers, options.layers // 2], "rows": rows}


def pretraining_step(
    model: Spa3RForPreTraining, optimizer: torch.optim.Optimizer, dataset: SceneViews, options: argparse.Namespace
) -> dict[str, float]:
    """Seconds of each part of one step, from files to updated weights."""
    seconds: dict[str, float] = {}

    def run(part: str, function: Callable[[], Any]) -> Any:
        result, seconds[part] = timed(function, options.device)
        return result

    def load():
        batch = collate_views([dataset[0, scene, options.views] for scene in range(len(dataset))])
        return batch["pixel_values"].to(options.device).float() / 255, batch["num_context_views"]

    def predict():
        cameras = (observed[name][:, num_context_views:] for name in ("extrinsics", "intrinsics"))
        predictions = model.decode(latents, *cameras, tuple(pixel_values.shape[-2:]))
        return sum(model.compute_losses(predictions, observed["targets"] | {"depth": observed["depth"]}).values())

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    pixel_values, num_context_views = run("loader", load)
    with torch.autocast(options.device.type, options.dtype, enabled=options.dtype != torch.float32):
        observed = run(
            "teachers", lambda: model.observe(pixel_values, num_context_views, first_target=num_context_views)
        )
        grid_size = model.model.vggt.grid_size(pixel_values)
        latents = run("encoder", lambda: model.model.encode(observed["context_features"], grid_size))
        loss = run("decoder and losses", predict)
    run("backward", loss.backward)
    run("optimizer", update)
    return seconds


def bench_pretraining(options: argparse.Namespace) -> dict[str, Any]:
    """Parts of a step of `IMAGES_PER_DEVICE` images; the loader runs in this process, where workers would hide it."""
    torch.manual_seed(0)
    num_scenes = max(1, IMAGES_PER_DEVICE // options.views)
    model = Spa3RForPreTraining(build_config(options.hidden_size, options.layers)).to(options.device).train()
    model.freeze_teachers()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        render_rooms(folder, num_scenes, options.views, (options.image_size, options.image_size))
        dataset = SceneViews(load_scenes("rooms", folder), image_width=options.image_size)
        runs = tqdm(range(1 + options.repeats), desc="Timing", unit="step", leave=False)
        steps = [pretraining_step(model, optimizer, dataset, options) for _ in runs]
    return {"scenes": num_scenes, "views": options.views, "rows": shares(steps[1:])}


def parse_options() -> argparse.Namespace:
    parser = make_model_parser(__doc__, PRESETS, repeats=3)
    parser.add_argument("--hidden-size", type=int, help="channels of VGGT, a multiple of 256; Spa3R has 3/4 of them")
    parser.add_argument("--layers", type=int, help="layers of VGGT, a multiple of 8; encoder and decoder have 1/4")
    parser.add_argument("--image-size", type=int, help="side of the square views in pixels, a multiple of 14")
    parser.add_argument("--views", type=int, default=12, help="views of a scene; half of them are context")
    options = parse_model_options(parser)
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name, divisor in {"hidden_size": 256, "layers": 8, "image_size": 14, "views": 2, "repeats": 1}.items():
        if (value := getattr(options, name)) < 1 or value % divisor:
            parser.error(f"--{name.replace('_', '-')} must be a positive multiple of {divisor}, got {value}")
    return options


def main():
    options = parse_options()
    aggregation = bench_aggregation(options)
    print_table(f"Aggregation of {options.views} views, half of them context: same features", aggregation["rows"])
    print_verdict(f"at most {MAX_TIME_RATIO} of the time of two passes", aggregation["target_is_met"])
    latents = bench_latents(options)
    print_table(f"Latents, by number of views, at {options.layers} layers", latents["rows"])
    pretraining = bench_pretraining(options)
    title = f"Pre-training step of {pretraining['scenes']} scenes with {options.views} views"
    print_table(title, pretraining["rows"])
    write_figures(options, aggregation=aggregation, latents=latents, pretraining=pretraining)


if __name__ == "__main__":
    main()
