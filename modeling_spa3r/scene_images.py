"""Reads the images of scenes, given in any of the forms that the image processors accept."""

import base64
import os
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..data_scripts.common.downloads import download, is_url, local_path
from ..data_scripts.common.image_shapes import require_similar_shapes
from ..data_scripts.common.images import (
    BROKEN,
    UnreadableFrame,
    file_name,
    open_image,
    to_rgb,
    turn_upright,
    why_unreadable,
)
from .library import is_valid_image

__all__ = ["SceneImageReader", "download_image", "list_scenes"]

MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS = 128 << 20, 60


class SceneImageReader:
    """A mixin for image processors with transformers' Pillow backend, whose images belong to scenes.

    Images are those of one scene, or a list of scenes, each a list. An image is a `PIL.Image.Image`, a path, a URL, a
    base64 string, or an array of bytes or of floats in [0, 1], channels first or last; an array may hold several.
    """

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

    def map_scenes(
        self, images, function: Callable[[PIL.Image.Image, str], Any], input_data_format: str | None = None
    ) -> list[list]:
        """Call a function with each image and its name in errors; returns the results of each scene.

        Args:
            images: Images of one scene or of several.
            function (`Callable`): Takes an upright RGB image and a name that tells its place and, if known, its file.
            input_data_format (`str`, *optional*): Where arrays have their channels; by default it is inferred.

        Raises:
            ValueError: If there is no image, an image cannot be read, or one is a panorama among other images of its
                scene; the message names the image.
        """
        scenes, is_nested = list_scenes(self.fetch_images(images))
        if not any(scenes):
            raise ValueError("`images` holds no image; give at least one, or leave out `images`.")

        results = []
        for row, scene in enumerate(scenes):
            sizes, outputs = {}, []
            for index, image in enumerate(scene):
                name = f"Image {index}" + (f" of scene {row}" if is_nested else "")
                name += f" (`{file_name(image)}`)" if file_name(image) else ""
                image = self._to_rgb(image, name, input_data_format)
                sizes[name] = image.height, image.width
                outputs.append(function(image, name))
            require_similar_shapes(sizes)
            results.append(outputs)
        return results

    def _to_rgb(self, image, name: str, input_data_format: str | None) -> PIL.Image.Image:
        """Convert an image to upright RGB bytes on white."""
        if isinstance(image, PIL.Image.Image):
            try:
                image.load()
            except BROKEN as error:
                raise UnreadableFrame(f"{name} cannot be read: {why_unreadable(error)}; leave it out.") from error
            return to_rgb(turn_upright(image), name)
        pixels = _to_bytes(image, name)
        pixels = self.process_image(pixels, do_convert_rgb=True, input_data_format=input_data_format)
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
    """Decode an image from a path, `file://` or web address, data URL or base64 string, with its alpha channel."""
    name = os.fspath(source)
    if is_url(name):
        return open_image(download_image(name), name[:200])
    if isinstance(source, os.PathLike) or name.startswith("file://") or os.path.exists(name):
        return open_image(local_path(source))
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


def download_image(url: str) -> BytesIO:
    """Download an image within limits of size and time; raises `UnreadableFrame` if that fails."""
    content = BytesIO()
    try:
        download(url, content, MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS)
    except OSError as error:
        raise UnreadableFrame(f"The image `{url[:200]}` cannot be read: {error}; check the address.") from error
    content.seek(0)
    return content


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
