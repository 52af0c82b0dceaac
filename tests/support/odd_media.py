"""Images and videos as people have them, each with what an independent decoder sees in it.

Each says how to write it, and how to read it without this package, unless it is to be refused.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from av.stream import Disposition
from recordings import CASES
from tiny_videos import TURNED, write_video

RECORDED = CASES.with_name("odd_media")
# Smooth, so that JPEG keeps it, and different in each corner, so that a turn shows.
COLUMNS, ROWS = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
PICTURE = PIL.Image.fromarray(np.stack([COLUMNS, ROWS, 255 - COLUMNS / 2 - ROWS / 2], -1).astype(np.uint8))
ORIENTATION = 0x0112
DAMAGED_EXIF = b"Exif\0\0MM\0*\0\0\xff\xff\x12\x34\x56"


@dataclass(frozen=True)
class Odd:
    """An odd file: its name, how to write it, and how to decode it independently, or that it must be refused."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], Sequence[PIL.Image.Image]] | None = None


def as_pillow_sees(path: Path) -> list[PIL.Image.Image]:
    """The upright image on white, by Pillow's own means."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return [PIL.Image.alpha_composite(white, image).convert("RGB")]


def as_stored(path: Path) -> list[PIL.Image.Image]:
    """The image as it is stored, whatever its EXIF data say."""
    return [PIL.Image.open(path).convert("RGB")]


def moving_stream(path: Path) -> list[PIL.Image.Image]:
    """All frames of the longest video stream, by PyAV alone; phones' videos are turned."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        frames = list(container.decode(max(container.streams.video, key=lambda stream: stream.frames)))
    return [PIL.Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)) for frame in frames]


def turned(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def transparent() -> PIL.Image.Image:
    image = PICTURE.convert("RGBA")
    image.putalpha(PICTURE.getchannel("R"))
    return image


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def encoded(kind: str, image=PICTURE, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def save(image: PIL.Image.Image, **options) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


def write_gray16(path: Path):
    depth = np.linspace(1000, 40000, 64 * 48).reshape(48, 64).astype(np.uint16)
    PIL.Image.fromarray(depth).save(path)


IMAGES = {
    "turned by EXIF": Odd("photo.jpg", save(PICTURE, exif=turned(6), quality=95), as_pillow_sees),
    "turned by EXIF, PNG": Odd("photo.png", save(PICTURE, exif=turned(8)), as_pillow_sees),
    "turned by EXIF, WebP": Odd("photo.webp", save(PICTURE, exif=turned(3), lossless=True), as_pillow_sees),
    "transparency": Odd("cut_out.png", lambda path: transparent().save(path), as_pillow_sees),
    "gray with transparency": Odd("gray.png", lambda path: transparent().convert("LA").save(path), as_pillow_sees),
    "palette": Odd("palette.png", lambda path: PICTURE.quantize(16).save(path), as_pillow_sees),
    "palette with transparency": Odd(
        "clear.png", lambda path: PICTURE.quantize(16).save(path, transparency=3), as_pillow_sees
    ),
    "CMYK": Odd("print.jpg", lambda path: PICTURE.convert("CMYK").save(path, quality=95), as_stored),
    "damaged EXIF, PNG": Odd("exif.png", save(PICTURE, exif=DAMAGED_EXIF), as_stored),
    "damaged EXIF, WebP": Odd("exif.webp", save(PICTURE, exif=DAMAGED_EXIF, lossless=True), as_stored),
    "damaged EXIF, JPEG": Odd("exif.jpg", save(PICTURE, exif=DAMAGED_EXIF, quality=95), as_stored),
    "name with a colon": Odd("12:30:05.png", save(PICTURE), as_stored),
    "16-bit gray, PNG": Odd("wall.png", write_gray16),
    "16-bit gray, TIFF": Odd("wall.tif", write_gray16),
    "truncated JPEG": Odd("half.jpg", lambda path: path.write_bytes(cut(encoded("JPEG", quality=95), 0.6))),
    "truncated PNG": Odd("half.png", lambda path: path.write_bytes(cut(encoded("PNG"), 0.6))),
    "panorama beside 4:3": Odd("panorama.png", lambda path: PICTURE.resize((240, 48)).save(path)),
}


def write_with_cover(path: Path):
    _remux(path, {}, av.VideoFrame(320, 240, "yuvj420p"))


def write_latin1_title(path: Path):
    _remux(path, {"title": "CAF#"})
    path.write_bytes(path.read_bytes().replace(b"CAF#", b"CAF\xe9"))


def _remux(path: Path, metadata: dict[str, str], cover: av.VideoFrame | None = None):
    """Write a plain video with metadata, behind an attached picture if there is one."""
    plain = write_video(path.with_name("plain.mp4"), 8)
    with av.open(str(plain)) as source, av.open(f"file:{path}", "w") as target:
        target.metadata.update(metadata)
        if cover:
            picture = target.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = cover.width, cover.height, cover.format.name
            picture.disposition = Disposition.attached_pic
        stream = target.add_stream_from_template(source.streams.video[0])
        if cover:
            target.mux(picture.encode(cover))
            target.mux(picture.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    plain.unlink()


def write_named(path: Path):
    """PyAV takes what comes before a colon for a protocol."""
    write_video(path.with_name("plain.mp4"), 8).rename(path)


def write_cut(path: Path, **options):
    """A video without the last quarter of its frames, whose header is whole."""
    content = write_video(path, 20, g="5", **options).read_bytes()
    path.write_bytes(content[: (content.find(b"mdat") + 3 * len(content)) // 4])


VIDEOS = {
    "cover": Odd("cover.mp4", write_with_cover, moving_stream),
    "title that is not UTF-8": Odd("titled.mp4", write_latin1_title, moving_stream),
    "name with colons": Odd("12:30:05.mp4", write_named, moving_stream),
    "turned by a phone": Odd("phone.mp4", lambda path: write_video(path, 8, matrix=TURNED), moving_stream),
    "MPEG-TS": Odd("camera.ts", lambda path: write_video(path, 8), moving_stream),
    "cut MP4": Odd("cut.mp4", lambda path: write_cut(path, layout={"movflags": "faststart"})),
    "cut Matroska": Odd("cut.mkv", write_cut),
    "cut MPEG-TS": Odd("cut.ts", write_cut),
}
