"""Frames spread evenly over a video, decoded with PyAV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image

__all__ = ["read_frames", "spread_evenly"]


def spread_evenly(num_images: int, num_frames: int) -> list[int]:
    """Indices of `num_frames` of `num_images`, from the first to the last, cut to integers; all where there are fewer.

    As VSI-Bench's own code draws them."""
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if num_images <= num_frames:
        return list(range(num_images))
    return np.linspace(0, num_images - 1, num_frames).astype(int).tolist()


def read_frames(source: str | os.PathLike, num_frames: int) -> list[PIL.Image.Image]:
    """Decode frames spread evenly over a video, upright.

    Args:
        source (`str` or `os.PathLike`): A video file, or the URL of one.
        num_frames (`int`): How many; all of them if the video has fewer.

    Returns:
        `list[PIL.Image.Image]`: In the order of time.

    Raises:
        ValueError: If it cannot be read; says which and why.
        ImportError: If PyAV is not installed.
    """
    with _open_video(source) as container:
        # The number in a header is often missing or wrong. A packet holds a frame, and is not decoded for counting.
        packets = [(packet.size, packet.is_corrupt) for packet in container.demux(video=0)]
        declared = container.streams.video[0].frames
    total = sum(size > 0 for size, _ in packets)
    # With its index in front, a video of which the end is missing would pass for a shorter one.
    if total < declared and any(is_cut for _, is_cut in packets):
        raise ValueError(
            f"The video `{os.fspath(source)}` cannot be read: it ends within frame {total} of {declared}, as after an "
            "incomplete download."
        )
    frames, num_shown = _decode(source, spread_evenly(total, num_frames))
    if num_shown != total:
        # Not every packet is a frame to show: VP8 keeps hidden references, MP4 cuts a beginning away.
        frames, _ = _decode(source, spread_evenly(num_shown, num_frames))
    if not frames:
        raise ValueError(f"The video `{os.fspath(source)}` cannot be read: no frame can be decoded.")
    return frames


def _decode(source: str | os.PathLike, indices: list[int]) -> tuple[list[PIL.Image.Image], int]:
    """The frames of these indices, and how many there are in all."""
    wanted, frames, num_shown = set(indices), [], 0
    with _open_video(source) as container:
        container.streams.video[0].thread_type = "AUTO"
        for num_shown, frame in enumerate(container.decode(video=0), start=1):
            if num_shown - 1 in wanted:
                # The display matrix of a phone's video says how to turn it, counterclockwise.
                frames.append(frame.to_image().rotate(frame.rotation, expand=True))
    return frames, num_shown


@contextmanager
def _open_video(source: str | os.PathLike) -> Iterator:
    try:
        # In a `try`, so that a checkpoint that carries this file does not ask for PyAV before there is a video.
        import av
    except ModuleNotFoundError as error:
        raise ImportError("Reading videos needs PyAV: `pip install av`; or give the frames as images.") from error
    name = os.fspath(source)
    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise ValueError(f"The video `{name}` cannot be read: it has no video stream.")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"The video `{name}` cannot be read: {error.strerror or error}.") from error
