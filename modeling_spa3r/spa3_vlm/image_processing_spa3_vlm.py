"""Prepares the images of scenes for the spatial encoder and for the vision tower of a Qwen-VL.

Every image is resized (bicubic) to one width and to a height of whole patches; a portrait image is then cropped to its
middle square (official code), or fitted whole into that square, on white. The spatial encoder gets this image. The
vision tower gets its top left part, cut to whole squares of 2 x 2 patches (official code). A tower whose patches have
another size than the spatial encoder's gets the whole image instead, resized by its own rule (`do_resize`).

Deviation from the official code: the EXIF orientation of a photo is applied.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature
from transformers.utils import logging

from ..library import Qwen2VLImageProcessorKwargs, Qwen2VLImageProcessorPil, smart_resize
from ..scene_images import SceneImageReader

__all__ = ["Spa3VLMImageProcessor"]

logger = logging.get_logger(__name__)

FITS = ("crop", "pad")
WHITE = 255
# Height over width. A more elongated image is no photo, and would take gigabytes before it is cropped. Qwen's limit.
MAX_ASPECT_RATIO = 200

_has_warned: list[bool] = []


class Spa3VLMImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""
    image_width (`int`, *optional*, defaults to 518):
        Width in pixels that images are resized to: a multiple of the spatial encoder's patch size, and at least 2
        patches.
    geometry_patch_size (`int`, *optional*):
        Side in pixels of a patch of the spatial encoder, where it is not that of the vision tower, `patch_size`.
    image_fit (`str`, *optional*, defaults to `"crop"`):
        What becomes of an image that is higher than wide: `"crop"` keeps its middle square, as the published weights
        expect; `"pad"` shows all of it, smaller, on a white square.
    """

    image_width: int
    image_fit: str
    geometry_patch_size: int | None


