"""Read ScanNet's raw recordings: `.sens` files of version 4, which hold frames of color, depth and camera poses.

All numbers are little-endian. A file begins with a header; each frame follows with a header of its own, its color as
JPEG and its depth as 16-bit numbers under zlib.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..common.images import UnreadableFrame, open_image

VERSION = 4
# Of color: JPEG; of depth: 16-bit numbers under zlib. ScanNet uses no others.
JPEG, ZLIB_USHORT = 2, 1
MILLIMETERS = 1000.0
# Two codecs, width and height of color and depth, units of depth in a meter, number of frames.
SIZES = struct.Struct("<iiIIIIfQ")
# Pose, time of color and of depth, and bytes of color and of depth.
FRAME = struct.Struct("<16fQQQQ")
# Where a download of ScanNet has its recordings.
PATTERNS = ("*.sens", "*/*.sens", "*/*/*.sens")
CAMERAS = ("intrinsic_color", "extrinsic_color", "intrinsic_depth", "extrinsic_depth")


@dataclass
class Recording:
    """What the header of a `.sens` file says.

    Args:
        path (`Path`): The file.
        cameras (`dict[str, np.ndarray]`): The 4 x 4 matrices of `CAMERAS`; intrinsics are in pixels.
        color_size, depth_size (`tuple[int, int]`): Width and height of the images.
        num_frames (`int`): Frames in the file.
        start (`int`): Where the first frame begins, in bytes.
    """

    path: Path
    cameras: dict[str, np.ndarray]
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    num_frames: int
    start: int


@dataclass
class RecordedFrame:
    """A frame of a recording.

    Args:
        index (`int`): Its place in the recording, from 0.
        pose (`np.ndarray` of shape `(4, 4)`): Camera-to-world in meters; infinite where tracking was lost.
        color (`bytes`): A JPEG file.
        depth (`np.ndarray` of shape `(height, width)`): 16-bit millimeters, 0 where unknown.
    """

    index: int
    pose: np.ndarray
    color: bytes
    depth: np.ndarray


def list_recordings(root: str | os.PathLike) -> Iterator[Path]:
    """The recordings in a folder and up to two folders below, in no order."""
    for pattern in PATTERNS:
        yield from (file for file in Path(root).glob(pattern) if not file.name.startswith("."))


def read_recording(path: str | os.PathLike) -> Recording:
    """Read the header of a `.sens` file.

    Raises:
        UnreadableFrame: If the file ends early, or is no recording as ScanNet's.
    """
    path = Path(path)
    with _opened(path) as file:
        (version,) = struct.unpack("<I", _read(file, 4, path))
        if version != VERSION:
            raise UnreadableFrame(f"`{path}` is no .sens file of version {VERSION}: it begins with {version}.")
        (name_length,) = struct.unpack("<Q", _read(file, 8, path))
        _read(file, name_length, path)
        cameras = {name: np.frombuffer(_read(file, 64, path), "<f4").reshape(4, 4) for name in CAMERAS}
        *codecs, width, height, depth_width, depth_height, units, num_frames = SIZES.unpack(
            _read(file, SIZES.size, path)
        )
        start = file.tell()
    if codecs != [JPEG, ZLIB_USHORT] or units != MILLIMETERS:
        raise UnreadableFrame(
            f"`{path}` has color of codec {codecs[0]}, and depth of codec {codecs[1]} with {units:g} units a meter; "
            f"ScanNet's recordings have JPEG ({JPEG}), zlib ({ZLIB_USHORT}) and {MILLIMETERS:g}."
        )
    return Recording(path, cameras, (width, height), (depth_width, depth_height), num_frames, start)


def read_frames(recording: Recording, every: int = 1) -> Iterator[RecordedFrame]:
    """Read every n-th frame of a recording, from the first one; the others are skipped unread.

    Raises:
        UnreadableFrame: If the file ends early, or a frame is damaged; names the file and the frame.
    """
    path, total = recording.path, recording.num_frames
    with _opened(path) as file:
        file.seek(recording.start)
        for index in range(total):
            place = f"frame {index} of {total}"
            *numbers, _, _, color_length, depth_length = FRAME.unpack(_read(file, FRAME.size, path, place))
            if index % every:
                _require(file, color_length + depth_length, path, place)
                file.seek(color_length + depth_length, os.SEEK_CUR)
                continue
            color = _read(file, color_length, path, place)
            depth = _read(file, depth_length, path, place)
            _check_color(color, recording, place)
            yield RecordedFrame(index, np.array(numbers).reshape(4, 4), color, _decompress(depth, recording, place))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UnreadableFrame(f"`{path}` cannot be read: {error.strerror or error}.") from error


def _require(file: BinaryIO, length: int, path: Path, place: str):
    """Refuse a file with fewer bytes left; a damaged length may be any number."""
    if length > os.fstat(file.fileno()).st_size - file.tell():
        raise UnreadableFrame(f"`{path}` ends within {place}, as after an incomplete download: download it again.")


def _read(file: BinaryIO, length: int, path: Path, place: str = "its header") -> bytes:
    _require(file, length, path, place)
    return file.read(length)


def _check_color(color: bytes, recording: Recording, place: str):
    """Refuse a picture that cannot be decoded, or has another size than the header says."""
    size = open_image(io.BytesIO(color), f"{recording.path} ({place})").size
    if size != recording.color_size:
        raise UnreadableFrame(
            f"The picture of {place} in `{recording.path}` is {size[0]} x {size[1]}, but its header says "
            f"{recording.color_size[0]} x {recording.color_size[1]}: download it again."
        )


def _decompress(depth: bytes, recording: Recording, place: str) -> np.ndarray:
    width, height = recording.depth_size
    try:
        return np.frombuffer(zlib.decompress(depth), "<u2").reshape(height, width)
    except (zlib.error, ValueError) as error:
        raise UnreadableFrame(
            f"The depth of {place} in `{recording.path}` is damaged ({error}): download it again."
        ) from error
