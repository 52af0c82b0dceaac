"""Damage files as disks, downloads and hands do: one mutation of one file, drawn from a generator."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

WRONG_TYPES = (None, True, -1, 0, 3.5, "text", "", [], [1, "two"], {}, {"key": 1})
HUGE, NOT_A_NUMBER = 10**30, float("nan")
TEXT_SUFFIXES = {".txt", ".jinja", ".md", ".csv"}


def truncate(path: Path, draw: random.Random):
    """Keep the beginning, as after a full disk or an incomplete download."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(max(1, len(content)))])


def flip(path: Path, draw: random.Random):
    """Change bytes, near the start more often than elsewhere: headers are there."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 4, 32))):
        if content:
            place = draw.randrange(min(len(content), draw.choice((64, 1024, 1 << 40))))
            content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def empty(path: Path, draw: random.Random):
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random):
    path.unlink()


def rename(path: Path, draw: random.Random):
    """Another suffix, a copy's name, or a name that looks like a pattern."""
    names = [f"{path.stem} (1){path.suffix}", f"{path.stem}.bak", f"[{path.stem}]{path.suffix}", f"._{path.name}"]
    path.rename(path.with_name(draw.choice(names)))


def become_folder(path: Path, draw: random.Random):
    path.unlink()
    path.mkdir()


def append(path: Path, draw: random.Random):
    """Bytes after the end, as of two downloads in one file."""
    path.write_bytes(path.read_bytes() + draw.choice((b"\0" * 64, b"}\n", path.read_bytes())))


def wrong_encoding(path: Path, draw: random.Random):
    """UTF-16, or bytes of Latin-1, for text; for other files bytes that are no text."""
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        path.write_bytes(b"\xff\xfe" + content)
        return
    place = draw.randrange(len(text) + 1)
    path.write_bytes(
        draw.choice((text.encode("utf-16"), (text[:place] + "\xe9" + text[place:]).encode("latin-1", "replace")))
    )


def wrong_type(path: Path, draw: random.Random):
    """Another type in place of a value of JSON or YAML, a column of Parquet, or a word of text."""
    _change(path, draw, lambda value: draw.choice([each for each in WRONG_TYPES if type(each) is not type(value)]))


def huge_number(path: Path, draw: random.Random):
    _change(path, draw, lambda value: draw.choice((HUGE, -HUGE)))


def not_a_number(path: Path, draw: random.Random):
    _change(path, draw, lambda value: draw.choice((NOT_A_NUMBER, float("inf"))))


def drop_value(path: Path, draw: random.Random):
    """Leave a key, an item, a column or a word out."""
    _change(path, draw, None)


MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncate": truncate,
    "flip": flip,
    "empty": empty,
    "delete": delete,
    "rename": rename,
    "folder": become_folder,
    "append": append,
    "encoding": wrong_encoding,
    "type": wrong_type,
    "huge": huge_number,
    "nan": not_a_number,
    "drop": drop_value,
}


def _change(path: Path, draw: random.Random, new: Callable[[Any], Any] | None):
    """Replace one value, or drop it where `new` is `None`; binary files have bytes flipped instead."""
    if path.suffix == ".json":
        path.write_text(json.dumps(_change_value(json.loads(path.read_text()), draw, new)))
    elif path.suffix in (".yaml", ".yml"):
        path.write_text(yaml.safe_dump(_change_value(yaml.safe_load(path.read_text()), draw, new)))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        row = draw.randrange(len(lines))
        lines[row] = json.dumps(_change_value(json.loads(lines[row]), draw, new))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        _change_parquet(path, draw, new)
    elif path.suffix in TEXT_SUFFIXES:
        words = path.read_text().split(" ")
        words[draw.randrange(len(words))] = "" if new is None else str(new(0))
        path.write_text(" ".join(words))
    else:
        flip(path, draw)


def _change_value(tree: Any, draw: random.Random, new: Callable[[Any], Any] | None) -> Any:
    """Change one place of nested lists and mappings, those near the root more often."""
    places = list(_places(tree))
    if not places or draw.random() < 0.05:
        return None if new is None else new(tree)
    parent, key = draw.choice(places[:20] if draw.random() < 0.5 else places)
    if new is None:
        del parent[key]
    else:
        parent[key] = new(parent[key])
    return tree


def _places(tree: Any):
    waiting = [tree]
    while waiting:
        node = waiting.pop(0)
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            yield node, key
            waiting.append(node[key])


def _change_parquet(path: Path, draw: random.Random, new: Callable[[Any], Any] | None):
    table = pq.read_table(path)
    name = draw.choice(table.column_names)
    rows = table.to_pylist()
    if new is None:
        table = table.drop_columns([name])
    elif draw.random() < 0.5:
        value = str(new(0)) if draw.random() < 0.5 else float(draw.randrange(9))
        table = table.set_column(table.column_names.index(name), name, pa.array([value] * len(rows)))
    else:
        rows[draw.randrange(len(rows))][name] = None
        table = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table, path)
