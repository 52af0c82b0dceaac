"""Checks that a batch's text, images and scenes fit together.

Without them, inputs would reach the wrong row or position, and neither torch nor transformers would notice. The checks
read tensor values, so the host waits for an accelerator. They run once per forward pass, not in the decoding steps of
`generate`, on copies of those inputs that the host reads again; see `copy_to_host`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..library import torch_compilable_check

__all__ = [
    "cached_offset",
    "check_inputs",
    "check_latents",
    "copy_to_host",
    "find_placeholders",
    "is_given",
    "require_scene",
    "split_views",
]


def copy_to_host(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Copies that the host can read any number of times; to make each, it waits for the device once."""
    return tuple(None if tensor is None else tensor.cpu() for tensor in tensors)


def is_given(tensors: Tensor | Sequence[Tensor] | None) -> bool:
    """Whether there is at least one entry. An empty tensor only tells ranks to skip an encoder; see `lockstep`."""
    return tensors is not None and len(tensors) > 0


def require_scene(pixel_values_geometry: Tensor | None, spatial_latents: Tensor | Sequence[Tensor] | None):
    """Refuse images without their scene in training, where the model would learn to answer without it.

    Trainers that compute the inputs of the loss themselves, as GRPO's does, pass on only the inputs they know;
    see `scene_in_pixels`.
    """
    if pixel_values_geometry is None and not is_given(spatial_latents):
        raise ValueError(
            "Images came without their scene while the model is in training mode: `pixel_values_geometry` and "
            "`spatial_latents` are None; pass all outputs of the processor (`pixel_values_geometry`, "
            "`geometry_sizes`, `num_views`), or `spatial_latents`. A trainer that drops them, as GRPO's does, would "
            "train the plain VLM: give it a `SceneCarrier` as processor; to answer without the scene, call "
            "`model.eval()`."
        )


def cached_offset(past_key_values: Cache | None) -> Tensor | None:
    """What the images in a cache take off the positions of the text that follows, of shape `(batch_size, 1)`."""
    return getattr(past_key_values, "rope_deltas", None)


def find_placeholders(
    config: Spa3VLMConfig, embeddings: nn.Module, inputs_embeds: Tensor, image_grid_thw: Tensor | None
) -> dict[str, Tensor]:
    """Find the image placeholders of a text that is given as embeddings.

    Args:
        embeddings (`nn.Module`): Maps token ids to embeddings.
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`): The text.
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*): See `Spa3VLMModel.forward`.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, in which all text has an id that is no placeholder's, and
        `mm_token_type_ids`, both of shape `(batch_size, sequence_length)`.
    """
    placeholder = embeddings(torch.tensor(config.image_token_id, device=inputs_embeds.device))
    is_placeholder = (inputs_embeds == placeholder).all(-1)
    is_image = is_placeholder
    if config.num_appended_tokens and image_grid_thw is not None:
        num_features = image_grid_thw.prod(-1).sum() // config.vision_config.spatial_merge_size**2
        # Latents come after a scene's last image, and count as text.
        rank_from_end = is_placeholder.flip(-1).cumsum(-1).flip(-1)
        has_latents = is_placeholder.sum() > num_features
        is_image = is_placeholder & ~(has_latents & (rank_from_end <= config.num_appended_tokens))
    any_text = 0 if config.image_token_id else 1
    ids = torch.full_like(is_placeholder, any_text, dtype=torch.long)
    return {"input_ids": ids.masked_fill(is_placeholder, config.image_token_id), "mm_token_type_ids": is_image.int()}


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
    """Check that the text of a batch fits its images. See `Spa3VLMModel.forward` for the arguments not listed here.

    Args:
        config (`Spa3VLMConfig`): Configuration of the model.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): The text.
        num_cached (`int`, *optional*, defaults to 0): Number of first tokens that `past_key_values` holds.
        kwargs (*optional*): Other arguments of `forward`, ignored.

    Raises:
        ValueError: If the inputs do not fit together; the message names the argument, its value and a remedy.
    """
    source = _image_source(pixel_values, vision_features, mm_encoder_outputs)
    has_geometry = pixel_values_geometry is not None or is_given(spatial_latents)
    if has_geometry and source not in ("pixel_values", "vision_features"):
        raise ValueError(
            "`pixel_values_geometry` and `spatial_latents` need the `pixel_values` of the same images, got "
            f"`{source}`; pass them too."
        )
    if source is not None:
        _check_room_for_images(past_key_values)
    if input_ids is None:
        return
    is_placeholder = input_ids == config.image_token_id
    if source is None:
        number = is_placeholder[:, num_cached:].sum()
        torch_compilable_check(
            number == 0,
            lambda: (
                f"`input_ids` has {number} image placeholders, but there are no images; pass everything that the "
                "processor returned, or text without placeholders."
            ),
        )
        # The cache knows where its images are, unless it was filled by another model.
        if not (num_cached and is_placeholder.any()) or cached_offset(past_key_values) is not None:
            return
    _check_token_types(input_ids, mm_token_type_ids, image_grid_thw)
    if source in ("pixel_values", "vision_features"):
        is_image = mm_token_type_ids == 1
        counts = torch.stack([is_placeholder.sum(-1), is_image.sum(-1), (is_image & ~is_placeholder).sum(-1)], dim=-1)
        merged = config.vlm_config.vision_config.spatial_merge_size**2
        num_patches = len(pixel_values) if source == "pixel_values" else merged * len(vision_features)
        patches = image_grid_thw.prod(-1).tolist()
        if sum(patches) != num_patches:
            raise ValueError(
                f"`image_grid_thw` describes {sum(patches)} patches in {len(patches)} images, but there are "
                f"{num_patches}; pass the inputs that one call of the processor returned."
            )
        num_features = [number // merged for number in patches]
        rows, views = _match_rows(counts.tolist(), len(num_features), num_views, has_geometry)
        _check_rows(rows, views, num_features, config.num_appended_tokens if has_geometry else 0)


def _image_source(
    pixel_values: Tensor | None,
    vision_features: Tensor | None,
    mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
) -> str | None:
    """Name of the argument that holds the images: raw, from the vision tower, or fused."""
    sources = {
        "pixel_values": pixel_values is not None,
        "vision_features": is_given(vision_features),
        "mm_encoder_outputs": mm_encoder_outputs is not None and mm_encoder_outputs.get("image") is not None,
    }
    given = [name for name, has_images in sources.items() if has_images]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(f'`{name}`' for name in given)} hold the same images; pass one of them.")
    return given[0] if given else None


