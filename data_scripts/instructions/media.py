"""Check the images and videos that records name, and extract frames from videos.

Nothing is read from outside the media folder, and nothing is written into it. Frames and marked images are

    <output>/frames/<path of the video>/<index>.jpg
    <output>/marked/<path of the image>/<fingerprint of the markers>.jpg

Each is made once and moved into place when it is complete, so several processes may ask for the same one.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..common.files import natural_key, replace_when_complete
from ..common.image_shapes import require_similar_shapes
from ..common.images import IMAGE_SUFFIXES, UnreadableFrame, open_image, to_rgb, turn_upright
from ..common.records import BadRecord
from ..common.videos import VIDEO_SUFFIXES, frame_rate, index_video, read_frames_at, spread_evenly
from .spar_markers import draw_markers, place_markers

JPEG_QUALITY = 95
MIN_VIDEO_FRAMES, MAX_VIDEO_FRAMES = 4, 8
SECONDS_PER_FRAME = 2
FRAME_FOLDER_FPS = 1
# Resized for the model, a more elongated image is less than one patch high.
MAX_ASPECT_RATIO = 20
# Many questions share a scene's images, so the results of checks are cached, in 30 MB at most.
CACHE_SIZE = 1 << 16

_scratch_numbers = itertools.count()


@dataclass(frozen=True)
class MediaFolders:
    """Folders that media are read from and written to.

    Args:
        root (`str`): Absolute path of the media folder.
        output (`str`): Absolute path of the instruction set.
        scratch (`str`): Folder for incomplete files, on the same file system as `output`.
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
    """Choose frames of a video as the official training code does: evenly from the first to the last.

    Args:
        num_frames (`int`): Frames of the video.
        frames_per_second (`float`): Frame rate; 1 for a folder of frames.
        min_frames (`int`, *optional*, defaults to 4): Frames to take from a short video, if it has that many.
        max_frames (`int`, *optional*, defaults to 8): Frames to take from a long video.
        seconds_per_frame (`float`, *optional*, defaults to 2): Interval between frames, within these limits.

    Returns:
        `list[int]`: Indices in ascending order.
    """
    wanted = round(num_frames / frames_per_second / seconds_per_frame)
    return spread_evenly(num_frames, min(max(wanted, min_frames), max_frames))


def require_images(folders: MediaFolders, paths: Sequence[str]) -> list[str]:
    """Return the absolute paths of images; raise `BadRecord` unless they can be decoded and used together."""
    return [os.path.join(folders.root, location) for location, _ in _check_images(folders.root, paths)]


def video_frames(folders: MediaFolders, path: str) -> list[str]:
    """Return the frames of a video file, extracted once, or of a folder of frames.

    Args:
        folders (`MediaFolders`): Folders to read from and write to.
        path (`str`): The video or folder, relative to the media folder.

    Returns:
        `list[str]`: Absolute paths of the frames that `video_indices` chooses.

    Raises:
        BadRecord: If the video does not exist, lies outside the media folder, or cannot be decoded.
    """
    location = _locate(folders.root, path)
    folder = os.path.join(folders.root, location)
    if os.path.isdir(folder):
        return require_images(folders, [os.path.join(location, name) for name in _list_frames(folder)])
    return list(_frames_of_file(folders, location))


def mark_images(folders: MediaFolders, paths: Sequence[str], spar_info: Mapping[str, Any]) -> list[str]:
    """Check images, and draw the markers of a SPAR question on copies.

    Args:
        folders (`MediaFolders`): Folders to read from and write to.
        paths (`Sequence[str]`): Images of the question, relative to the media folder.
        spar_info (`Mapping`): See `place_markers`.

    Returns:
        `list[str]`: Absolute paths: copies of the images that have markers, the originals of the others.
    """
    checked = _check_images(folders.root, paths)
    markers = place_markers(spar_info, [size for _, size in checked])
    result = []
    for index, (location, _) in enumerate(checked):
        on_image = [marker for marker in markers if marker.image == index]
        source = os.path.join(folders.root, location)
        result.append(_marked_copy(folders, source, location, on_image) if on_image else source)
    return result


def clear_caches() -> None:
    """Forget all checks: files may have changed since an earlier conversion in this process."""
    for cached in (_locate, _check_size, _list_frames, _frames_of_file):
        cached.cache_clear()


