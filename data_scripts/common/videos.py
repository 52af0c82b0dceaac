"""Read frames of videos with PyAV: some spread evenly over a video, or any by their timestamps.

Container metadata often misstates the number of frames, and frames need not be evenly spaced. Both ways therefore look
at the frames themselves before they choose among them.
"""

import bisect
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image

from .downloads import download, is_url, local_path
from .images import UnreadableFrame, require_file, why_unreadable

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".ts", ".mts", ".m2ts"}
MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS = 4 << 30, 1800
# Containers that say how long they are, by FFmpeg's names; for others FFmpeg guesses.
TIMED_CONTAINERS = {"mov", "matroska", "avi"}
# By how much a whole video may be shorter than its container says, besides two frames: a share of its length.
MISSING_SHARE = 0.01
# Sizes of the packets of an MPEG transport stream, and where in them is the byte `SYNC`.
TRANSPORT_PACKETS, SYNC, NUM_CHECKED_PACKETS = ((188, 0), (192, 4), (204, 0)), b"G", 4
# FFmpeg's bits for streams of one picture: attached pictures, timed thumbnails and still images.
STILL_DISPOSITIONS = 0x400 | 0x800 | 0x100000


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


def read_frames(
    source: str | os.PathLike, num_frames: int | None = None, fps: float | None = None
) -> list[PIL.Image.Image]:
    """Decode frames spread evenly over a whole video.

    Args:
        source (`str` or `os.PathLike`): A video file, or its `file://`, `http://` or `https://` address.
        num_frames (`int`, *optional*): How many frames to read; all of them if the video has fewer.
        fps (`float`, *optional*): Instead, how many frames to read for each second of the video; at least one.

    Returns:
        `list[PIL.Image.Image]`: Frames in display order, turned upright.

    Raises:
        ValueError: If a number is not positive.
        UnreadableFrame: If the video cannot be read to its end, or is incomplete.
        ImportError: If PyAV is not installed.
    """
    with _local_copy(source) as path:
        # Each packet holds a frame, and can be counted without decoding it.
        total = _count_packets(source, path)
        if fps is not None:
            if not fps > 0:
                raise ValueError(f"`fps` must be more than 0, got {fps}.")
            num_frames = max(round(total / frame_rate(path) * fps), 1)
        frames, num_shown = _decode_frames(source, path, spread_evenly(total, num_frames))
        if num_shown != total:
            # Some packets are not shown: VP8 has hidden reference frames, and MP4 can skip the beginning.
            frames, _ = _decode_frames(source, path, spread_evenly(num_shown, num_frames))
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
        UnreadableFrame: If the video cannot be read to its end, is incomplete, or has no timestamps that tell its
            frames apart.
        ImportError: If PyAV is not installed.
    """
    timestamps, key_frames = [], []
    _count_packets(path, path)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
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


def describe_video(path: str | os.PathLike) -> tuple[float, tuple[int, int]]:
    """How many seconds a video lasts, as its container says, and width and height of its frames; decodes nothing.

    Raises:
        UnreadableFrame: If the video cannot be read.
        ImportError: If PyAV is not installed.
    """
    with _open_video(path) as (container, stream):
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        return seconds, (stream.width, stream.height)


def import_av():
    """The module `av`; raises an `ImportError` that says how to install it."""
    try:
        # In a `try`, so that a checkpoint that carries this file loads without PyAV.
        import av
    except ModuleNotFoundError as error:
        raise ImportError(
            "Reading videos needs PyAV: `pip install av`, or the extra `video` of spa3r; or give the frames as images."
        ) from error
    return av


@contextmanager
def _local_copy(source: str | os.PathLike) -> Iterator[str]:
    """The path of a video, which is downloaded if it is given as an address on the web."""
    if not is_url(os.fspath(source)):
        yield local_path(source)
        return
    import_av()
    with tempfile.NamedTemporaryFile(prefix="spa3r-") as file:
        try:
            download(os.fspath(source), file, MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS)
            file.flush()
        except OSError as error:
            raise _unreadable(source, f"{why_unreadable(error)}; check the address") from error
        yield file.name


@contextmanager
def _open_video(path: str | os.PathLike, source: str | os.PathLike | None = None) -> Iterator[tuple[Any, Any]]:
    """The container of a video and its moving stream; errors name `source`, by default the path."""
    av = import_av()
    source = path if source is None else source
    try:
        require_file(path)
        # With a protocol, because FFmpeg takes what comes before a colon for one; titles may be in any encoding.
        with av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace") as container:
            if not container.streams.video:
                raise _unreadable(source, "it has no video stream")
            yield container, _moving_stream(container)
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(source, why_unreadable(error)) from error


def _moving_stream(container):
    """FFmpeg's choice of a video stream, among those that are no cover or thumbnail."""
    moving = [stream for stream in container.streams.video if not int(stream.disposition) & STILL_DISPOSITIONS]
    moving = [stream for stream in moving if stream.frames != 1] or moving or list(container.streams.video)
    best = container.streams.best("video")
    return best if best in moving else moving[0]


