"""Benchmarks as published on the Hub, read from the folder that they were downloaded to.

    vsi-bench           test.jsonl; videos <dataset>/<scene_name>.mp4, as the zip files unpack
    cv-bench            test_2d.parquet and test_3d.parquet, images in them
    spar-bench          data/test-*.parquet, images in them; also SPAR-Bench-Tiny
    viewspatial-bench   ViewSpatial-Bench.json; images scannetv2_val/... and val2017/..., as the zip files unpack;
                        or data/test-*.parquet of the mirror for lmms-eval, images in them
    rooms               test.jsonl, as `spa3r room-questions --format benchmark` writes it; <scene_name>/color/*.jpg in
                        the folder of the rooms

Questions are held in memory, images never: they are read when they are asked for.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.records import BadRecord, check_text, parse_record, read_records
from ..common.scene_ids import SCANNET_SCAN
from .images import (
    EmbeddedImages,
    FrameFolders,
    ImageFiles,
    ReadVideo,
    Videos,
    check_columns,
    open_parquet,
)
from .layouts import LAYOUTS, Layout
from .rooms import OPTIONS_FILE

SHOWN = 5


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question of a benchmark.

    Args:
        id (`str`): Its id, which no other question of the benchmark has.
        scene_id (`str`): The scene that it is about, or where none is known, the images.
        media (`str`): Key of what is seen: questions of equal keys are about the same images in the same order.
        record (`dict`): The columns as published, without the bytes of images.
    """

    id: str
    scene_id: str
    media: str
    record: dict[str, Any]


class Benchmark:
    """Questions, and where their images are; see `read_benchmark`.

    Args:
        name (`str`): Which benchmark.
        questions (`Sequence[BenchmarkQuestion]`): In the order of the file.
        fingerprint (`str`): Hash of all records, and of embedded images; wherever the folder lies.
        published_size (`int`, *optional*): How many questions were published, where that is known.
        media: One of the kinds of `benchmark_media`.
    """

    def __init__(
        self,
        name: str,
        questions: Sequence[BenchmarkQuestion],
        fingerprint: str,
        published_size: int | None,
        media: Videos | FrameFolders | ImageFiles | EmbeddedImages,
    ):
        self.name, self.questions = name, questions
        self.fingerprint, self.published_size = fingerprint, published_size
        self._media = media

    def missing_media(self) -> list[str]:
        """Keys of media that are not there, in the order of the questions; nothing is decoded."""
        keys = dict.fromkeys(question.media for question in self.questions)
        return [media for media in keys if self._media.is_missing(media)]

    def load_images(self, media: str, num_frames: int, read_video: ReadVideo) -> list[Image.Image]:
        """Decode what questions are about. One thread at a time may call it.

        Args:
            media (`str`): Key of the images.
            num_frames (`int`): Frames of a video, or of a room's folder of frames; of images always all are given.
            read_video (`Callable`): Called with the path of a video and `num_frames`; gives its frames.

        Returns:
            `list[PIL.Image.Image]`: RGB, upright.

        Raises:
            ValueError: If they cannot be decoded; names the first question about them.
        """
        try:
            return self._media.load(media, num_frames, read_video)
        except ValueError as error:
            question = next(question for question in self.questions if question.media == media)
            reason = str(error).rstrip(".")
            raise ValueError(f"Question {question.id} of {self.name} has no readable images: {reason}.") from error


