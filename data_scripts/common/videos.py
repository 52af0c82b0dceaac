"""Frames of video files by position, decoded with PyAV.

A video is indexed once, by decoding it: container metadata often misstates the number of frames, and frames need not
be evenly spaced. Afterwards a frame is found by its timestamp, from the key frame before it.
"""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import numpy as np

from ..scenes.view_transforms import UnreadableFrame


def index_video(path: str | os.PathLike) -> tuple[list[int], list[int]]:
    """Decode a video and note its frames.

    Args:
        path (`str` or `os.PathLike`): The video.

    Returns:
        `tuple[list[int], list[int]]`: Timestamps of all frames in display order, in the stream's time base, and those
        of the key frames.

    Raises:
        UnreadableFrame: If no frame can be decoded, or the timestamps do not tell frames apart.
    """
    timestamps, key_frames = [], []
    with _open_stream(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in _decode(container, stream):
            timestamps.append(frame.pts)
            if frame.key_frame:
                key_frames.append(frame.pts)
    if not key_frames:
        raise UnreadableFrame(f"{path}: no frame can be decoded")
    if any(b <= a for a, b in zip(timestamps, timestamps[1:], strict=False)):
        raise UnreadableFrame(f"{path}: frames have no ascending timestamps; re-encode the video, for example to MP4")
    return timestamps, key_frames


def read_video_frames(
    path: str | os.PathLike, timestamps: Sequence[int], key_frames: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode single frames, going through no more of the video than from the key frame before each.

    Args:
        path (`str` or `os.PathLike`): The video.
        timestamps (`Sequence[int]`): Timestamps of the wanted frames, as given by `index_video`.
        key_frames (`Sequence[int]`): Timestamps of the video's key frames.

    Yields:
        `tuple[int, np.ndarray]`: Timestamp, ascending, and RGB bytes of shape `(height, width, 3)`, turned upright. A
        frame that can no longer be decoded is left out.
    """
    with _open_stream(path) as (container, stream):
        frame = None
        for wanted in sorted(set(timestamps)):
            key_frame = key_frames[max(bisect.bisect_right(key_frames, wanted) - 1, 0)]
            if frame is None or key_frame > frame.pts:
                container.seek(key_frame, stream=stream)
                frames = _decode(container, stream)
                frame = next(frames, None)
                if frame is None or frame.pts > wanted:
                    # Some containers find key frames by decoding time, and so the next one instead.
                    container.seek(0)
                    frames = _decode(container, stream)
                    frame = next(frames, None)
            while frame is not None and frame.pts < wanted:
                frame = next(frames, None)
            if frame is not None and frame.pts == wanted:
                # The display matrix of a phone's video says how to turn it, counterclockwise.
                yield wanted, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).copy()


@contextmanager
def _open_stream(path: str | os.PathLike):
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise UnreadableFrame(f"{path}: has no video stream")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise UnreadableFrame(f"{path}: {error}") from error


def _decode(container, stream) -> Iterator:
    """Frames from the current place on; those that cannot be decoded or have no timestamp are passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        try:
            yield from (frame for frame in packet.decode() if frame.pts is not None)
        except av.FFmpegError:
            continue