def _check_room_for_images(past_key_values: Cache | None):
    if past_key_values is not None and past_key_values.get_seq_length():
        raise ValueError(
            f"Images cannot follow the {int(past_key_values.get_seq_length())} tokens in `past_key_values`; leave out "
            "`pixel_values` and the geometry if the cache holds these images, otherwise pass an empty cache."
        )


def _check_token_types(input_ids: Tensor, mm_token_type_ids: Tensor | None, image_grid_thw: Tensor | None):
    """Check the inputs that give image tokens their positions."""
    for name, given in {"mm_token_type_ids": mm_token_type_ids, "image_grid_thw": image_grid_thw}.items():
        if given is None:
            raise ValueError(
                f"Images need `{name}`, got `None`, and image tokens would get wrong positions; pass what the "
                "processor returned."
            )
    if mm_token_type_ids.shape != input_ids.shape:
        raise ValueError(
            f"`mm_token_type_ids` has shape {tuple(mm_token_type_ids.shape)}, but `input_ids` has shape "
            f"{tuple(input_ids.shape)}; give every token a type, 0 for text that you added."
        )


def _match_rows(
    rows: list[list[int]], num_images: int, num_views: Tensor | None, has_geometry: bool
) -> tuple[list[list[int]], list[int]]:
    """Token counts of each row, and its number of images.

    Without a scene `num_views` is optional, and then the whole batch counts as one row: only the order of images
    matters.
    """
    if num_views is None:
        if has_geometry and len(rows) > 1:
            raise ValueError(
                f"A batch of {len(rows)} rows needs `num_views`, the number of images in each row, got `None`; pass "
                "what the processor returned."
            )
        return [[sum(counts) for counts in zip(*rows, strict=True)]], [num_images]
    views = num_views.tolist()
    if len(views) != len(rows) or sum(views) != num_images:
        raise ValueError(
            f"`num_views` is {views}, but there are {len(rows)} rows and {num_images} images; give the number of "
            "images in each row."
        )
    return rows, views