def read_benchmark(name: str, data: str | os.PathLike, media_root: str | os.PathLike | None = None) -> Benchmark:
    """Read the questions of a benchmark, and note where their images are.

    Args:
        name (`str`): `vsi-bench`, `cv-bench`, `spar-bench`, `viewspatial-bench` or `rooms`.
        data (`str` or `os.PathLike`):
            Its folder, as downloaded, or one file of questions in it, such as `VSI-Bench/test_debiased.parquet`.
        media_root (`str` or `os.PathLike`, *optional*):
            Folder of videos, images or rooms. By default the folder of the questions.

    Raises:
        ValueError: If there is no such benchmark, folder or file, a file holds something else or no question, ids
            repeat, a path leads out of the media folder, or rooms are others than those that were asked about.
    """
    if name not in LAYOUTS:
        raise ValueError(f"Unknown benchmark `{name}`; choose one of {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[name]
    folder, files, is_whole = _find_files(layout, Path(data))
    root = folder if media_root is None else Path(media_root)
    if not root.is_dir():
        raise ValueError(f"There is no folder `{root}` to look for the images of {layout.title} in.")
    if name == "rooms":
        _check_rooms(folder, root)
    questions, media = _read_questions(name, layout, files, root)
    _check_questions(questions, files)
    digest = hashlib.sha256()
    for question in questions:
        # What embedded images are is told by the key alone.
        content = [question.record, question.media if isinstance(media, EmbeddedImages) else None]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    # A set of which a part is missing is told from the smallest that could be meant.
    sizes = [size for size in layout.sizes if size >= len(questions)] or list(layout.sizes[-1:])
    published_size = sizes[0] if is_whole and sizes else None
    return Benchmark(name, questions, digest.hexdigest(), published_size, media)


def read_room_baselines(data: str | os.PathLike) -> dict[str, dict[str, float]]:
    """What answers without images score on a benchmark of rooms, by question type, as fractions.

    Args:
        data (`str` or `os.PathLike`): Folder that `spa3r room-questions --format benchmark` wrote, or a file in it.

    Returns:
        `dict[str, dict[str, float]]`: Of the most `frequent` answers, and of one who knows the texts but is `blind`.

    Raises:
        ValueError: If the folder has no manifest of such a benchmark.
    """
    folder = Path(data).parent if Path(data).is_file() else Path(data)
    manifest = _read_json(folder / "manifest.json")
    if manifest is None or not {"frequency_baseline", "blind_bound"} <= manifest.keys():
        raise ValueError(
            f"`{folder}` has no manifest.json that says what answers without images score: finish it with "
            "spa3r room-questions --format benchmark."
        )
    return {"frequency": manifest["frequency_baseline"], "blind (text only)": manifest["blind_bound"]}


def _find_files(layout: Layout, data: Path) -> tuple[Path, list[Path], bool]:
    """Folder of a benchmark, its files of questions, and whether these are all that belong to it."""
    if data.is_file():
        is_shard = any(data.match(pattern) for pattern in layout.files if "/" in pattern)
        folder = data.parent.parent if is_shard else data.parent
        return folder, [data], _match_files(layout, folder) == [data]
    if not data.is_dir():
        raise ValueError(f"There is no folder or file `{data}` to read {layout.title} from.")
    files = _match_files(layout, data)
    if not files:
        raise ValueError(
            f"There is no {layout.title} in `{data}`: looked for {' or '.join(layout.files)}. Get it with "
            f"`{layout.how}`, or name a file of questions itself."
        )
    return data, files, True


def _match_files(layout: Layout, folder: Path) -> list[Path]:
    return next((files for pattern in layout.files if (files := sorted(folder.glob(pattern)))), [])


def _read_questions(
    name: str, layout: Layout, files: Sequence[Path], root: Path
) -> tuple[list[BenchmarkQuestion], Videos | FrameFolders | ImageFiles | EmbeddedImages]:
    if layout.images is not None and files[0].suffix == ".parquet":
        return _read_embedded(layout, files)
    if name == "viewspatial-bench":
        return _read_image_paths(layout, files, root)
    if name == "rooms":
        return _read_scenes(layout, files, lambda record: record["scene_name"]), FrameFolders(root)
    return _read_scenes(layout, files, lambda record: f"{record['dataset']}/{record['scene_name']}.mp4"), Videos(root)


def _read_scenes(layout: Layout, files: Sequence[Path], media_of: Callable[[Mapping], str]) -> list[BenchmarkQuestion]:
    """Questions about scenes that a column names."""
    questions = []
    for where, record in _read_records(layout, files):
        media = _check_path(media_of(record), where)
        questions.append(BenchmarkQuestion(str(record[layout.id_column]), str(record["scene_name"]), media, record))
    return questions


def _read_image_paths(layout: Layout, files: Sequence[Path], root: Path) -> tuple[list[BenchmarkQuestion], ImageFiles]:
    """Questions about images that a column lists."""
    questions, paths_of = [], {}
    for where, record in _read_records(layout, files, "image_path"):
        listed = record["image_path"]
        paths = [_check_path(path, where) for path in ([listed] if isinstance(listed, str) else listed or [])]
        if not paths:
            raise ValueError(f"{where} names no image.")
        media = paths[0]
        if len(paths) > 1:
            others = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:12]
            media = f"{paths[0]} and {len(paths) - 1} more ({others})"
        paths_of[media] = paths
        questions.append(BenchmarkQuestion(str(len(questions)), _find_scene(paths, media), media, record))
    return questions, ImageFiles(root, paths_of)


