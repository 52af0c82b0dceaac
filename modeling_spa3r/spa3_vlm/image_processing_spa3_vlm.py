"""Prepares the images of scenes for the spatial encoder and for the vision tower of Qwen2.5-VL.

Every image is resized (bicubic) to one width and to a height of whole patches; a portrait image is then cropped to its
middle square. The spatial encoder gets this image. The vision tower gets its top left part, cut to whole squares of
2 x 2 patches (official code).

Deviation from the official code: the EXIF orientation of a photo is applied.
"""

import base64
import os
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import httpx
from transformers import BatchFeature
from transformers.image_utils import is_valid_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
)

from ...data_scripts.common.images import BROKEN, UnreadableFrame, open_image, turn_upright, why_unreadable

__all__ = ["Spa3VLMImageProcessor", "list_scenes"]

WHITE = 255
# Height over width. A more elongated image is no photo, and would take gigabytes before it is cropped. Qwen's limit.
MAX_ASPECT_RATIO = 200
DOWNLOAD_TIMEOUT = 60  # seconds


class Spa3VLMImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""
    image_width (`int`, *optional*, defaults to 518):
        Width in pixels that images are resized to: a multiple of `patch_size`, and at least 2 patches.
    """

    image_width: int


class Spa3VLMImageProcessor(Qwen2VLImageProcessorPil):
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
    # Images already have their final size. `do_resize` resizes those for the vision tower again, by Qwen's rule.
    do_resize = False

    def fetch_images(self, image_url_or_urls):
        """Open paths, URLs and base64 strings, in any nesting; an array of several images becomes their list."""
        image = image_url_or_urls
        if isinstance(image, (list, tuple)):
            return [self.fetch_images(each) for each in image]
        if isinstance(image, (str, os.PathLike)):
            return _open_image(image)
        if not is_valid_image(image):
            raise ValueError(
                f"`images` holds a {type(image).__name__}; give each image as `PIL.Image.Image`, array, path, URL or "
                "base64 string."
            )
        if isinstance(image, PIL.Image.Image) or image.ndim == 3:
            return image
        if image.ndim not in (2, 4):
            raise ValueError(
                "An image array must have 3 dimensions, 2 if it is gray, or 4 if it holds several images, got shape "
                f"{tuple(image.shape)}; reshape it."
            )
        return image[..., None] if image.ndim == 2 else list(image)

    def resized_size(self, height: int, width: int, image_width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of a resized image, before a portrait image is cropped."""
        image_width, patch_size = image_width or self.image_width, self.patch_size
        return max(round(height * image_width / width / patch_size), 1) * patch_size, image_width

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of patches that the vision tower gets for an image of this size in pixels."""
        options = images_kwargs or {}
        height, width = self.resized_size(height, width, options.get("image_width"))
        side = self.patch_size * self.merge_size
        height, width = min(height, width) // side * side, width // side * side
        if options.get("do_resize", self.do_resize):
            return super().get_number_of_image_patches(height, width, options)
        return height * width // self.patch_size**2

    def _standardize_kwargs(self, image_width: int | None = None, **kwargs) -> dict:
        """Check the options of the constructor or of a call."""
        patch_size, side = kwargs["patch_size"], kwargs["patch_size"] * kwargs["merge_size"]
        if image_width % patch_size or image_width < side:
            raise ValueError(
                f"`image_width` must be a multiple of the patch size {patch_size} and at least {side}, got "
                f"{image_width}."
            )
        return super()._standardize_kwargs(**kwargs) | {"image_width": image_width}

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        """Prepare images for both encoders; transformers calls this hook of `preprocess`."""
        scenes, is_nested = list_scenes(self.fetch_images(images))
        return_tensors = kwargs.pop("return_tensors", None)
        views = [
            [
                self._make_view(image, f"Image {index}" + (f" of scene {row}" if is_nested else ""), kwargs)
                for index, image in enumerate(scene)
            ]
            for row, scene in enumerate(scenes)
        ]
        if not any(views):
            raise ValueError("`images` holds no image; give at least one, or leave out `images`.")
        side = kwargs["patch_size"] * kwargs["merge_size"]
        whole = [
            view[:, : view.shape[1] // side * side, : view.shape[2] // side * side]
            for scene in views
            for view in scene
        ]
        features = self._preprocess(whole, **kwargs, return_tensors=None)
        framed = [view for scene in views for view in _frame_on_white(scene)]
        pixels = np.concatenate([np.moveaxis(view, 0, -1).reshape(-1, 3) for view in framed])
        features["pixel_values_geometry"] = pixels / np.float32(255)
        features["geometry_sizes"] = np.array([view.shape[1:] for view in framed])
        features["num_views"] = np.array([len(scene) for scene in views])
        return BatchFeature(data=dict(features), tensor_type=return_tensors)

    def _make_view(self, image, name: str, kwargs: dict) -> np.ndarray:
        """Resize and crop an image; returns RGB bytes of shape `(3, height, width)`."""
        image = self._to_rgb(image, name, kwargs.get("input_data_format"))
        min_height = kwargs["patch_size"] * kwargs["merge_size"]
        if image.height > MAX_ASPECT_RATIO * image.width:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, its height more than {MAX_ASPECT_RATIO} times its "
                "width; crop it."
            )
        height, width = self.resized_size(image.height, image.width, kwargs["image_width"])
        if height < min_height:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, resized {width} x {height}, but its height must be "
                f"at least {min_height} then; crop its width."
            )
        resized = np.asarray(image.resize((width, height), kwargs["resample"]))
        top = max((height - width) // 2, 0)
        # A copy, because the next steps are faster channel by channel.
        return np.ascontiguousarray(np.moveaxis(resized[top : top + min(height, width)], -1, 0))

    def _to_rgb(self, image, name: str, input_data_format: str | None) -> PIL.Image.Image:
        """Convert an image to upright RGB bytes on white."""
        if isinstance(image, PIL.Image.Image):
            image = _turn_upright(image, name)
            if image.mode == "RGB" and "transparency" not in image.info:
                return image
        else:
            image = _to_bytes(image, name)
        pixels = self.process_image(image, do_convert_rgb=True, input_data_format=input_data_format)
        return PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


def list_scenes(images) -> tuple[list[list], bool]:
    """Group the images that `fetch_images` returned by scene.

    Returns:
        `tuple[list[list], bool]`: Images of each scene, and whether they came as a list of lists; a flat list is one
        scene.
    """
    images = images if isinstance(images, list) else [images]
    nested = [isinstance(image, list) for image in images]
    is_deeper = any(isinstance(image, list) for scene in images if isinstance(scene, list) for image in scene)
    if is_deeper or any(nested) and not all(nested):
        raise ValueError(
            "`images` must be a list of images, or a list of lists, got a mixture of images and lists, or deeper "
            "lists; give one list per scene."
        )
    return (images, True) if any(nested) else ([images], False)


def _open_image(source: str | os.PathLike) -> PIL.Image.Image:
    """Decode an image from a path, URL, data URL or base64 string, with its alpha channel."""
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        return open_image(_download(name), name[:200])
    if isinstance(source, os.PathLike) or os.path.exists(name):
        return open_image(name)
    try:
        content = base64.b64decode(name.partition(",")[2] if name.startswith("data:") else name)
    except ValueError:
        content = b""
    try:
        return open_image(BytesIO(content), name[:200])
    except UnreadableFrame as error:
        if not isinstance(error.__cause__, PIL.UnidentifiedImageError):
            raise
        raise UnreadableFrame(
            f"The image `{name[:200]}` cannot be read: there is no such file, and it is not a base64 image; check it."
        ) from error


def _download(url: str) -> BytesIO:
    try:
        response = httpx.get(url, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT)
        if response.is_error:
            raise OSError(f"the server returned {response.status_code} {response.reason_phrase}")
    except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreadableFrame(f"The image `{url[:200]}` cannot be read: {error}; check the address.") from error
    return BytesIO(response.content)


def _turn_upright(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Apply the EXIF orientation, and refuse images without pixels or with more than 8 bits."""
    try:
        image.load()
        image = turn_upright(image)
    except BROKEN as error:
        raise UnreadableFrame(f"{name} cannot be read: {why_unreadable(error)}; leave it out.") from error
    if 0 in image.size:
        raise ValueError(f"{name} is {image.width} x {image.height} pixels; leave out images without pixels.")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"{name} has mode `{image.mode}`, more than 8 bits per channel; convert it to `L` or `RGB`.")
    return image


