"""Which images are whose: refuses what would reach the wrong row or position, which the library does not notice.

Values are read for this, for which an accelerator must be waited for: once for a text, not in steps of `generate`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import torch_compilable_check

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig

__all__ = ["check_inputs", "check_latents", "split_views"]


def check_inputs(
    config: Spa3VLMConfig,
    input_ids: Tensor | None,
    num_cached: int = 0,
    past_key_values: Cache | None = None,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    pixel_values_geometry: Tensor | None = None,
    num_views: Tensor | None = None,
    spatial_latents: Tensor | Sequence[Tensor] | None = None,
    vision_features: Tensor | None = None,
    mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
    **kwargs,
):
    """Compare the text of a batch with its images.

    Args:
        config (`Spa3VLMConfig`): The model's.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The text.
        num_cached (`int`, *optional*, defaults to 0): How many of its first tokens are in `past_key_values`.
        kwargs (*optional*): All that `Spa3VLMModel.forward` takes; what is not named here is not looked at.

    Raises:
        ValueError: If they do not fit; says what does not.
    """
    is_encoded = mm_encoder_outputs is not None and mm_encoder_outputs.get("image") is not None
    has_features = vision_features is not None and len(vision_features) > 0
    is_seen = pixel_values is not None or has_features
    has_images = is_seen or is_encoded
    has_latents = spatial_latents is not None and len(spatial_latents) > 0
    has_geometry = pixel_values_geometry is not None or has_latents
    if has_geometry and not is_seen:
        raise ValueError("A scene is seen through its images: pass their `pixel_values` too.")
    if (pixel_values is not None) + has_features + is_encoded > 1:
        raise ValueError(
            "Of `pixel_values`, `vision_features` and `mm_encoder_outputs`, the same images before and after the "
            "encoders, more than one is given; pass one of them."
        )
    if has_images and past_key_values is not None and past_key_values.get_seq_length():
        raise ValueError(
            f"Images cannot be added to `past_key_values` that hold {int(past_key_values.get_seq_length())} tokens "
            "already; leave out `pixel_values` and the geometry if these images are among them, else start afresh."
        )
    if has_images and input_ids is None:
        raise ValueError("Images need `input_ids`, in which their placeholders are; got `inputs_embeds` alone.")
    if input_ids is None:
        return
    is_placeholder = input_ids == config.image_token_id
    if not has_images:
        number = is_placeholder[:, num_cached:].sum()
        torch_compilable_check(
            number == 0,
            lambda: (
                f"The text has {number} image placeholders, but there are no images; pass all that the processor "
                "returned, or a text without placeholders."
            ),
        )
        if not (num_cached and is_placeholder.any()):
            return
    _check_kinds_of_tokens(input_ids, mm_token_type_ids, image_grid_thw)
    if is_seen:
        is_image = mm_token_type_ids == 1
        counts = torch.stack([is_placeholder.sum(-1), is_image.sum(-1), (is_image & ~is_placeholder).sum(-1)], dim=-1)
        merged = config.vlm_config.vision_config.spatial_merge_size**2
        num_patches = merged * len(vision_features) if has_features else len(pixel_values)
        lengths = [number // merged for number in _image_patches(num_patches, image_grid_thw)]
        _check_rows(config, counts.tolist(), lengths, num_views, has_geometry)


def _check_kinds_of_tokens(input_ids: Tensor, mm_token_type_ids: Tensor | None, image_grid_thw: Tensor | None):
    """Positions of image tokens are made from these."""
    if mm_token_type_ids is None:
        raise ValueError(
            "Images need `mm_token_type_ids`, which tell their placeholders from text: without them images get the "
            "positions of text, and answers are wrong. The processor returns them."
        )
    if mm_token_type_ids.shape != input_ids.shape:
        raise ValueError(
            f"`mm_token_type_ids` has shape {tuple(mm_token_type_ids.shape)}, but `input_ids` has shape "
            f"{tuple(input_ids.shape)}; give each token one, 0 for text that was added by hand."
        )
    if image_grid_thw is None:
        raise ValueError("Images need `image_grid_thw`, the size of each in patches. The processor returns it.")


def _image_patches(num_patches: int, image_grid_thw: Tensor) -> list[int]:
    """Patches of each image."""
    patches = image_grid_thw.prod(-1).tolist()
    if sum(patches) != num_patches:
        raise ValueError(
            f"`image_grid_thw` tells of {sum(patches)} patches in {len(patches)} images, but there are {num_patches}; "
            "pass what the processor returned, together."
        )
    return patches


def _check_rows(
    config: Spa3VLMConfig,
    rows: list[list[int]],
    lengths: list[int],
    num_views: Tensor | None,
    has_geometry: bool,
):
    """Compare images with each row of the text: how many placeholders it has, how many tokens it marks as an image's,
    and how many of these are no placeholders."""
    if num_views is None and has_geometry and len(rows) > 1:
        raise ValueError(
            f"A batch of {len(rows)} rows needs `num_views`, the number of images in each row. The processor returns "
            "it."
        )
    if num_views is None:
        # Without a scene there is nothing to mix up but the images themselves.
        rows, views = [[sum(counts) for counts in zip(*rows, strict=True)]], [len(lengths)]
    else:
        views = num_views.tolist()
    if len(views) != len(rows) or sum(views) != len(lengths):
        raise ValueError(
            f"`num_views` {views} must tell for each of {len(rows)} rows how many of the {len(lengths)} images are "
            "its own."
        )
    end = 0
    for row, (count, (placeholders, marked, misplaced)) in enumerate(zip(views, rows, strict=True)):
        start, end = end, end + count
        features = sum(lengths[start:end])
        appended = config.num_appended_tokens if has_geometry and count else 0
        if placeholders != features + appended:
            raise ValueError(
                f"Row {row} has {placeholders} image placeholders, but its {count} images make {features + appended} "
                "features; the text needs the placeholders of each image, in order, and no cut through them."
            )
        if marked != features or misplaced:
            raise ValueError(
                f"`mm_token_type_ids` marks {marked} tokens of row {row} as an image's, {misplaced} of them no "
                f"placeholders, but its images make {features}; pad and cut it like `input_ids`."
            )


def check_latents(config: Spa3VLMConfig, spatial_latents: Tensor | Sequence[Tensor], num_scenes: int):
    """Compare given latents with the scenes of a batch that have images.

    Raises:
        ValueError: If they are of another number or width, or not finite.
    """
    shapes = [tuple(scene.shape) for scene in spatial_latents]
    fits = (len(shape) == 2 and shape[0] > 0 and shape[1] == config.latent_size for shape in shapes)
    if len(shapes) != num_scenes or not all(fits):
        raise ValueError(
            f"`spatial_latents` must be of shape (num_latents, {config.latent_size}) for each of the {num_scenes} "
            f"scenes that have images, got {shapes}; make them with `encode_scene` of this model."
        )
    if config.fusion == "append" and any(shape[0] != config.num_appended_tokens for shape in shapes):
        raise ValueError(
            f"`fusion='append'` needs {config.num_appended_tokens} latents of each scene, got {shapes}; make them "
            "with `encode_scene` of this model."
        )
    torch_compilable_check(
        torch.stack([scene.isfinite().all() for scene in spatial_latents]),
        "`spatial_latents` holds values that are not finite; encode the scene again.",
    )


def split_views(
    pixel_values_geometry: Tensor, geometry_sizes: Tensor | None, num_views: Tensor | None
) -> list[Tensor]:
    """Take a batch's views apart by scenes.

    Args:
        pixel_values_geometry, geometry_sizes, num_views: See `Spa3VLMModel.forward`.

    Returns:
        `list[torch.FloatTensor]` of shape `(num_views, 3, height, width)`: Of each scene that has any.

    Raises:
        ValueError: If they do not fit one another, or the views of a scene differ in size.
    """
    shape = tuple(pixel_values_geometry.shape)
    if len(shape) != 2 or shape[0] == 0 or shape[1] != 3:
        raise ValueError(
            "`pixel_values_geometry` must have shape (num_pixels of all views, 3) and hold a view, got "
            f"{shape}; the processor returns it."
        )
    if geometry_sizes is None:
        raise ValueError("Views need `geometry_sizes`, their heights and widths. The processor returns it.")
    sizes = [tuple(size) for size in geometry_sizes.tolist()]
    counts = [len(sizes)] if num_views is None else num_views.tolist()
    num_pixels = sum(height * width for height, width in sizes)
    if sum(counts) != len(sizes) or num_pixels != shape[0]:
        raise ValueError(
            f"`num_views` {counts} and `geometry_sizes` of {len(sizes)} views with {num_pixels} pixels do not fit "
            f"`pixel_values_geometry` of {shape[0]} pixels; pass what the processor returned, together."
        )
    scenes, view, pixel = [], 0, 0
    for count in filter(None, counts):
        scene_sizes = sorted(set(sizes[view : view + count]))
        if len(scene_sizes) > 1:
            raise ValueError(
                f"The views of one scene have different sizes, {scene_sizes}; the processor frames them in one: "
                "give it the images of a scene together."
            )
        height, width = scene_sizes[0]
        pixels = pixel_values_geometry[pixel : pixel + count * height * width]
        scenes.append(pixels.unflatten(0, (count, height, width)).permute(0, 3, 1, 2))
        view, pixel = view + count, pixel + len(pixels)
    return scenes