def _cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache what a function returns, or the `BadRecord` that it raises."""

    @functools.lru_cache(CACHE_SIZE)
    def outcome(*arguments: Any) -> tuple[Any, tuple[str, str] | None]:
        try:
            return function(*arguments), None
        except BadRecord as error:
            return None, (error.reason, error.detail)

    @functools.wraps(function)
    def cached(*arguments: Any) -> Any:
        result, problem = outcome(*arguments)
        if problem:
            raise BadRecord(*problem)
        return result

    cached.cache_clear = outcome.cache_clear
    return cached


@_cached
def _locate(root: str, path: str) -> str:
    """Return the real path of an existing file or folder, relative to the real media folder."""
    if "\0" in path:
        raise BadRecord("malformed record", f"a path has no null character, got {path!r}")
    if os.path.isabs(path):
        raise BadRecord("outside the media root", f"{path} is absolute; paths are relative to the media root")
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([real_root, real]) != real_root:
        raise BadRecord("outside the media root", f"{path} leads to {real}")
    if not os.path.isfile(real) and not os.path.isdir(real):
        raise BadRecord("missing media", f"{path}: no such file or folder")
    if real == real_root:
        raise BadRecord("malformed record", f"the path {path!r} is the media folder itself")
    return os.path.relpath(real, real_root)


def _check_images(root: str, paths: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """Check the images of a record one by one, and whether one is a panorama among others."""
    checked = [_check_image(root, path) for path in paths]
    try:
        require_similar_shapes({path: size[::-1] for path, (_, size) in zip(paths, checked, strict=True)})
    except ValueError as error:
        raise BadRecord("unusable image", str(error)) from error
    return checked


def _check_image(root: str, path: str) -> tuple[str, tuple[int, int]]:
    """Return the location of an image, and its width and height when upright; raise `BadRecord` if it is unusable."""
    location = _locate(root, path)
    if os.path.splitext(location)[1].lower() not in IMAGE_SUFFIXES:
        raise BadRecord("unknown extension", f"{path} is no image; known are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return location, _check_size(os.path.join(root, location))


@_cached
def _check_size(path: str) -> tuple[int, int]:
    """Return the upright size of an image. It is decoded for this: the header of a truncated file looks complete."""
    try:
        image = turn_upright(open_image(path))
    except UnreadableFrame as error:
        raise BadRecord("unreadable image", str(error)) from error
    try:
        to_rgb(image, path)
    except UnreadableFrame as error:
        raise BadRecord("unusable image", str(error)) from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadRecord("unusable image", f"{path}: {image.width} x {image.height} pixels, too elongated")
    return image.size


@_cached
def _list_frames(folder: str) -> tuple[str, ...]:
    """Return the names of the frames that `video_indices` chooses of a folder."""
    try:
        entries = os.listdir(folder)
    except OSError as error:
        raise BadRecord("unreadable video", f"{folder}: {error}") from error
    images = [name for name in entries if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name[0] != "."]
    if not images:
        raise BadRecord("unreadable video", f"{folder}: a folder without images")
    images.sort(key=natural_key)
    return tuple(images[index] for index in video_indices(len(images), FRAME_FOLDER_FPS))


@_cached
def _frames_of_file(folders: MediaFolders, location: str) -> tuple[str, ...]:
    if os.path.splitext(location)[1].lower() not in VIDEO_SUFFIXES:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise BadRecord("unknown extension", f"{location} is no video; known are {known} and folders of frames")
    folder = os.path.join(folders.output, "frames", location)
    if not os.path.isdir(folder):
        try:
            _extract_frames(os.path.join(folders.root, location), folder, folders.scratch)
        except UnreadableFrame as error:
            raise BadRecord("unreadable video", str(error)) from error
    return tuple(os.path.join(folder, name) for name in sorted(os.listdir(folder), key=natural_key))


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
        # Another process may have made the folder first.
        if not os.path.isdir(folder):
            raise


def _marked_copy(folders: MediaFolders, source: str, location: str, markers: Sequence) -> str:
    description = repr([(marker.shape, marker.box, marker.color) for marker in markers])
    fingerprint = hashlib.sha256(description.encode()).hexdigest()[:16]
    path = os.path.join(folders.output, "marked", location, f"{fingerprint}.jpg")
    if not os.path.exists(path):
        upright = to_rgb(turn_upright(open_image(source)), source)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replace_when_complete(path, _scratch_path(folders.scratch)) as temporary:
            draw_markers(upright, markers).save(temporary, "JPEG", quality=JPEG_QUALITY)
    return path


def _scratch_path(scratch: str) -> str:
    return os.path.join(scratch, f"{os.getpid()}-{next(_scratch_numbers)}")
