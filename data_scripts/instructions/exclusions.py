"""The scene that a record is about, and the test scenes of benchmarks, which must not be trained on."""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download

from ..common.records import BadRecord, parse_record, read_records
from ..common.scene_ids import SCANNET_SCAN, SCANNETPP_OR_ARKITSCENES_SCENE
from ..common.videos import VIDEO_SUFFIXES

# Shorter ids match whole names of folders and files only.
MIN_WORD = 8
COLUMN, PATHS_COLUMN = "scene_name", "image_path"
# On the Hub. The other benchmarks consist of photos, or their images do not say which scene they show.
BENCHMARKS = {"nyu-visionx/VSI-Bench": "test.jsonl", "lidingm/ViewSpatial-Bench": "ViewSpatial-Bench.json"}
PUBLISHED_FILES = " and ".join(f"{file} of {name}" for name, file in BENCHMARKS.items())
HOW_TO_EXCLUDE = (
    "name the scenes to leave out with `--exclude FILE...`: lists with one id per line, or benchmarks' own files with "
    f"the column {COLUMN} or {PATHS_COLUMN}, such as {PUBLISHED_FILES} on the Hub; or keep all scenes with "
    "`--no-exclude`"
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
    """Read scene ids from lists with one id per line, and from benchmarks' own files.

    Such a file is Parquet or JSON with the column `scene_name`, or JSON with the column `image_path`, whose ScanNet
    scenes are taken.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file names no scene, or something that is not a scene id.
    """
    return frozenset().union(*map(_read_scenes, files))


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


@functools.lru_cache(1)
def _scannet_rooms(scenes: frozenset[str]) -> frozenset[str]:
    return frozenset(match[1] for scene in scenes if (match := SCANNET_SCAN.fullmatch(scene)))


def _read_scenes(file: str | os.PathLike) -> frozenset[str]:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"The file of excluded scenes `{file}` does not exist: {HOW_TO_EXCLUDE}.")
    with open(file, "rb") as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PAR1"):
        names = _parquet_column(file)
    elif start.startswith((b"{", b"[")):
        names = _json_column(file)
    else:
        names = _lines(file)
    scenes = frozenset(name.strip() for name in names) - {""}
    if not scenes:
        raise ValueError(f"`{file}` names no scene: {HOW_TO_EXCLUDE}.")
    for scene in sorted(scenes):
        if re.search(r"[\s\"',;]", scene) or os.path.splitext(scene)[1].lower() in VIDEO_SUFFIXES:
            raise ValueError(f"`{file}` names {scene!r:.100}, which is not a scene id: {HOW_TO_EXCLUDE}.")
    return scenes


def _parquet_column(file: str | os.PathLike) -> list[str]:
    try:
        return [str(name) for name in pq.read_table(file, columns=[COLUMN])[COLUMN].to_pylist()]
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"`{file}` is not a Parquet file with the column `{COLUMN}`: {HOW_TO_EXCLUDE}.") from error


def _json_column(file: str | os.PathLike) -> list[str]:
    names = []
    for line, raw in read_records(file):
        try:
            record = parse_record(raw)
            if COLUMN in record:
                names.append(str(record[COLUMN]))
            else:  # A path or a list of paths; a photo names no scene.
                names += [match[0] for match in SCANNET_SCAN.finditer(str(record[PATHS_COLUMN]))]
        except (BadRecord, KeyError) as error:
            raise ValueError(
                f"Line {line} of `{file}` is not a JSON object with `{COLUMN}` or `{PATHS_COLUMN}`: {HOW_TO_EXCLUDE}."
            ) from error
    return names


def _lines(file: str | os.PathLike) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is not text in UTF-8: {HOW_TO_EXCLUDE}.") from error
