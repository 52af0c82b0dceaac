"""The scene that a record is about, and the test scenes of benchmarks, which must not be trained on."""

import codecs
import csv
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download

from .images import IMAGE_SUFFIXES
from .records import BadRecord, parse_record, read_records
from .scene_ids import SCANNET_SCAN, SCANNETPP_OR_ARKITSCENES_SCENE
from .videos import VIDEO_SUFFIXES

# Shorter ids match whole names of folders and files only.
MIN_WORD = 8
# At the end of a line of a list.
COMMENT = re.compile(r"\s+#(\s.*)?$")
# Columns that name a scene, and one of paths, whose ScanNet scenes count.
COLUMNS, PATHS_COLUMN = ("scene_name", "scene_id"), "image_path"
# On the Hub. The other benchmarks consist of photos, or their images do not say which scene they show.
BENCHMARKS = {"nyu-visionx/VSI-Bench": "test.jsonl", "lidingm/ViewSpatial-Bench": "ViewSpatial-Bench.json"}
PUBLISHED_FILES = " and ".join(f"{file} of {name}" for name, file in BENCHMARKS.items())
HOW_TO_EXCLUDE = (
    "name the scenes to leave out with `--exclude FILE...`: lists of ids or paths, one a line or between commas, or "
    f"benchmarks' own files with the column {COLUMNS[0]} or {PATHS_COLUMN}, such as {PUBLISHED_FILES} on the Hub; or "
    "leave out no scene: `spa3r convert-data` needs `--no-exclude` for that"
)


def find_scene(path: str, is_video: bool) -> str:
    """Return the scene that a path names: an id of a known data set in it, or else the video or the image's folder."""
    if match := SCANNET_SCAN.search(path):
        return match[0]
    stem, suffix = os.path.splitext(path)
    place = (stem if suffix.lower() in VIDEO_SUFFIXES else path) if is_video else os.path.dirname(path)
    match = SCANNETPP_OR_ARKITSCENES_SCENE.search(place)
    return match[0] if match else place or path


def find_excluded(paths: Sequence[str], excluded: frozenset[str]) -> str | None:
    """Find an excluded scene in paths.

    Args:
        paths (`Sequence[str]`): Paths, or names of scenes.
        excluded (`frozenset[str]`):
            Ids of scenes. An id matches a whole path, and the name of a folder or file with or without its suffix. An
            id of 8 or more characters also matches a word in such a name. A ScanNet scan stands for all scans of its
            room: scene0011_00 excludes scene0011_01 too.

    Returns:
        `str`, *optional*: The id as the path has it.
    """
    rooms = _scannet_rooms(excluded)
    for path in paths:
        if path in excluded:
            return path
        for match in SCANNET_SCAN.finditer(path):
            if match[1] in rooms:
                return match[0]
        for part in path.split("/"):
            words = [word for word in re.split("[^0-9A-Za-z]+", part) if len(word) >= MIN_WORD]
            for name in (part, os.path.splitext(part)[0], *words):
                if name in excluded:
                    return name
    return None


def read_excluded(files: Iterable[str | os.PathLike]) -> frozenset[str]:
    """Read ids of scenes from lists and from benchmarks' own files.

    A list holds ids or paths of scenes, one a line or between commas, quoted or not; known ids may stand between
    spaces, and comments begin with #. A path stands for the scene that it names: `scannet/scene0011_00.mp4` for
    `scene0011_00`. A benchmark's file is a table (CSV, Parquet or JSON) with a column `scene_name` or `scene_id`, or
    with the column `image_path`, whose ScanNet scenes are taken.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file names no scene, or something that is not a scene.
    """
    return frozenset().union(*map(_read_scenes, files))


def count_found(found: Iterable[str], listed: frozenset[str]) -> int:
    """How many listed scenes were found, given what `find_excluded` returned."""
    found = frozenset(found)
    rooms = _scannet_rooms(found)
    return sum(scene in found or bool(rooms & _scannet_rooms(frozenset([scene]))) for scene in listed)


def summarize_exclusion(num_excluded: int, num_scenes: int, num_found: int, num_listed: int) -> str:
    """Say how many of all scenes a list leaves out, and how much of the list was found."""
    return f"{num_excluded} of {num_scenes} scenes are left out ({num_found} of the {num_listed} listed were found)"


def fetch_benchmark_scenes() -> frozenset[str]:
    """Fetch the test scenes of `BENCHMARKS` from the Hub or its cache; raise `ValueError` if that fails."""
    files = []
    for benchmark, file in BENCHMARKS.items():
        try:
            files.append(hf_hub_download(benchmark, file, repo_type="dataset"))
        except (OSError, ValueError) as error:  # The errors of huggingface_hub are of these types.
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(
                f"The test scenes of `{benchmark}` cannot be fetched from the Hub ({reason}): {HOW_TO_EXCLUDE}."
            ) from error
    return read_excluded(files)


@functools.lru_cache(8)
def _scannet_rooms(scenes: frozenset[str]) -> frozenset[str]:
    return frozenset(match[1] for scene in scenes if (match := SCANNET_SCAN.fullmatch(scene)))


