"""Read a benchmark from the folder that it was downloaded to.

    vsi-bench           test.jsonl; videos <dataset>/<scene_name>.mp4, as the zip files unpack
    cv-bench            test_2d.parquet and test_3d.parquet, with images
    spar-bench          data/test-*.parquet, with images; also SPAR-Bench-Tiny
    viewspatial-bench   ViewSpatial-Bench.json; images scannetv2_val/... and val2017/..., as the zip files unpack;
                        or data/test-*.parquet of the mirror for lmms-eval, with images
    revsi-16            16_frame/*.parquet; videos 16_frame/<scene_id>.mp4; likewise revsi-32, revsi-64 and revsi-all
    vsi-super-count     test-*.parquet; videos by the column video_path; likewise -streaming and vsi-super-recall
    rooms               test.jsonl of `spa3r room-questions --format benchmark`; frames <scene_name>/color/*.jpg in the
                        folder of the rooms

Questions are held in memory. Images are not: they are read on demand.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..benchmarks import BENCHMARKS
from ..common.records import BadRecord, check_text, parse_record, read_records
from ..common.scene_ids import SCANNET_SCAN
from .images import EmbeddedImages, MediaFiles, check_columns, open_parquet
from .protocol import Benchmark

SHOWN = 5


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question of a benchmark.

    Args:
        id (`str`): Unique within the benchmark.
        scene_id (`str`): The scene, or if it is not known, the key of the images.
        media (`str`): Key of the images. Questions with the same key are about the same images in the same order.
        record (`dict`): The columns as published, without the bytes of images.
    """

    id: str
    scene_id: str
    media: str
    record: dict[str, Any]


class BenchmarkData:
    """Questions of a benchmark with their images; see `read_benchmark`.

    Args:
        name (`str`): Name of the benchmark.
        questions (`Sequence[BenchmarkQuestion]`): Questions in the order of the file.
        fingerprint (`str`): Hash of all records and embedded images. It does not depend on where the folder lies.
        published_size (`int`, *optional*): Number of questions of the published set; `None` if it is not known.
        images (`MediaFiles` or `EmbeddedImages`): The images.
    """

    def __init__(
        self,
        name: str,
        questions: Sequence[BenchmarkQuestion],
        fingerprint: str,
        published_size: int | None,
        images: MediaFiles | EmbeddedImages,
    ):
        self.name, self.questions = name, questions
        self.fingerprint, self.published_size = fingerprint, published_size
        self._images = images

    def missing_media(self) -> list[str]:
        """List keys of images that are not there, in the order of the questions, without decoding anything."""
        keys = dict.fromkeys(question.media for question in self.questions)
        return [media for media in keys if self._images.is_missing(media)]

    def load_images(self, media: str, num_frames: int) -> list[Image.Image]:
        """Decode the images of a question. It is not thread-safe.

        Args:
            media (`str`): Key of the images.
            num_frames (`int`): Number of frames, spread evenly, of a video or a folder of frames.

        Returns:
            `list[PIL.Image.Image]`: RGB images, upright.

        Raises:
            ValueError: If they cannot be decoded; names the first question about them.
        """
        try:
            return self._images.load(media, num_frames)
        except ValueError as error:
            question = next(question for question in self.questions if question.media == media)
            reason = str(error).rstrip(".")
            raise ValueError(f"Question {question.id} of {self.name} has no readable images: {reason}.") from error


def read_benchmark(name: str, data: str | os.PathLike, media_root: str | os.PathLike | None = None) -> BenchmarkData:
    """Read the questions of a benchmark and locate their images.

    Args:
        name (`str`): Name of the benchmark, a key of `BENCHMARKS`.
        data (`str` or `os.PathLike`):
            Folder as downloaded, or a single file of questions in it, such as `VSI-Bench/test_debiased.parquet`.
        media_root (`str` or `os.PathLike`, *optional*):
            Folder of videos, images or rooms. By default the folder of the questions.

    Raises:
        ValueError: If there is no such benchmark, folder or file, a file holds no or other questions, ids repeat, a
            path leaves the media folder, or the rooms are not those of the questions.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark `{name}`; choose one of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    folder, files, is_whole = _find_files(benchmark, Path(data))
    root = folder if media_root is None else Path(media_root)
    if not root.is_dir():
        raise ValueError(f"There is no folder `{root}`; name the folder that holds the images of {benchmark.title}.")
    if benchmark.check_folders is not None:
        benchmark.check_folders(folder, root)
    is_embedded = benchmark.image_column is not None and files[0].suffix == ".parquet"
    questions, images = _read_embedded(benchmark, files) if is_embedded else _read_paths(benchmark, files, root)
    _check_questions(questions, files)
    digest = hashlib.sha256()
    for question in questions:
        # Only the key tells embedded images apart.
        content = [question.record, question.media if is_embedded else None]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    # An incomplete set is compared with the smallest published set that has as many questions.
    sizes = [size for size in benchmark.sizes if size >= len(questions)] or list(benchmark.sizes[-1:])
    published_size = sizes[0] if is_whole and sizes else None
    return BenchmarkData(name, questions, digest.hexdigest(), published_size, images)


def _find_files(benchmark: Benchmark, data: Path) -> tuple[Path, list[Path], bool]:
    """Return the folder of a benchmark, its files of questions, and whether they are all of the benchmark's."""
    if data.is_file():
        is_shard = any(data.match(pattern) for pattern in benchmark.question_files if "/" in pattern)
        folder = data.parent.parent if is_shard else data.parent
        return folder, [data], _match_files(benchmark, folder) == [data]
    if not data.is_dir():
        raise ValueError(f"There is no folder or file `{data}`; name the one that holds {benchmark.title}.")
    files = _match_files(benchmark, data)
    if not files:
        raise ValueError(
            f"`{data}` does not hold {benchmark.title}: no file matches {' or '.join(benchmark.question_files)}. Run "
            f"`{benchmark.how_to_get}`, or name a file of questions."
        )
    return data, files, True


