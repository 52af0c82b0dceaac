"""Miniature annotation files and media, and what is in the instruction sets made of them, for tests of converters."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from tiny_videos import write_video


def write_image(path: Path, color="gray", size=(64, 48)) -> Path:
    """A JPEG of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, quality=95)
    return path


def write_frames(folder: Path, num_frames: int, prefix="frame_") -> Path:
    """Frames numbered without leading zeros, each 12 brighter than the one before."""
    for index in range(num_frames):
        write_image(folder / f"{prefix}{index}.jpg", (12 * index,) * 3)
    return folder


def write_tiny_video(path: Path, num_frames: int = 20) -> Path:
    """A video of 10 frames a second, see `write_video`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, num_frames)


def turns(*values) -> list[dict]:
    """Turns of human and gpt by turns."""
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def write_lines(path: Path, records) -> Path:
    """Lines of JSON; text is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(output: Path) -> list[dict]:
    """All rows of an instruction set, its images by their paths."""
    rows = [row for file in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [row | {"images": [image["path"] for image in row["images"]]} for row in rows]


def read_rejected(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


def reasons(output: Path) -> dict[int, str]:
    """Why records were rejected, by line."""
    return {rejection["line"]: rejection["reason"] for rejection in read_rejected(output)}


def text_of(message: dict) -> str:
    """A message in one line, with # for an image."""
    return "".join("#" if part["type"] == "image" else part["text"] for part in message["content"])


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
