"""Images of scenes, as the spatial encoder and as the vision tower of Qwen2.5-VL take them.

Every image is resized to one width (bicubic) and to whole patches in height; what is higher than wide is cropped to a
square. The spatial encoder sees this; the vision tower sees its top left part of whole 2 x 2 patches (official code).

Deviation from the official code: the EXIF orientation of a photo is applied.
"""

import base64
import binascii
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

# Views of a scene that are smaller than the largest are framed in it, as VGGT's own loader does.
WHITE = 255
# What is higher than so many times its width is no photo, and would take gigabytes until it is cropped; as in Qwen.
MAX_ASPECT_RATIO = 200
DOWNLOAD_TIMEOUT = 60  # seconds


class Spa3VLMImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""
    image_width (`int`, *optional*, defaults to 518):
        Width that images are resized to; a multiple of `patch_size`, and at least of one 2 x 2 patch.
    """

    image_width: int


class Spa3VLMImageProcessor(Qwen2VLImageProcessorPil):
    """Prepares the images of scenes.

    `images` are those of one scene, or a list of scenes, each a list: `PIL.Image.Image` (transparent on white), path,
    URL, base64 string, array of bytes or of floats in [0, 1] (channels first or last), or such an array of several
    images. The result holds, one after another:

    - `pixel_values` of shape `(num_patches, channels * temporal_patch_size * patch_size**2)` and `image_grid_thw` of
      shape `(num_images, 3)`: normalised patches for the vision tower, with frames, rows and columns of each image;
    - `pixel_values_geometry` of shape `(num_pixels, 3)`, RGB in [0, 1], and `geometry_sizes` of shape
      `(num_images, 2)`: images for the spatial encoder, row by row, with height and width in pixels. Views of a scene
      have one size: smaller ones are centered on white;
    - `num_views` of shape `(num_scenes,)`.

    Raises:
        ValueError: If an image cannot be read or is too elongated (says which and why), or there is none.
    """

    valid_kwargs = Spa3VLMImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes", "num_views"]
    image_width = 518
    # The images come in their final size. With `do_resize` the vision tower, and it alone, gets them by Qwen's rule.
    do_resize = False

    def fetch_images(self, image_url_or_urls):
        """Open what is named by path, URL or base64 string, in any nesting; arrays of several images become lists."""
        image = image_url_or_urls
        if isinstance(image, (list, tuple)):
            return [self.fetch_images(each) for each in image]
        if isinstance(image, (str, os.PathLike)):
            return _open_image(image)
        if not is_valid_image(image):
            raise ValueError(
                "An image must be a `PIL.Image.Image`, an array, a path, a URL or a base64 string, got "
                f"{type(image).__name__}."
            )
        if isinstance(image, PIL.Image.Image) or image.ndim == 3:
            return image
        if image.ndim not in (2, 4):
            raise ValueError(
                f"An array of shape {tuple(image.shape)} is given as image; it must have 3 dimensions, 2 if it is "
                "gray, or 4 if it holds several."
            )
        return image[..., None] if image.ndim == 2 else list(image)

    def resized_size(self, height: int, width: int, image_width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of an image after resizing, before what is higher than wide is cropped."""
        image_width, patch_size = image_width or self.image_width, self.patch_size
        return max(round(height * image_width / width / patch_size), 1) * patch_size, image_width

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Patches that the vision tower gets of an image of this size in pixels; see `Qwen2VLImageProcessorPil`."""
        options = images_kwargs or {}
        height, width = self.resized_size(height, width, options.get("image_width"))
        merged = self.patch_size * self.merge_size
        height, width = min(height, width) // merged * merged, width // merged * merged
        if options.get("do_resize", self.do_resize):
            return super().get_number_of_image_patches(height, width, options)
        return height * width // self.patch_size**2

    def _standardize_kwargs(self, image_width: int | None = None, **kwargs) -> dict:
        """The hook through which options of the constructor and of a call pass."""
        patch_size, merged = kwargs["patch_size"], kwargs["patch_size"] * kwargs["merge_size"]
        if image_width % patch_size or image_width < merged:
            raise ValueError(
                f"`image_width` must be a multiple of the patch size {patch_size} and at least {merged}, got "
                f"{image_width}."
            )
        return super()._standardize_kwargs(**kwargs) | {"image_width": image_width}

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        """The hook that the library gives for several kinds of output from the same images."""
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
            raise ValueError("There is no image; give at least one, or text alone without `images`.")
        merged = kwargs["patch_size"] * kwargs["merge_size"]
        features = self._preprocess(
            [
                view[:, : view.shape[1] // merged * merged, : view.shape[2] // merged * merged]
                for scene in views
                for view in scene
            ],
            **kwargs,
            return_tensors=None,
        )
        framed = [view for scene in views for view in _frame_on_white(scene)]
        pixels = np.concatenate([np.moveaxis(view, 0, -1).reshape(-1, 3) for view in framed])
        features["pixel_values_geometry"] = pixels / np.float32(255)
        features["geometry_sizes"] = np.array([view.shape[1:] for view in framed])
        features["num_views"] = np.array([len(scene) for scene in views])
        return BatchFeature(data=dict(features), tensor_type=return_tensors)

    def _make_view(self, image, name: str, kwargs: dict) -> np.ndarray:
        """RGB bytes of shape `(3, height, width)` of an image, resized and cropped."""
        image = self._to_rgb(image, name, kwargs.get("input_data_format"))
        lowest = kwargs["patch_size"] * kwargs["merge_size"]
        if image.height > MAX_ASPECT_RATIO * image.width:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, more than {MAX_ASPECT_RATIO} times as high as "
                "wide; crop it."
            )
        height, width = self.resized_size(image.height, image.width, kwargs["image_width"])
        if height < lowest:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, and resized to {width} x {height} less than the "
                f"{lowest} pixels high that one 2 x 2 patch takes; crop it."
            )
        resized = np.asarray(image.resize((width, height), kwargs["resample"]))
        top = max((height - width) // 2, 0)
        # Copied, as what follows is quicker channel by channel.
        return np.ascontiguousarray(np.moveaxis(resized[top : top + min(height, width)], -1, 0))

    def _to_rgb(self, image, name: str, input_data_format: str | None) -> PIL.Image.Image:
        """An image of bytes, upright and on white."""
        if isinstance(image, PIL.Image.Image):
            image = _upright(image, name)
            if image.mode == "RGB" and "transparency" not in image.info:
                return image
        else:
            image = _to_bytes(image, name)
        pixels = self.process_image(image, do_convert_rgb=True, input_data_format=input_data_format)
        return PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


def list_scenes(images) -> tuple[list[list], bool]:
    """Images that `fetch_images` returned, scene by scene, and whether they were given so; flat ones are one scene."""
    images = images if isinstance(images, list) else [images]
    nested = [isinstance(image, list) for image in images]
    is_deeper = any(isinstance(image, list) for scene in images if isinstance(scene, list) for image in scene)
    if is_deeper or any(nested) and not all(nested):
        raise ValueError(
            "`images` must be a list of images, or a list of lists of images, one for each scene; got a mixture of "
            "images and lists, or deeper lists."
        )
    return (images, True) if any(nested) else ([images], False)


def _open_image(source: str | os.PathLike) -> PIL.Image.Image:
    """Decode an image named by path, URL, data URL or base64 string, with its alpha channel."""
    name = os.fspath(source)
    is_url = name.startswith(("http://", "https://"))
    if not is_url and (isinstance(source, os.PathLike) or os.path.exists(name)):
        return open_image(name)
    try:
        encoded = name.partition(",")[2] if name.startswith("data:") else name
        content = _download(name) if is_url else base64.b64decode(encoded)
        return open_image(BytesIO(content), name[:200])
    except (*BROKEN, httpx.HTTPError, httpx.InvalidURL) as error:
        is_unknown = isinstance(error, binascii.Error) or isinstance(error.__cause__, PIL.UnidentifiedImageError)
        if isinstance(error, UnreadableFrame) and (is_url or not is_unknown):
            raise
        reason = why_unreadable(error)
        if is_unknown:
            reason = "there is no such file, and it is no image in base64 either"
        raise UnreadableFrame(f"The image `{name[:200]}` cannot be read: {reason}.") from error


def _download(url: str) -> bytes:
    response = httpx.get(url, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT)
    if response.is_error:
        raise OSError(f"the server answers {response.status_code} {response.reason_phrase}")
    return response.content


def _upright(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    try:
        image.load()
        image = turn_upright(image)
    except BROKEN as error:
        raise UnreadableFrame(f"{name} cannot be read: {why_unreadable(error)}.") from error
    if 0 in image.size:
        raise ValueError(f"{name} is {image.width} x {image.height} pixels: it has none; leave it out.")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"{name} has the mode `{image.mode}`, not of bytes; scale it to bytes, as mode `L` or `RGB`.")
    return image


def _to_bytes(image, name: str) -> np.ndarray:
    """Bytes of an array of bytes or of floats in [0, 1], in the same shape."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if 0 in image.shape or not {1, 3, 4} & {image.shape[0], image.shape[-1]}:
        raise ValueError(
            f"{name} is an array of shape {image.shape}; it must be (height, width, channels) or (channels, height, "
            "width), with 1, 3 or 4 channels and at least one pixel."
        )
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    # Not a number compares as false.
    if not (np.issubdtype(image.dtype, np.floating) and low >= 0 and high <= 1):
        raise ValueError(
            f"{name} is an array of type {image.dtype} with values from {low:.4g} to {high:.4g}; give floats in "
            "[0, 1], or bytes (`uint8`) from 0 to 255."
        )
    return (image * 255).round().astype(np.uint8)


def _frame_on_white(views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Center views of a scene on white, in the size of the highest and the widest."""
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
