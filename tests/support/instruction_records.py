"""Miniature annotation files and media, and readers of the instruction sets made from them."""

import hashlib
import json
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
from PIL import Image
from recordings import CASES

from spa3r.data_scripts.instructions import convert as engine
from spa3r.data_scripts.instructions.command import SETS


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


def turns(*values) -> list[dict]:
    """A conversation in which human and gpt alternate."""
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def write_lines(path: Path, records) -> Path:
    """A file of JSON lines; a record that is text is written unchanged."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def question(text="<image>\nHow many chairs?", answer="3", **fields) -> dict:
    """A record of VSI-590K, by default about an image."""
    return {"conversations": turns(text, answer), "question_type": "absolute_count"} | (
        fields or {"image": "hypersim/a.jpg"}
    )


def convert_set(folder: Path, records, name="vsi590k", excluded=(), **options) -> dict:
    """Convert records of a published set to `folder/set`, with media in `folder/media`; returns the manifest."""
    file = write_lines(folder / "records.jsonl", records)
    source = name.replace("-", "_")
    return engine.convert(SETS[name].read_record, source, file, folder / "media", folder / "set", excluded, **options)


def convert_in_blocks(num_records: int, *arguments, **options) -> None:
    """`convert_set` in blocks of `num_records`; can be called in another process."""
    with mock.patch.object(engine, "BLOCK_RECORDS", num_records):
        convert_set(*arguments, **options)


def recorded(key: str) -> list:
    """Recorded cases of the official data code; none where there is no such recording."""
    return json.loads(CASES.read_text()).get(key, []) if CASES.is_file() else []


def read_rows(output: Path) -> list[dict]:
    """All rows of an instruction set; images are their paths."""
    rows = [row for file in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [row | {"images": [image["path"] for image in row["images"]]} for row in rows]


def read_rejected(output: Path) -> list[dict]:
    """The rejected records of an instruction set."""
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


def reasons(output: Path) -> dict[int, str]:
    """The reason of each rejection, by line."""
    return {rejection["line"]: rejection["reason"] for rejection in read_rejected(output)}


def text_of(message: dict) -> str:
    """A message in one line, with # for an image."""
    return "".join("#" if part["type"] == "image" else part["text"] for part in message["content"])


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all files of a folder, by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