def _read_embedded(layout: Layout, files: Sequence[Path]) -> tuple[list[BenchmarkQuestion], EmbeddedImages]:
    """Questions in Parquet files that hold their images."""
    for file in files:
        check_columns(file, open_parquet(file), [*layout.columns, layout.images])
    media, questions = EmbeddedImages(files, layout.images), []
    for record, key, names in media.scan(layout.title):
        number = str(len(questions) if layout.id_column is None else record[layout.id_column])
        listed = record.get("image_path") or []
        paths = [listed] if isinstance(listed, str) else listed
        questions.append(BenchmarkQuestion(number, _find_scene([*paths, *names], key), key, record))
    return questions, media


def _read_records(layout: Layout, files: Sequence[Path], *columns: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of files without images, and where each stands."""
    columns = (*layout.columns, *columns)
    for file in files:
        if file.suffix == ".parquet":
            opened = open_parquet(file)
            check_columns(file, opened, columns)
            for row, record in enumerate(opened.read(use_threads=False).to_pylist(), start=1):
                yield f"Row {row} of `{file}`", record
            continue
        for line, raw in read_records(file):
            try:
                record = parse_record(raw)
            except BadRecord as error:
                raise ValueError(
                    f"Line {line} of `{file}` is no question of {layout.title}: {error.detail}."
                ) from error
            if missing := [name for name in columns if name not in record]:
                raise ValueError(
                    f"Line {line} of `{file}` is no question of {layout.title}: it lacks {', '.join(missing)}, "
                    f"and has {', '.join(record)}."
                )
            yield f"Line {line} of `{file}`", record


def _check_path(path: Any, where: str) -> str:
    """Return a path if it stays within a folder; raises `ValueError` otherwise."""
    try:
        text = check_text(path, "a path")
    except BadRecord as error:
        raise ValueError(f"{where} names no image or video: {error.detail}.") from error
    normal = os.path.normpath(text)
    if os.path.isabs(text) or normal.split(os.sep)[0] in ("..", ".") or "\0" in text:
        raise ValueError(f"{where} names {text!r:.200}, which does not lie in the folder of images and videos.")
    return text


def _find_scene(paths: Sequence[str], otherwise: str) -> str:
    """The scene of ScanNet that a path names, if any does."""
    return next((match[0] for path in paths if (match := SCANNET_SCAN.search(path))), otherwise)


def _check_questions(questions: Sequence[BenchmarkQuestion], files: Sequence[Path]):
    named = ", ".join(f"`{file}`" for file in files)
    if not questions:
        raise ValueError(f"There is no question in {named}.")
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        first = ", ".join(repeated[:SHOWN]) + (", ..." if len(repeated) > SHOWN else "")
        raise ValueError(
            f"{len(repeated)} ids occur more than once in {named}: {first}. Ids must tell questions apart; is a file "
            "there twice?"
        )


def _check_rooms(folder: Path, root: Path):
    """Refuse rooms of another seed: all rooms have the same names."""
    asked, there = (_read_json(folder / "manifest.json") or {}).get("rooms"), _read_json(root / OPTIONS_FILE)
    if asked is not None and there is not None and asked != there:
        raise ValueError(
            f"The questions in `{folder}` are about rooms made with {asked}, but those in `{root}` were made with "
            f"{there}: name the folder of the former."
        )


def _read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object, if the file holds one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
