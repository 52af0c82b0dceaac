"""Images and videos that the records of an instruction set name: checked, and videos turned into frames.

Nothing is read from outside the media folder, and nothing is written into it. Frames and marked images go to

    <output>/frames/<path of the video>/<index>.jpg
    <output>/marked/<path of the image>/<fingerprint of the markers>.jpg

each made once and moved into place when complete, so that several processes may ask for the same one.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..common.files import natural_key, replace_when_complete
from ..common.images import IMAGE_SUFFIXES, UnreadableFrame, open_image, turn_upright
from ..common.records import BadRecord
from ..common.videos import VIDEO_SUFFIXES, frame_rate, index_video, read_frames_at, spread_evenly
from .spar_markers import draw_markers, place_markers

JPEG_QUALITY = 95
MIN_VIDEO_FRAMES, MAX_VIDEO_FRAMES = 4, 8
SECONDS_PER_FRAME = 2
FRAME_FOLDER_FPS = 1
# Images beyond it have less than one patch of height when resized for the model.
MAX_ASPECT_RATIO = 20
# Files whose check is remembered: many questions share a scene's images. Some 30 MB at most.
MAX_REMEMBERED = 1 << 16

_numbers = itertools.count()


@dataclass(frozen=True)
class MediaFolders:
    """Where media are read from, and where what is made of them goes.

    Args:
        root (`str`): Absolute path of the media folder.
        output (`str`): Absolute path of the instruction set.
        scratch (`str`): Folder for what is not complete yet, on the same file system as `output`.
    """

    root: str
    output: str
    scratch: str


def video_indices(
    num_frames: int,
    frames_per_second: float,
    min_frames: int = MIN_VIDEO_FRAMES,
    max_frames: int = MAX_VIDEO_FRAMES,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> list[int]:
    """Which frames of a video the official training takes.

    Args:
        num_frames (`int`): Frames of the video.
        frames_per_second (`float`): Its frame rate; 1 for a folder of frames.
        min_frames (`int`, *optional*, defaults to 4): Frames of a short video, if it has so many.
        max_frames (`int`, *optional*, defaults to 8): Frames of a long video.
        seconds_per_frame (`float`, *optional*, defaults to 2): Between these, one frame for so many seconds.

    Returns:
        `list[int]`: Indices in ascending order, spread evenly over the whole video.
    """
    wanted = round(num_frames / frames_per_second / seconds_per_frame)
    return spread_evenly(num_frames, min(max(wanted, min_frames), max_frames))


def find_image(folders: MediaFolders, path: str) -> str:
    """Absolute path of an image that can be decoded; raises `BadRecord` where it is none."""
    return os.path.join(folders.root, _checked_image(folders.root, path)[0])


def find_video(folders: MediaFolders, path: str) -> list[str]:
    """Frames of a video file, which are extracted unless they are there, or of a folder of frames.

    Args:
        folders (`MediaFolders`): Where to read and write.
        path (`str`): The video, or folder, relative to the media folder.

    Returns:
        `list[str]`: Absolute paths of the frames that `video_indices` chooses.

    Raises:
        BadRecord: If there is no such video, it lies outside the media folder, or it cannot be decoded.
    """
    location = _locate(folders.root, path)
    if os.path.isdir(os.path.join(folders.root, location)):
        return _frames_of_folder(folders, location)
    frames, problem = _frames_of_video(folders, location)
    if problem:
        raise BadRecord(*problem)
    return list(frames)


def mark_images(folders: MediaFolders, paths: Sequence[str], spar_info: Mapping[str, Any]) -> list[str]:
    """Check images, and draw the markers of a SPAR question on copies of those that have any.

    Args:
        folders (`MediaFolders`): Where to read and write.
        paths (`Sequence[str]`): Images of the question, relative to the media folder.
        spar_info (`Mapping`): What `place_markers` takes.

    Returns:
        `list[str]`: Absolute paths of all images, the marked ones by their copies.
    """
    checked = [_checked_image(folders.root, path) for path in paths]
    markers = place_markers(spar_info, [size for _, size in checked])
    result = []
    for index, (location, _) in enumerate(checked):
        drawn = [marker for marker in markers if marker.image == index]
        source = os.path.join(folders.root, location)
        result.append(_marked_copy(folders, source, location, drawn) if drawn else source)
    return result


def forget_media() -> None:
    """Forget what is remembered of files, which may have changed since an earlier conversion in this process."""
    for remembered in (_find, _upright_size, _list_frames, _frames_of_video):
        remembered.cache_clear()


def _locate(root: str, path: str) -> str:
    """Path of a file or folder that exists, relative to the media folder, free of symbolic links and `..`."""
    location, problem = _find(root, path)
    if problem:
        raise BadRecord(*problem)
    return location


@functools.lru_cache(MAX_REMEMBERED)
def _find(root: str, path: str) -> tuple[str, tuple[str, str] | None]:
    if "\0" in path:
        return "", ("malformed record", f"a path has no null character, got {path!r}")
    if os.path.isabs(path):
        return "", ("outside the media root", f"{path} is absolute; paths are relative to the media root")
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([real_root, real]) != real_root:
        return "", ("outside the media root", f"{path} leads to {real}")
    if not os.path.isfile(real) and not os.path.isdir(real):
        return "", ("missing media", f"{path}: no such file or folder")
    if real == real_root:
        return "", ("malformed record", f"the path {path!r} is the media folder itself")
    return os.path.relpath(real, real_root), None


def _checked_image(root: str, path: str) -> tuple[str, tuple[int, int]]:
    """Location of an image that can be decoded, and its upright width and height."""
    location = _locate(root, path)
    if os.path.splitext(location)[1].lower() not in IMAGE_SUFFIXES:
        raise BadRecord("unknown extension", f"{path} is no image; known are {' '.join(sorted(IMAGE_SUFFIXES))}")
    size, problem = _upright_size(os.path.join(root, location))
    if problem:
        raise BadRecord(*problem)
    return location, size


@functools.lru_cache(MAX_REMEMBERED)
def _upright_size(path: str) -> tuple[tuple[int, int], tuple[str, str] | None]:
    """Size of an image, which takes decoding it: a truncated file has a perfect header."""
    try:
        image = turn_upright(open_image(path))
    except UnreadableFrame as error:
        return (0, 0), ("unreadable image", str(error))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return (0, 0), ("unusable image", f"{path}: of mode {image.mode}, as depth maps are, and not of bytes")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        return (0, 0), (
            "unusable image",
            f"{path}: {image.width} x {image.height} pixels, too elongated",
        )
    return image.size, None


def _frames_of_folder(folders: MediaFolders, location: str) -> list[str]:
    names, problem = _list_frames(os.path.join(folders.root, location))
    if problem:
        raise BadRecord("unreadable video", problem)
    return [find_image(folders, os.path.join(location, name)) for name in names]


@functools.lru_cache(MAX_REMEMBERED)
def _list_frames(folder: str) -> tuple[tuple[str, ...], str]:
    try:
        entries = os.listdir(folder)
    except OSError as error:
        return (), f"{folder}: {error}"
    images = [name for name in entries if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name[0] != "."]
    if not images:
        return (), f"{folder}: a folder without images"
    images.sort(key=natural_key)
    return tuple(images[index] for index in video_indices(len(images), FRAME_FOLDER_FPS)), ""


@functools.lru_cache(MAX_REMEMBERED)
def _frames_of_video(folders: MediaFolders, location: str) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    if os.path.splitext(location)[1].lower() not in VIDEO_SUFFIXES:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        return (), ("unknown extension", f"{location} is no video; known are {known} and folders of frames")
    folder = os.path.join(folders.output, "frames", location)
    if not os.path.isdir(folder):
        try:
            _extract_frames(os.path.join(folders.root, location), folder, folders.scratch)
        except UnreadableFrame as error:
            return (), ("unreadable video", str(error))
    return tuple(os.path.join(folder, name) for name in sorted(os.listdir(folder), key=natural_key)), None


def _extract_frames(video: str, folder: str, scratch: str) -> None:
    timestamps, key_frames = index_video(video)
    indices = video_indices(len(timestamps), frame_rate(video))
    wanted = {timestamps[index]: index for index in indices}
    try:
        with replace_when_complete(folder, _scratch_path(scratch)) as temporary:
            temporary.mkdir()
            for timestamp, pixels in read_frames_at(video, list(wanted), key_frames):
                Image.fromarray(pixels).save(temporary / f"{wanted.pop(timestamp)}.jpg", quality=JPEG_QUALITY)
            if wanted:
                raise UnreadableFrame(f"{video}: frames {sorted(wanted.values())} cannot be decoded")
            os.makedirs(os.path.dirname(folder), exist_ok=True)
    except OSError:
        # Another process was faster.
        if not os.path.isdir(folder):
            raise


def _marked_copy(folders: MediaFolders, source: str, location: str, markers: Sequence) -> str:
    description = repr([(marker.shape, marker.box, marker.color) for marker in markers])
    fingerprint = hashlib.sha256(description.encode()).hexdigest()[:16]
    path = os.path.join(folders.output, "marked", location, f"{fingerprint}.jpg")
    if not os.path.exists(path):
        upright = turn_upright(open_image(source))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replace_when_complete(path, _scratch_path(folders.scratch)) as temporary:
            draw_markers(upright, markers).save(temporary, "JPEG", quality=JPEG_QUALITY)
    return path


def _scratch_path(scratch: str) -> str:
    return os.path.join(scratch, f"{os.getpid()}-{next(_numbers)}")