class Spa3VLMImageProcessor(SceneImageReader, Qwen2VLImageProcessorPil):
    """Prepares the images of scenes.

    `images` is the list of images of one scene, or a list of such lists. An image is a `PIL.Image.Image`, a path, a
    URL, a base64 string, or an array of bytes or of floats in [0, 1], channels first or last; an array may hold
    several. Transparent parts become white. The output concatenates all images:

    - `pixel_values` of shape `(num_patches, channels * temporal_patch_size * patch_size**2)`: normalised patches for
      the vision tower;
    - `image_grid_thw` of shape `(num_images, 3)`: frames, rows and columns of patches of each image;
    - `pixel_values_geometry` of shape `(num_pixels, 3)`: the images for the spatial encoder, RGB in [0, 1], row-major;
    - `geometry_sizes` of shape `(num_images, 2)`: their heights and widths in pixels, one size per scene. Smaller
      views are centred on white;
    - `num_views` of shape `(num_scenes,)`: number of images of each scene.

    Raises:
        ValueError: If there is no image, or an image cannot be read or is too elongated; the message names the image.
    """

    valid_kwargs = Spa3VLMImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes", "num_views"]
    image_width = 518
    image_fit = "crop"
    geometry_patch_size = None
    # Images already have their final size. `do_resize` resizes those for the vision tower again, by Qwen's rule.
    do_resize = False

    def resized_size(self, height: int, width: int, image_width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of a resized image, before a portrait image is cropped."""
        image_width, patch_size = image_width or self.image_width, self.geometry_patch_size or self.patch_size
        return max(round(height * image_width / width / patch_size), 1) * patch_size, image_width

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of patches that the vision tower gets for an image of this size in pixels."""
        options = images_kwargs or {}
        height, width = self.resized_size(height, width, options.get("image_width"))
        _, (height, width) = self.vision_sizes(min(height, width), width, options)
        return height * width // self.patch_size**2

    def vision_sizes(
        self, height: int, width: int, images_kwargs: dict | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes of what the vision tower gets of a resized and cropped image of this size.

        Returns:
            `tuple[tuple[int, int], tuple[int, int]]`: Height and width of the top left part that it sees, and of that
            part as the tower gets it, all in pixels.
        """
        names = ("do_resize", "patch_size", "merge_size", "geometry_patch_size", "size")
        options = {name: getattr(self, name) for name in names} | (images_kwargs or {})
        side, token_side = seen_side(**options), options["patch_size"] * options["merge_size"]
        seen = height // side * side, width // side * side
        if not options["do_resize"]:
            return seen, seen
        low, high = (options["size"][name] for name in ("shortest_edge", "longest_edge"))
        return seen, smart_resize(*seen, token_side, min_pixels=low, max_pixels=high)

    def to_dict(self) -> dict[str, Any]:
        """Leave out the default `image_fit`, so that settings and fingerprints of older checkpoints stay the same."""
        settings = super().to_dict()
        return {name: value for name, value in settings.items() if (name, value) != ("image_fit", FITS[0])}

    def _standardize_kwargs(
        self,
        image_width: int | None = None,
        image_fit: str | None = None,
        geometry_patch_size: int | None = None,
        **kwargs,
    ) -> dict:
        """Check the options of the constructor or of a call."""
        if image_fit not in FITS:
            raise ValueError(f"`image_fit` must be one of {', '.join(FITS)}, got {image_fit!r}.")
        patch_size, side = geometry_patch_size or kwargs["patch_size"], kwargs["patch_size"] * kwargs["merge_size"]
        if image_width % patch_size or image_width < side:
            raise ValueError(
                f"`image_width` must be a multiple of the patch size {patch_size} and at least {side}, got "
                f"{image_width}."
            )
        own = {"image_width": image_width, "image_fit": image_fit, "geometry_patch_size": geometry_patch_size}
        return super()._standardize_kwargs(**kwargs) | own

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        """Prepare images for both encoders; transformers calls this hook of `preprocess`."""
        return_tensors = kwargs.pop("return_tensors", None)
        sizes: list[tuple[int, int]] = []
        make_view = partial(self._make_view, options=kwargs, sizes=sizes)
        scenes = self.map_scenes(images, make_view, kwargs.get("input_data_format"))
        if kwargs["image_fit"] == "crop":
            warn_of_crop(sizes)
        whole, framed, side = [], [], seen_side(**kwargs)
        for views in scenes:
            whole += [view[:, : view.shape[1] // side * side, : view.shape[2] // side * side] for view in views]
            framed += _frame_on_white(views)
        features = self._preprocess(whole, **kwargs, return_tensors=None)
        pixels = np.concatenate([np.moveaxis(view, 0, -1).reshape(-1, 3) for view in framed])
        features["pixel_values_geometry"] = self.geometry_pixels(pixels)
        features["geometry_sizes"] = np.array([view.shape[1:] for view in framed])
        features["num_views"] = np.array([len(scene) for scene in scenes])
        return BatchFeature(data=dict(features), tensor_type=return_tensors)

    def geometry_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Bytes of images as the spatial encoder gets them, in [0, 1]."""
        return pixels / np.float32(255)

    def _make_view(self, image: PIL.Image.Image, name: str, options: dict, sizes: list) -> np.ndarray:
        """Resize and crop an image, and note its size; returns RGB bytes of shape `(3, height, width)`."""
        sizes.append(image.size)
        min_height = seen_side(**options)
        if image.height > MAX_ASPECT_RATIO * image.width:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, its height more than {MAX_ASPECT_RATIO} times its "
                "width; crop it."
            )
        height, width = self.resized_size(image.height, image.width, options["image_width"])
        if height < min_height:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, resized {width} x {height}, but its height must be "
                f"at least {min_height} then; crop its width."
            )
        if height > width and options["image_fit"] == "pad":
            image = _fit_on_white(image, width, options["resample"])
        else:
            image = image.resize((width, height), options["resample"])
        resized, height = np.asarray(image), image.height
        top = max((height - width) // 2, 0)
        # A copy, because the next steps are faster channel by channel.
        return np.ascontiguousarray(np.moveaxis(resized[top : top + min(height, width)], -1, 0))


def seen_side(patch_size: int, merge_size: int, geometry_patch_size: int | None, do_resize: bool, **options) -> int:
    """The vision tower sees whole squares of a view, of this side in pixels; see `Spa3VLMImageProcessor` for the rest.

    Patches of one size coincide in both encoders, if what is left of a square is cut off. Patches of two sizes cannot,
    and the tower sees the whole view.
    """
    return geometry_patch_size if do_resize and geometry_patch_size else patch_size * merge_size


def warn_of_crop(sizes: Sequence[tuple[int, int]]) -> None:
    """Warn, once in a process, of images that are higher than wide: they lose a part of what they show.

    Args:
        sizes (`Sequence[tuple[int, int]]`): Width and height of each image.
    """
    lost = [1 - width / height for width, height in sizes if height > width]
    worker = torch.utils.data.get_worker_info()
    if lost and (worker is None or worker.id == 0) and not _has_warned:
        _has_warned.append(True)
        logger.warning(
            f"{len(lost)} of {len(sizes)} images are higher than wide. Only their middle squares are used, as the "
            f"published weights expect, and up to {max(lost):.0%} of their height is lost. Set `image_fit` to `pad` "
            "in the image processor's settings to use all of it."
        )


def _fit_on_white(image: PIL.Image.Image, side: int, resample) -> PIL.Image.Image:
    """Resize a portrait image to the height of a white square, and put it in its middle."""
    width = max(round(image.width * side / image.height), 1)
    square = PIL.Image.new("RGB", (side, side), (WHITE, WHITE, WHITE))
    square.paste(image.resize((width, side), resample), ((side - width) // 2, 0))
    return square


def _frame_on_white(views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Centre the views of a scene on white, in the size of the highest and the widest, as VGGT's own loader does."""
    if len({view.shape for view in views}) <= 1:
        return list(views)
    height, width = (max(sides) for sides in zip(*(view.shape[1:] for view in views), strict=True))
    framed = []
    for view in views:
        top, left = (height - view.shape[1]) // 2, (width - view.shape[2]) // 2
        bottom, right = height - view.shape[1] - top, width - view.shape[2] - left
        framed.append(np.pad(view, ((0, 0), (top, bottom), (left, right)), constant_values=WHITE))
    return framed
