"""Reads the images of a request, within limits: data URLs, files below one folder, and, if allowed, web addresses."""

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ....data_scripts.common.downloads import is_url, local_path
from ....data_scripts.common.images import BROKEN, why_unreadable
from .errors import ApiError
from .public_web import fetch_public

# What cameras and programs write. Pillow reads more, some with foreign programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MEGAPIXEL = 1_000_000
FETCH_SECONDS = 20


@dataclass(frozen=True)
class ImageLimits:
    """What a request may send.

    Args:
        root (`Path`, *optional*): Folder whose files may be named; none by default.
        may_fetch (`bool`): Whether public web addresses are fetched.
        max_images (`int`): Most images of a scene.
        max_pixels (`int`): Most pixels of all images of a scene together.
        max_bytes (`int`): Largest file of an image.
    """

    root: Path | None
    may_fetch: bool
    max_images: int
    max_pixels: int
    max_bytes: int


def read_images(urls: Sequence[str], limits: ImageLimits) -> list[bytes]:
    """The files of images, not decoded.

    Args:
        urls (`Sequence[str]`): Data URLs, paths or `file://` addresses, or web addresses.

    Raises:
        ApiError: If there are too many, or one may not be read or cannot be; names the image by its number.
    """
    if len(urls) > limits.max_images:
        raise ApiError(
            400, f"`messages` have {len(urls)} images, at most {limits.max_images} are allowed; send fewer."
        )
    return [_read(url, f"Image {index}", limits) for index, url in enumerate(urls)]


def decode_images(contents: Sequence[bytes], limits: ImageLimits) -> list[PIL.Image.Image]:
    """Decode images, after a look at their sizes.

    Raises:
        ApiError: If one cannot be read, or they have too many pixels together.
    """
    images, num_pixels = [], 0
    for index, content in enumerate(contents):
        try:
            image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
            num_pixels += image.width * image.height
            if num_pixels <= limits.max_pixels:
                image.load()
        except BROKEN as error:
            raise ApiError(
                400,
                f"Image {index} cannot be read: {why_unreadable(error)}; send a whole JPEG, PNG or WebP.",
                "messages",
            ) from error
        images.append(image)
        if num_pixels > limits.max_pixels:
            raise ApiError(
                400,
                f"The images up to image {index} have {num_pixels / MEGAPIXEL:,.1f} megapixels together, at most "
                f"{limits.max_pixels / MEGAPIXEL:,.1f} are allowed; send smaller or fewer images.",
                "messages",
            )
    return images


def _read(url: str, name: str, limits: ImageLimits) -> bytes:
    if url.startswith("data:"):
        return _read_data_url(url, name)
    if is_url(url):
        if not limits.may_fetch:
            raise ApiError(
                400, f"{name} is `{url:.80}`, but this server fetches no addresses; send a data URL.", "messages"
            )
        try:
            return fetch_public(url, limits.max_bytes, FETCH_SECONDS)
        except ValueError as error:
            raise ApiError(400, f"{name} (`{url:.80}`) cannot be fetched: {error}.", "messages") from error
    return _read_file(url, name, limits)


def _read_data_url(url: str, name: str) -> bytes:
    head, comma, data = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it must begin with `data:image/...;base64,`")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ApiError(400, f"{name} is no data URL: {error}; send the file as base64.", "messages") from error


def _read_file(url: str, name: str, limits: ImageLimits) -> bytes:
    if limits.root is None:
        raise ApiError(400, f"{name} is `{url:.80}`, but this server reads no files; send a data URL.", "messages")
    root = limits.root.resolve()
    try:
        path = (root / local_path(url)).resolve()
        is_inside = path.is_relative_to(root) and path.is_file()
        size = path.stat().st_size if is_inside else 0
        if is_inside and size <= limits.max_bytes:
            return path.read_bytes()
    except (OSError, ValueError):  # such as a name that is too long
        is_inside = False
    if is_inside:
        raise ApiError(400, f"{name} has {size:,} bytes, at most {limits.max_bytes:,} are allowed.", "messages")
    # The same words for files elsewhere and for none, so that nobody can find out what exists.
    raise ApiError(400, f"{name}: there is no file `{url:.80}` below this server's folder of images.", "messages")