def _to_bytes(image, name: str) -> np.ndarray:
    """Convert an array of bytes or of floats in [0, 1] to bytes of the same shape."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if 0 in image.shape or not {1, 3, 4} & {image.shape[0], image.shape[-1]}:
        raise ValueError(
            f"{name} is an array of shape {image.shape}; give (height, width, channels) or (channels, height, width), "
            "with 1, 3 or 4 channels and at least one pixel."
        )
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    # Written so that NaN, which compares as false, is refused too.
    if not (np.issubdtype(image.dtype, np.floating) and low >= 0 and high <= 1):
        raise ValueError(
            f"{name} is an array of {image.dtype} with values from {low:.4g} to {high:.4g}; give floats in [0, 1], or "
            "bytes (`uint8`) from 0 to 255."
        )
    return (image * 255).round().astype(np.uint8)


def _frame_on_white(views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Centre the views of a scene on white, in the size of the highest and the widest, as VGGT's own loader does."""
    if len({view.shape for view in views}) <= 1:
        return list(views)
    height, width = (max(sides) for sides in zip(*(view.shape[1:] for view in views), strict=True))
    framed = []
    for view in views:
        canvas = np.full((3, height, width), WHITE, dtype=np.uint8)
        top, left = (height - view.shape[1]) // 2, (width - view.shape[2]) // 2
        canvas[:, top : top + view.shape[1], left : left + view.shape[2]] = view
        framed.append(canvas)
    return framed
