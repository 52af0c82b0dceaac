"""Scenes that travel inside `pixel_values`, for trainers that pass on no other input of a scene.

Trainers that build the inputs of their loss themselves, as TRL's GRPO and RLOO do, know `pixel_values` and
`image_grid_thw` by name and drop all else. They share out the rows of both, one row per patch and per image. So the
latents of a scene stand to the right of the patches of its images, and the model takes them off again. Features that
the frozen vision tower has computed before stand there instead of the patches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig

__all__ = ["attach_latents", "carry_features", "detach_latents"]

# In the first column where features replace the patches, whose values are finite.
FEATURES = torch.inf


def attach_latents(
    pixel_values: Tensor, image_grid_thw: Tensor, num_views: Tensor, latents: Sequence[Tensor]
) -> Tensor:
    """Put the latents of each scene beside the patches of its images.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`): See `Spa3VLMModel.forward`.
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`): See `Spa3VLMModel.forward`.
        num_views (`torch.LongTensor` of shape `(batch_size,)`): Number of images in each row.
        latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`): Of each row that has images.

    Returns:
        `torch.FloatTensor` of shape `(num_patches, patch_size + num_columns)`: As many columns as the scene with the
        fewest patches needs.
    """
    columns = _share_out([scene.flatten() for scene in latents], image_grid_thw, num_views)
    return torch.cat([pixel_values, columns.to(pixel_values)], dim=1)


def carry_features(
    vision_features: Sequence[Tensor], image_grid_thw: Tensor, num_views: Tensor, latents: Sequence[Tensor]
) -> Tensor:
    """Put features of the vision tower and latents of each scene into rows, one for each patch of its images.

    Args:
        vision_features (`list[torch.Tensor]` of shape `(num_tokens, feature_size)`): Of each row that has images.
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`): See `Spa3VLMModel.forward`.
        num_views (`torch.LongTensor` of shape `(batch_size,)`): Number of images in each row.
        latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`): As many, or none without a fusion.

    Returns:
        `torch.FloatTensor` of shape `(num_patches, 1 + num_columns)`: To be passed on as `pixel_values`.
    """
    scenes = zip(vision_features, latents, strict=True) if latents else ((each,) for each in vision_features)
    values = [torch.cat([tensor.flatten() for tensor in scene]) for scene in scenes]
    columns = _share_out(values, image_grid_thw, num_views)
    # An odd number in all: patches, of two frames, have an even one, and could be taken for these otherwise.
    columns = pad(columns, (0, columns.shape[1] % 2))
    return torch.cat([columns.new_full((len(columns), 1), FEATURES), columns], dim=1)


def _share_out(values: Sequence[Tensor], image_grid_thw: Tensor, num_views: Tensor) -> Tensor:
    """Spread the values of each scene over the rows of its patches."""
    counts = [count for count in num_views.tolist() if count]
    num_patches = [int(images.sum()) for images in image_grid_thw.prod(-1).split(counts)]
    scenes = list(zip(values, num_patches, strict=True))
    num_columns = max(-(-scene.numel() // number) for scene, number in scenes)
    return torch.cat(
        [pad(scene, (0, number * num_columns - scene.numel())).view(number, num_columns) for scene, number in scenes]
    )


def detach_latents(config: Spa3VLMConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """Take what `attach_latents` or `carry_features` put into `pixel_values` out again; other inputs stay as they are.

    Args:
        config (`Spa3VLMConfig`): Configuration of the model.
        inputs (`dict[str, Any]`): Arguments of `Spa3VLMModel.forward`.

    Returns:
        `dict[str, Any]`: The inputs, with `pixel_values` as the vision tower takes them or else `vision_features`,
        `spatial_latents` and `num_views`.

    Raises:
        ValueError: If the columns hold no latents of this model, or the text does not say which images are whose.
    """
    pixel_values, vision = inputs.get("pixel_values"), config.vision_config
    patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    if pixel_values is None or pixel_values.shape[-1] == patch_size:
        return inputs
    has_features = pixel_values.ndim == 2 and bool((pixel_values[:1, 0] == FEATURES).any())
    if not has_features and pixel_values.shape[-1] < patch_size:
        return inputs
    if given := [name for name in ("spatial_latents", "pixel_values_geometry") if inputs.get(name) is not None]:
        raise ValueError(f"`pixel_values` holds the scene already, got `{given[0]}` too; pass the scene once.")
    grid, token_types = inputs.get("image_grid_thw"), inputs.get("mm_token_type_ids")
    if grid is None or token_types is None:
        name = "image_grid_thw" if grid is None else "mm_token_type_ids"
        raise ValueError(f"`pixel_values` with latents beside the patches need `{name}`, got `None`; pass it too.")
    num_patches = grid.prod(-1).tolist()
    num_tokens = [number // vision.spatial_merge_size**2 for number in num_patches]
    num_views = _count_views((token_types == 1).sum(-1).tolist(), num_tokens)
    shape = (0, 1) if config.fusion == "none" else (config.spatial_config.num_latents, config.latent_size)
    size_of_features = _feature_size(config) if has_features else 0
    first_column = 1 if has_features else patch_size
    features, latents, image, patch = [], [], 0, 0
    for count in filter(None, num_views):
        images = slice(image, image + count)
        number = sum(num_patches[images])
        columns = pixel_values[patch : patch + number, first_column:].flatten()
        sizes = [sum(num_tokens[images]) * size_of_features, shape[0] * shape[1]]
        if len(columns) < sum(sizes):
            what = f"features of {size_of_features}" if has_features else f"patches of {patch_size}"
            raise ValueError(
                f"`pixel_values` has {pixel_values.shape[-1]} columns, which do not hold {what} values and {shape[0]} "
                f"latents of {shape[1]} channels; use the processor of this model."
            )
        of_images, of_scene = columns[: sum(sizes)].split(sizes)
        features.append(of_images.view(-1, max(1, size_of_features)))
        latents.append(of_scene.view(shape))
        image, patch = image + count, patch + number
    return inputs | {
        "pixel_values": None if has_features else pixel_values[:, :patch_size],
        "vision_features": torch.cat(features) if has_features else inputs.get("vision_features"),
        "spatial_latents": None if config.fusion == "none" else torch.stack(latents),
        "num_views": torch.tensor(num_views),
    }


def _feature_size(config: Spa3VLMConfig) -> int:
    """Values of an image token, those of DeepStack among them; see `pack_features`."""
    num_layers = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
    return num_layers * config.get_text_config().hidden_size


def _count_views(tokens_of_rows: list[int], num_tokens: list[int]) -> list[int]:
    """The number of images in each row, from the image tokens of each row and of each image."""
    num_views, image = [], 0
    for row, tokens in enumerate(tokens_of_rows):
        first = image
        while tokens > 0 and image < len(num_tokens):
            tokens, image = tokens - num_tokens[image], image + 1
        if tokens:
            raise ValueError(
                f"Row {row} has {tokens_of_rows[row]} image tokens, which end within an image of {num_tokens} tokens; "
                "keep all placeholders of every image, in order."
            )
        num_views.append(image - first)
    if image < len(num_tokens):
        raise ValueError(
            f"`image_grid_thw` describes {len(num_tokens)} images, but the text has tokens for {image}; pass the "
            "inputs of one batch together."
        )
    return num_views
