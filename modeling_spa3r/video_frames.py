"""Frames spread evenly over a video, decoded with PyAV."""

import importlib
import os
from contextlib import closing

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
    try:
        # Not by an import statement: a checkpoint that carries this file must load without PyAV.
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise ImportError("Reading videos needs PyAV: `pip install av`; or give the frames as images.") from error
    name = os.fspath(source)
    try:
        with closing(av.open(name)) as container:
            if not container.streams.video:
                raise ValueError(f"The video `{name}` cannot be read: it has no video stream.")
            container.streams.video[0].thread_type = "AUTO"
            # Counted, as the number in a header is often wrong; a packet holds a frame, and is not decoded for this.
            total = sum(1 for packet in container.demux(video=0) if packet.size)
        wanted = set(spread_evenly(total, num_frames))
        with closing(av.open(name)) as container:
            container.streams.video[0].thread_type = "AUTO"
            decoded = enumerate(container.decode(video=0))
            frames = [_upright(frame) for index, frame in decoded if index in wanted]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"The video `{name}` cannot be read: {error}") from error
    if not frames:
        raise ValueError(f"The video `{name}` cannot be read: no frame can be decoded.")
    return frames


def _upright(frame) -> PIL.Image.Image:
    # The display matrix of a phone's video says how to turn it, counterclockwise.
    return frame.to_image().rotate(frame.rotation, expand=True)
