"""Read frames of videos with PyAV: some spread evenly over a video, or any by their timestamps.

Container metadata often misstates the number of frames, and frames need not be evenly spaced. Both ways therefore look
at the frames themselves before they choose among them.
"""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import PIL.Image

from .images import UnreadableFrame, why_unreadable

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


def spread_evenly(num_images: int, num_frames: int) -> list[int]:
    """Choose `num_frames` of `num_images` from the first to the last, evenly, as VSI-Bench's code does.

    Returns:
        `list[int]`: Indices in ascending order, rounded down; all where there are no more than `num_frames`.
    """
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if num_images <= num_frames:
        return list(range(num_images))
    return np.linspace(0, num_images - 1, num_frames).astype(int).tolist()


def read_frames(source: str | os.PathLike, num_frames: int) -> list[PIL.Image.Image]:
    """Decode frames spread evenly over a whole video.

    Args:
        source (`str` or `os.PathLike`): A video file, or the URL of one.
        num_frames (`int`): How many frames to read; all of them if the video has fewer.

    Returns:
        `list[PIL.Image.Image]`: Frames in display order, turned upright.

    Raises:
        UnreadableFrame: If the video cannot be read to its end, or is incomplete.
        ImportError: If PyAV is not installed.
    """
    with _open_video(source) as (container, stream):
        # Each packet holds a frame, and can be counted without decoding it.
        packets = [(packet.size, packet.is_corrupt) for packet in container.demux(stream)]
        declared = stream.frames
    total = sum(size > 0 for size, _ in packets)
    # A truncated video whose index comes first would otherwise pass for a shorter one.
    if total < declared and any(is_corrupt for _, is_corrupt in packets):
        raise _unreadable(source, f"it ends within frame {total} of {declared}, as after an incomplete download")
    frames, num_shown = _decode_frames(source, spread_evenly(total, num_frames))
    if num_shown != total:
        # Some packets are not shown: VP8 has hidden reference frames, and MP4 can skip the beginning.
        frames, _ = _decode_frames(source, spread_evenly(num_shown, num_frames))
    if not frames:
        raise _unreadable(source, "no frame can be decoded")
    return frames


def index_video(path: str | os.PathLike) -> tuple[list[int], list[int]]:
    """Decode a video once to list its frames.

    Args:
        path (`str` or `os.PathLike`): The video.

    Returns:
        `tuple[list[int], list[int]]`: Timestamps of all frames in display order, in the stream's time base, and those
        of the key frames.

    Raises:
        UnreadableFrame: If no frame can be decoded, or the timestamps do not tell frames apart.
        ImportError: If PyAV is not installed.
    """
    timestamps, key_frames = [], []
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in _decode_rest(container, stream):
            timestamps.append(frame.pts)
            if frame.key_frame:
                key_frames.append(frame.pts)
    if not key_frames:
        raise _unreadable(path, "no frame can be decoded")
    if any(b <= a for a, b in zip(timestamps, timestamps[1:], strict=False)):
        raise _unreadable(path, "its frames have no ascending timestamps; re-encode it, for example to MP4")
    return timestamps, key_frames


def read_frames_at(
    path: str | os.PathLike, timestamps: Sequence[int], key_frames: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode single frames, each from the key frame before it.

    Args:
        path (`str` or `os.PathLike`): The video.
        timestamps (`Sequence[int]`): Timestamps of the wanted frames, from `index_video`.
        key_frames (`Sequence[int]`): Timestamps of the video's key frames, from `index_video`.

    Yields:
        `tuple[int, np.ndarray]`: Timestamp, ascending, and RGB bytes of shape `(height, width, 3)`, turned upright. A
        frame that can no longer be decoded is left out.
    """
    with _open_video(path) as (container, stream):
        frame = None
        for wanted in sorted(set(timestamps)):
            key_frame = key_frames[max(bisect.bisect_right(key_frames, wanted) - 1, 0)]
            if frame is None or key_frame > frame.pts:
                container.seek(key_frame, stream=stream)
                frames = _decode_rest(container, stream)
                frame = next(frames, None)
                if frame is None or frame.pts > wanted:
                    # Some containers seek by decoding time, and so find the next key frame instead.
                    container.seek(0)
                    frames = _decode_rest(container, stream)
                    frame = next(frames, None)
            while frame is not None and frame.pts < wanted:
                frame = next(frames, None)
            if frame is not None and frame.pts == wanted:
                # A phone's video says how far to turn it counterclockwise.
                yield wanted, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).copy()


def frame_rate(path: str | os.PathLike) -> float:
    """Frames of a video per second.

    Raises:
        UnreadableFrame: If the video cannot be read, or does not say.
        ImportError: If PyAV is not installed.
    """
    with _open_video(path) as (_, stream):
        rate = stream.average_rate
    if not rate:
        raise _unreadable(path, "it does not say how many frames a second it has; re-encode it")
    return float(rate)


def import_av():
    """The module `av`; raises an `ImportError` that says how to install it."""
    try:
        # In a `try`, so that a checkpoint that carries this file loads without PyAV.
        import av
    except ModuleNotFoundError as error:
        raise ImportError("Reading videos needs PyAV: `pip install av`; or give the frames as images.") from error
    return av


@contextmanager
def _open_video(source: str | os.PathLike) -> Iterator[tuple]:
    """The container of a video and its first video stream."""
    av = import_av()
    try:
        with av.open(os.fspath(source)) as container:
            if not container.streams.video:
                raise _unreadable(source, "it has no video stream")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(source, why_unreadable(error)) from error


def _unreadable(source: str | os.PathLike, reason: str) -> UnreadableFrame:
    return UnreadableFrame(f"The video `{os.fspath(source)}` cannot be read: {reason}.")


def _decode_frames(source: str | os.PathLike, indices: list[int]) -> tuple[list[PIL.Image.Image], int]:
    """The frames at these positions, and how many frames there are in all."""
    wanted, frames, num_shown = set(indices), [], 0
    with _open_video(source) as (container, stream):
        stream.thread_type = "AUTO"
        for num_shown, frame in enumerate(container.decode(stream), start=1):
            if num_shown - 1 in wanted:
                frames.append(frame.to_image().rotate(frame.rotation, expand=True))
    return frames, num_shown


def _decode_rest(container, stream) -> Iterator:
    """Frames from the current position on, without those that cannot be decoded or have no timestamp."""
    av, packets = import_av(), container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        try:
            yield from (frame for frame in packet.decode() if frame.pts is not None)
        except av.FFmpegError:
            continue