def _count_packets(source: str | os.PathLike, path: str | os.PathLike) -> int:
    """Count the packets of a video, and refuse one that was cut short, as by an incomplete download.

    A truncated file whose index comes first would otherwise pass for a shorter video.
    """
    num_packets, times, end, was_corrupt = 0, [], 0.0, {}
    with _open_video(path, source) as (container, stream):
        streams = [stream, *container.streams.audio]
        if container.format.name == "mpegts" and _ends_within_packet(path):
            raise _unreadable(source, "it ends within a packet of its stream, as after an incomplete download")
        for packet in container.demux(streams):
            if not packet.size:
                continue
            was_corrupt[packet.stream.index] = packet.is_corrupt
            num_packets += packet.stream.index == stream.index
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                end = max(end, time + float((packet.duration or 0) * packet.time_base))
                times += [time] if packet.stream.index == stream.index else []
        if any(was_corrupt.values()):
            of_all = f" of {stream.frames}" if stream.frames else ""
            raise _unreadable(source, f"it ends within frame {num_packets}{of_all}, as after an incomplete download")
        length, frame_time = _named_length(container, streams), 1 / float(stream.average_rate or 1)
    # The last frame may last longer than its packet says.
    pause = max([frame_time, *np.diff(sorted(times))])
    if length is not None and length - end > 2 * pause + MISSING_SHARE * length:
        raise _unreadable(source, f"it ends after {end:.1f} of {length:.1f} s, as after an incomplete download")
    return num_packets


def _ends_within_packet(path: str | os.PathLike) -> bool:
    """Whether an MPEG transport stream ends in the middle of a packet; nothing else tells its end from a cut."""
    with open(path, "rb") as file:
        start = file.read(NUM_CHECKED_PACKETS * TRANSPORT_PACKETS[-1][0])
    for size, offset in TRANSPORT_PACKETS:
        if start[offset::size][:NUM_CHECKED_PACKETS] == NUM_CHECKED_PACKETS * SYNC:
            return os.path.getsize(path) % size != 0
    return False


def _named_length(container, streams) -> float | None:
    """Seconds to the end of these streams, as the container says."""
    if container.duration is None or TIMED_CONTAINERS.isdisjoint(container.format.name.split(",")):
        return None
    start = (container.start_time or 0) / 1e6
    named = []
    for stream in streams:
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if tag:  # in MKV and WebM
            named.append(int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]))
        elif stream.duration is not None:
            named.append(float(stream.duration * stream.time_base) + start)
    if len(named) == len(streams):
        return max(named)
    # Other streams, such as subtitles, may last longer.
    return container.duration / 1e6 + start if len(container.streams) == len(streams) else None


def _unreadable(source: str | os.PathLike, reason: str) -> UnreadableFrame:
    return UnreadableFrame(f"The video `{os.fspath(source)}` cannot be read: {reason}.")


def _decode_frames(source: str | os.PathLike, path: str, indices: list[int]) -> tuple[list[PIL.Image.Image], int]:
    """The frames at these positions, and how many frames there are in all."""
    wanted, frames, num_shown = set(indices), [], 0
    with _open_video(path, source) as (container, stream):
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
