"""Small videos whose frames show their own number."""

from pathlib import Path

import av
import numpy as np

# Brightness between frames: more than a codec changes it.
STEP = 12
# A quarter turn clockwise, as phones write it into the header of an upright video.
TURNED = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]


def write_video(
    path: Path, num_frames: int = 20, codec="libx264", size=(64, 48), matrix=None, layout=None, **options
) -> Path:
    """Encode frames of one gray each, `STEP` brighter than the one before; the left half of each is black.

    `layout` are options of the container, and `options` those of the codec.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=layout) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.set_display_matrix(matrix)
        for index in range(num_frames):
            pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
            pixels[:, size[0] // 2 :] = STEP * (index + 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers_of(frames) -> list[int]:
    """Numbers of these frames in the video."""
    return [round(np.asarray(frame).max(axis=-1)[8:-8, -16:-8].mean() / STEP) - 1 for frame in frames]
