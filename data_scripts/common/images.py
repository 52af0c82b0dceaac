"""Read image files: decoded, upright RGB on white, with one error for those that are missing, broken or unusable."""

import errno
import os
import stat
import struct
from typing import BinaryIO

import PIL.ExifTags
import PIL.Image

try:
    # In a `try`, so that a checkpoint that carries this file loads without it.
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

HEIC_SUFFIXES = {".heic", ".heif"}
HEIC_HINT = "HEIC, the format of iPhones, needs `pip install pillow-heif`"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"} | (
    HEIC_SUFFIXES if pillow_heif else set()
)
# Pillow's decoders report broken files by any of these.
BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, TypeError, KeyError, IndexError),
    PIL.Image.DecompressionBombError,
)
# How to turn a photo by its EXIF orientation.
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# Where Pillow finds the orientation.
METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
WHITE = (255, 255, 255, 255)


class UnreadableFrame(ValueError):
    """An image or a frame of a video that cannot be used; the message names it and says why."""


def require_file(path: str | os.PathLike) -> None:
    """Raise `OSError` unless a path leads to a regular file: reading a pipe or a device could last for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError("it is no regular file")


def open_image(source: str | os.PathLike | BinaryIO, name: str | None = None) -> PIL.Image.Image:
    """Decode an image, in its own mode and as it is stored: see `turn_upright`.

    Args:
        source (`str`, `os.PathLike` or `BinaryIO`): The file.
        name (`str`, *optional*): What to call it in errors; defaults to its path.

    Raises:
        UnreadableFrame: If the file is missing, broken or no image.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            require_file(source)
        with PIL.Image.open(source) as image:
            image.load()
            return image
    except BROKEN as error:
        name = source if name is None else name
        is_heic = os.path.splitext(str(name))[1].lower() in HEIC_SUFFIXES
        if pillow_heif is None and is_heic and isinstance(error, PIL.UnidentifiedImageError):
            raise UnreadableFrame(f"The image `{name}` cannot be read: {HEIC_HINT}.") from error
        raise UnreadableFrame(f"The image `{name}` cannot be read: {why_unreadable(error)}.") from error


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a photo as the EXIF orientation that its camera wrote says; one with damaged EXIF data stays as it is."""
    try:
        turn = TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation))
    except Exception:  # damaged data raise errors of almost any kind in Pillow
        turn = None
    if turn is None:
        return image
    upright = _name_as(image.transpose(turn), image)
    for name in METADATA:
        upright.info.pop(name, None)
    return upright


def to_rgb(image: PIL.Image.Image, name: str = "The image") -> PIL.Image.Image:
    """Convert an image of any mode to RGB, with white where it is transparent; it keeps the name of its file.

    Raises:
        UnreadableFrame: If the image has more than 8 bits per channel, as depth maps do, or no pixels.
    """
    if 0 in image.size:
        raise UnreadableFrame(f"{name} is {image.width} x {image.height} pixels; leave out images without pixels.")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UnreadableFrame(
            f"{name} has mode `{image.mode}`, more than 8 bits per channel; convert it to `L` or `RGB`."
        )
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        white = PIL.Image.new("RGBA", image.size, WHITE)
        return _name_as(PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), image)
    return image if image.mode == "RGB" else _name_as(image.convert("RGB"), image)


def file_name(image: PIL.Image.Image) -> str:
    """The path of the file that an image was read from; empty if it was not read from a file."""
    return str(getattr(image, "filename", "") or "")


def _name_as(image: PIL.Image.Image, original: PIL.Image.Image) -> PIL.Image.Image:
    """Keep the name of the file, as Pillow's own images have it, for messages about the image."""
    image.filename = file_name(original)
    return image


def why_unreadable(error: Exception) -> str:
    """The reason that an error of Pillow, PyAV or the operating system gives, without error numbers and paths."""
    if isinstance(error, PIL.UnidentifiedImageError):  # its own words name the file, or the address of a buffer
        return "Pillow does not know its format"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
