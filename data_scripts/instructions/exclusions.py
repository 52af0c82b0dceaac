"""Which scene a record is about, and whether it is one of a benchmark's test set, which must not be trained on."""

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

# Ids shorter than this are looked for as whole folder and file names only.
MIN_WORD = 8
COLUMN, PATHS_COLUMN = "scene_name", "image_path"
# On the Hub. The other benchmarks are of photos, or hold images that do not tell which scene they show.
BENCHMARKS = {"nyu-visionx/VSI-Bench": "test.jsonl", "lidingm/ViewSpatial-Bench": "ViewSpatial-Bench.json"}
NAMED = " and ".join(f"{file} of {name}" for name, file in BENCHMARKS.items())
HOW_TO_EXCLUDE = (
    "name the scenes to leave out with `--exclude FILE...`: lists, one id a line, or benchmarks' own files with the "
    f"column {COLUMN} or {PATHS_COLUMN}, such as {NAMED} on the Hub; or keep all with `--no-exclude`"
)


def find_scene(path: str, is_video: bool) -> str:
    """Scene that a path of an image or video names: a known kind of id in it, else a video, or an image's folder."""
    if match := SCANNET_SCAN.search(path):
        return match[0]
    stem, suffix = os.path.splitext(path)
    place = (stem if suffix.lower() in VIDEO_SUFFIXES else path) if is_video else os.path.dirname(path)
    match = SCANNETPP_OR_ARKITSCENES_SCENE.search(place)
    return match[0] if match else place or path


def find_excluded(paths: Sequence[str], excluded: frozenset[str]) -> str | None:
    """The scene by which paths are excluded, if any.

    Args:
        paths (`Sequence[str]`): Paths, or names of scenes.
        excluded (`frozenset[str]`): Ids of scenes. They are found as whole paths, and as names of folders and files
            (without suffix), and if they are of 8 or more characters, also as words within these. A scan of ScanNet
            stands for all of its room: scene0011_00 excludes scene0011_01 too.

    Returns:
        `str`: Id as it was found in a path, or None.
    """
    rooms = _rooms(excluded)
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
    """Scene ids from lists, one a line, and from benchmarks' own files: Parquet or JSON with the column `scene_name`,
    or JSON with the column `image_path`, of which ScanNet's scenes are taken.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file names no scene, or something else.
    """
    return frozenset().union(*map(_read_scenes, files))


def fetch_benchmark_scenes() -> frozenset[str]:
    """Scenes of the test sets of `BENCHMARKS`, from the Hub or its cache; raises `ValueError` where they cannot be
    had."""
    files = []
    for benchmark, file in BENCHMARKS.items():
        try:
            files.append(hf_hub_download(benchmark, file, repo_type="dataset"))
        except (OSError, ValueError) as error:  # what huggingface_hub raises is one of these
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(
                f"the scenes of {benchmark}, which are left out by default, cannot be fetched from the Hub "
                f"({reason}): {HOW_TO_EXCLUDE}."
            ) from error
    return read_excluded(files)


@functools.lru_cache(1)
def _rooms(scenes: frozenset[str]) -> frozenset[str]:
    return frozenset(match[1] for scene in scenes if (match := SCANNET_SCAN.fullmatch(scene)))


def _read_scenes(file: str | os.PathLike) -> frozenset[str]:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"There is no file `{file}` to read excluded scenes from: {HOW_TO_EXCLUDE}.")
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
            raise ValueError(f"`{file}` names {scene!r:.100}, which is no id of a scene: {HOW_TO_EXCLUDE}.")
    return scenes


def _parquet_column(file: str | os.PathLike) -> list[str]:
    try:
        return [str(name) for name in pq.read_table(file, columns=[COLUMN])[COLUMN].to_pylist()]
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"`{file}` is no Parquet file with the column {COLUMN}: {HOW_TO_EXCLUDE}.") from error


def _json_column(file: str | os.PathLike) -> list[str]:
    names = []
    for line, raw in read_records(file):
        try:
            record = parse_record(raw)
            names += [str(record[COLUMN])] if COLUMN in record else _scenes_of(record[PATHS_COLUMN])
        except (BadRecord, KeyError) as error:
            raise ValueError(
                f"Line {line} of `{file}` is no JSON object with {COLUMN} or {PATHS_COLUMN}: {HOW_TO_EXCLUDE}."
            ) from error
    return names


def _scenes_of(paths: str | list[str]) -> list[str]:
    """Scenes of ScanNet that paths name; of photos there are none."""
    paths = [paths] if isinstance(paths, str) else paths
    return [match[0] for path in paths for match in SCANNET_SCAN.finditer(str(path))]


def _lines(file: str | os.PathLike) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is no text in UTF-8: {HOW_TO_EXCLUDE}.") from error