def _match_files(benchmark: Benchmark, folder: Path) -> list[Path]:
    return next((files for pattern in benchmark.question_files if (files := sorted(folder.glob(pattern)))), [])


def _read_paths(benchmark: Benchmark, files: Sequence[Path], root: Path) -> tuple[list[BenchmarkQuestion], MediaFiles]:
    """Read questions whose images are files."""
    questions, paths_of = [], {}
    for where, record in _read_records(benchmark, files):
        if benchmark.keep is not None and not benchmark.keep(record):
            continue
        paths = [_check_path(path, where) for path in benchmark.media_paths(record)]
        if not paths:
            raise ValueError(f"{where} names no image; leave it out, or download the file again.")
        media = paths[0]
        if len(paths) > 1:
            others = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:12]
            media = f"{paths[0]} and {len(paths) - 1} more ({others})"
        paths_of[media] = paths
        questions.append(_make_question(benchmark, len(questions), record, media, paths))
    return questions, MediaFiles(root, paths_of, benchmark.leading_folder)


def _read_embedded(benchmark: Benchmark, files: Sequence[Path]) -> tuple[list[BenchmarkQuestion], EmbeddedImages]:
    """Read questions from Parquet files that hold their images."""
    for file in files:
        check_columns(file, open_parquet(file), [*benchmark.columns, benchmark.image_column])
    images, questions = EmbeddedImages(files, benchmark.image_column), []
    for record, media, names in images.scan(benchmark.title):
        paths = [*(benchmark.media_paths(record) if benchmark.media_paths else ()), *names]
        questions.append(_make_question(benchmark, len(questions), record, media, paths))
    return questions, images


def _make_question(
    benchmark: Benchmark, number: int, record: dict[str, Any], media: str, paths: Sequence[str]
) -> BenchmarkQuestion:
    question_id = number if benchmark.id_column is None else record[benchmark.id_column]
    if benchmark.scene_column is not None:
        scene = str(record[benchmark.scene_column])
    else:
        scene = next((match[0] for path in paths if (match := SCANNET_SCAN.search(path))), media)
    return BenchmarkQuestion(str(question_id), scene, media, record)


def _read_records(benchmark: Benchmark, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each record, as text, and the record."""
    for file in files:
        if file.suffix == ".parquet":
            opened = open_parquet(file)
            check_columns(file, opened, benchmark.columns)
            for row, record in enumerate(opened.read(use_threads=False).to_pylist(), start=1):
                yield f"Row {row} of `{file}`", record
            continue
        for line, raw in read_records(file):
            where = f"Line {line} of `{file}`"
            try:
                record = parse_record(raw)
            except BadRecord as error:
                raise ValueError(
                    f"{where} is not a question of {benchmark.title}: {error.detail}; download the file again."
                ) from error
            if missing := [name for name in benchmark.columns if name not in record]:
                raise ValueError(
                    f"{where} has the columns {', '.join(record)} but lacks {', '.join(missing)}; give a file of "
                    f"{benchmark.title}."
                )
            yield where, record


def _check_path(path: Any, where: str) -> str:
    """Return a path, or raise `ValueError` if it leaves its folder."""
    try:
        text = check_text(path, "a path")
    except BadRecord as error:
        raise ValueError(f"{where} names no image or video: {error.detail}; download the file again.") from error
    normal = os.path.normpath(text)
    if os.path.isabs(text) or normal.split(os.sep)[0] in ("..", ".") or "\0" in text:
        raise ValueError(f"{where} names {text!r:.200}, which is outside the folder of images and videos; remove it.")
    return text


def _check_questions(questions: Sequence[BenchmarkQuestion], files: Sequence[Path]):
    named = ", ".join(f"`{file}`" for file in files)
    if not questions:
        raise ValueError(f"There is no question in {named}; download it again.")
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        first = ", ".join(repeated[:SHOWN]) + (", ..." if len(repeated) > SHOWN else "")
        raise ValueError(
            f"{len(repeated)} ids occur more than once in {named}: {first}. Ids must be unique; is a file there twice?"
        )
