"""Read image files: decoded, turned upright, with one error for files that are missing or broken."""

import errno
import os
import stat
from typing import BinaryIO

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
# Pillow's decoders report broken files by any of these.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError)


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
        raise UnreadableFrame(f"The image `{name}` cannot be read: {why_unreadable(error)}.") from error


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a photo as the EXIF orientation that its camera wrote says."""
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    return image if orientation == 1 else PIL.ImageOps.exif_transpose(image)


def why_unreadable(error: Exception) -> str:
    """The reason that an error of Pillow, PyAV or the operating system gives, without error numbers and paths."""
    if isinstance(error, PIL.UnidentifiedImageError):  # its own words name the file, or the address of a buffer
        return "Pillow does not know its format"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