def _read_scenes(file: str | os.PathLike) -> frozenset[str]:
    if os.path.isdir(file):
        raise IsADirectoryError(f"`{file}` is a folder, no file of excluded scenes: {HOW_TO_EXCLUDE}.")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"The file of excluded scenes `{file}` does not exist: {HOW_TO_EXCLUDE}.")
    with open(file, "rb") as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"PAR1"):
        names = _read_parquet(file)
    elif re.match(rb'\[\s*"', start):
        names = _read_json_list(file)
    elif start.startswith((b"{", b"[")):
        names = _read_json_table(file)
    else:
        names = _read_text(file)
    scenes = frozenset(scene for name in names for scene in _scenes_of_entry(name)) - {""}
    if not scenes:
        raise ValueError(f"`{file}` names no scene: {HOW_TO_EXCLUDE}.")
    return scenes


def _scenes_of_entry(entry: str) -> set[str]:
    """The scenes that an entry of a list means: ids between spaces, or the path of a folder, an image or a video."""
    scans = {match[0] for match in SCANNET_SCAN.finditer(entry)}
    if known := scans | set(filter(_is_known_id, entry.split())):
        return known
    path = entry.strip().replace("\\", "/").removeprefix("./")
    stem, suffix = os.path.splitext(path.rstrip("/"))
    if suffix.lower() in VIDEO_SUFFIXES:
        path = stem
    elif suffix.lower() in IMAGE_SUFFIXES:
        path = os.path.dirname(path)
    parts = path.rstrip("/").split("/")
    # Whole names alone: a date within a name looks like an id of ARKitScenes.
    known = (part for part in parts if SCANNETPP_OR_ARKITSCENES_SCENE.fullmatch(part))
    return {next(known, path.rstrip("/"))}


def _is_known_id(word: str) -> bool:
    return bool(SCANNET_SCAN.fullmatch(word) or SCANNETPP_OR_ARKITSCENES_SCENE.fullmatch(word))


def _scenes_of_row(row: Mapping[str, Any]) -> list[str]:
    """The scenes of a row of a table; raises `KeyError` if it has no column that names them."""
    for column in COLUMNS:
        if column in row:
            return [str(row[column] or "")]
    # A path or a list of paths; a photo names no scene.
    return [match[0] for match in SCANNET_SCAN.finditer(str(row[PATHS_COLUMN]))]


def _without_column(place: str) -> ValueError:
    return ValueError(f"{place} has no column `{COLUMNS[0]}` or `{PATHS_COLUMN}`: {HOW_TO_EXCLUDE}.")


def _read_parquet(file: str | os.PathLike) -> list[str]:
    try:
        known = [name for name in pq.read_schema(file).names if name in (*COLUMNS, PATHS_COLUMN)]
        rows = pq.read_table(file, columns=known).to_pylist() if known else [{}]
        return [name for row in rows for name in _scenes_of_row(row)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` is not a complete Parquet file ({error}): {HOW_TO_EXCLUDE}.") from error
    except KeyError as error:
        raise _without_column(f"`{file}`") from error


def _read_json_list(file: str | os.PathLike) -> list[str]:
    try:
        names = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"`{file}` is not a complete JSON list ({error}): {HOW_TO_EXCLUDE}.") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{file}` mixes texts and other values in its JSON list: {HOW_TO_EXCLUDE}.")
    return names


def _read_json_table(file: str | os.PathLike) -> list[str]:
    names = []
    for line, raw in read_records(file):
        try:
            names += _scenes_of_row(parse_record(raw))
        except (BadRecord, KeyError) as error:
            raise _without_column(f"Line {line} of `{file}` is no JSON object, or") from error
    return names


def _read_text(file: str | os.PathLike) -> list[str]:
    """The entries of a list, or the scenes of a CSV table."""
    content = Path(file).read_bytes()
    # Windows' PowerShell writes UTF-16.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        lines = content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is not text in UTF-8: {HOW_TO_EXCLUDE}.") from error
    if any("\0" in line for line in lines):
        raise ValueError(f"`{file}` is not text in UTF-8, or UTF-16 with its mark: {HOW_TO_EXCLUDE}.")
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].startswith(("{", "[")):
        raise ValueError(f"`{file}` is JSON in UTF-16, and is read in UTF-8 alone: {HOW_TO_EXCLUDE}.")
    delimiter = next((mark for mark in "\t;" if lines and mark in lines[0]), ",")
    rows = _split(lines, delimiter)
    if rows and {*COLUMNS, PATHS_COLUMN}.intersection(rows[0]):
        return [name for row in rows[1:] for name in _scenes_of_row(dict(zip(rows[0], row, strict=False)))]
    rows = _split([COMMENT.sub("", line) for line in lines], delimiter)
    if odd := [cell for row in rows for cell in row if _is_no_id(cell, is_alone=len(row) == 1)]:
        raise ValueError(f"`{file}` names {odd[0]!r:.100}, which is not a scene id: {HOW_TO_EXCLUDE}.")
    return [cell.strip("'\" ") for row in rows for cell in row]


def _split(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]


def _is_no_id(cell: str, is_alone: bool) -> bool:
    """Whether text with spaces is no id; an id in a line of its own may hold spaces, as folders do."""
    are_known = list(map(_is_known_id, cell.strip("'\"").split()))
    return len(are_known) > 1 and not all(are_known) and (any(are_known) or not is_alone)