def _check_rows(rows: list[list[int]], views: list[int], num_features: list[int], num_appended_tokens: int):
    """Compare the tokens of each row with its images.

    Args:
        rows (`list[list[int]]`):
            For each row, the numbers of placeholders, of tokens marked as an image's, and of marked tokens that are no
            placeholders.
        views (`list[int]`): Number of images in each row.
        num_features (`list[int]`): Number of features of each image.
        num_appended_tokens (`int`): Number of placeholders of a scene's latents.
    """
    end = 0
    for row, (count, (placeholders, marked, misplaced)) in enumerate(zip(views, rows, strict=True)):
        start, end = end, end + count
        features = sum(num_features[start:end])
        expected = features + (num_appended_tokens if count else 0)
        if placeholders != expected:
            raise ValueError(
                f"Row {row} has {placeholders} image placeholders, but its {count} images have {expected} features; "
                "keep all placeholders of every image, in order, when you edit or truncate `input_ids`."
            )
        if marked != features or misplaced:
            raise ValueError(
                f"`mm_token_type_ids` marks {marked} image tokens in row {row}, {misplaced} of them not placeholders, "
                f"but its images have {features} features; pad and truncate it like `input_ids`."
            )


def check_latents(config: Spa3VLMConfig, spatial_latents: Tensor | Sequence[Tensor], num_scenes: int):
    """Check that given latents fit the model and the scenes of a batch.

    Args:
        config (`Spa3VLMConfig`): Configuration of the model.
        spatial_latents (`torch.Tensor` or `list[torch.Tensor]`): Latents of each scene.
        num_scenes (`int`): Number of rows that have images.

    Raises:
        ValueError: If the number of scenes, the shape of their latents or their values are wrong.
    """
    shapes = [tuple(scene.shape) for scene in spatial_latents]
    fits = (len(shape) == 2 and shape[0] > 0 and shape[1] == config.latent_size for shape in shapes)
    if len(shapes) != num_scenes or not all(fits):
        raise ValueError(
            f"`spatial_latents` must have shape (num_latents, {config.latent_size}) for each of the {num_scenes} rows "
            f"with images, got {shapes}; make them with `encode_scene` of this model."
        )
    if config.fusion == "append" and any(shape[0] != config.num_appended_tokens for shape in shapes):
        raise ValueError(
            f"`fusion='append'` needs {config.num_appended_tokens} latents per scene, got `spatial_latents` of shapes "
            f"{shapes}; make them with `encode_scene` of this model."
        )
    torch_compilable_check(
        torch.stack([scene.isfinite().all() for scene in spatial_latents]),
        "`spatial_latents` holds NaN or infinity; encode the scene again.",
    )


def split_views(
    pixel_values_geometry: Tensor, geometry_sizes: Tensor | None, num_views: Tensor | None
) -> list[Tensor]:
    """Split the flat views of a batch into scenes. See `Spa3VLMModel.forward` for the arguments.

    Returns:
        `list[torch.FloatTensor]` of shape `(num_views, 3, height, width)`: Views of each scene that has any.

    Raises:
        ValueError: If the arguments do not fit together, or the views of a scene differ in size.
    """
    shape = tuple(pixel_values_geometry.shape)
    if len(shape) != 2 or shape[0] == 0 or shape[1] != 3:
        raise ValueError(
            "`pixel_values_geometry` must have shape (num_pixels of all views, 3) with at least one view, got "
            f"{shape}; pass what the processor returned."
        )
    if geometry_sizes is None:
        raise ValueError(
            "`pixel_values_geometry` needs `geometry_sizes`, the heights and widths of the views, got `None`; pass "
            "what the processor returned."
        )
    sizes = [tuple(size) for size in geometry_sizes.tolist()]
    counts = [len(sizes)] if num_views is None else num_views.tolist()
    num_pixels = sum(height * width for height, width in sizes)
    if sum(counts) != len(sizes) or num_pixels != shape[0]:
        raise ValueError(
            f"`num_views` {counts} and `geometry_sizes` of {len(sizes)} views with {num_pixels} pixels do not fit "
            f"`pixel_values_geometry` of {shape[0]} pixels; pass the inputs that one call of the processor returned."
        )
    scenes, view, pixel = [], 0, 0
    for count in filter(None, counts):
        scene_sizes = sorted(set(sizes[view : view + count]))
        if len(scene_sizes) > 1:
            raise ValueError(
                f"`geometry_sizes` has views of different sizes in one scene, {scene_sizes}; give the processor all "
                "images of a scene together, so that it pads them to one size."
            )
        height, width = scene_sizes[0]
        pixels = pixel_values_geometry[pixel : pixel + count * height * width]
        scenes.append(pixels.unflatten(0, (count, height, width)).permute(0, 3, 1, 2))
        view, pixel = view + count, pixel + len(pixels)
    return scenes
