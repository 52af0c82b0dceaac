"""The images of a benchmark's questions: files under a folder, or rows of Parquet files.

Both kinds are read by a key: `is_missing(media)` does not decode, `load(media, num_frames)` does. Decoded images are
not kept.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from ..common.files import natural_key
from ..common.images import IMAGE_SUFFIXES, UnreadableFrame, open_image, to_rgb, turn_upright
from ..common.videos import VIDEO_SUFFIXES, read_frames, spread_evenly

# Imported where there is Parquet, so that questions about files need no pyarrow.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows in memory at once. A row of SPAR-Bench has about 200 KB, one of ViewSpatial-Bench up to a few MB.
BATCH_ROWS = 16
BUFFER_BYTES = 1 << 20


class MediaFiles:
    """Videos, folders of frames and images under a folder.

    Args:
        root (`Path`): The folder.
        paths (`Mapping[str, Sequence[str]]`): Paths under it, in order, by key.
        leading_folder (`str`): First folder of a path that may be missing on disk, with its slash.
    """

    def __init__(self, root: Path, paths: Mapping[str, Sequence[str]], leading_folder: str = ""):
        self.root, self.paths, self.leading_folder = root, paths, leading_folder
        # Questions about one scene share most of their images.
        self._find = functools.lru_cache(1 << 16)(self._look_up)

    def is_missing(self, media: str) -> bool:
        return any(self._find(path) is None for path in self.paths[media])

    def load(self, media: str, num_frames: int) -> list[Image.Image]:
        images = []
        for path in self.paths[media]:
            place = self._look_up(path) or self.root / path
            if place.suffix.lower() in VIDEO_SUFFIXES:
                images += read_frames(place, num_frames)
            elif place.is_dir():
                names = _list_frames(place)
                chosen = [names[index] for index in spread_evenly(len(names), num_frames)]
                images += [_decode(place / name, f"{path}/{name}") for name in chosen]
            else:
                images.append(_decode(place, path))
        return images

    def _look_up(self, path: str) -> Path | None:
        places = (self.root / path, self.root / path.removeprefix(self.leading_folder))
        return next((place for place in places if place.is_file() or _list_frames(place)), None)


def _list_frames(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    images = [name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    return sorted(images, key=natural_key)


class EmbeddedImages:
    """Images in a column of Parquet files. Rows with equal images share a key.

    Rows are streamed, a few in memory at once. Reading them in ascending order passes through the files once; a step
    back restarts at the beginning of the row group. `datasets` does not replace this: `Dataset.from_parquet` copies
    every image to its cache first, and took 895 MB of memory and 13 s for a file of 573 MB, where this takes 114 MB
    and 8 s.

    Args:
        files (`Sequence[Path]`): Parquet files.
        column (`str`): Column of structs with `bytes` and `path`, or of lists of them, as `datasets` writes images.

    Raises:
        ValueError: If a file is not Parquet, or its column does not hold images.
    """

    def __init__(self, files: Sequence[Path], column: str):
        self.column = column
        self._rows: dict[str, int] = {}
        self._missing: set[str] = set()
        self._groups = []
        self._starts = []
        self.num_rows = 0
        for file in files:
            opened = open_parquet(file)
            check_columns(file, opened, [column])
            _check_images(file, opened.schema_arrow.field(column).type, column)
            for group in range(opened.num_row_groups):
                self._groups.append((opened, group))
                self._starts.append(self.num_rows)
                self.num_rows += opened.metadata.row_group(group).num_rows
        self._current = None  # open row group
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch, self._first = None, 0  # rows in memory, number of the first one

    def scan(self, title: str) -> Iterator[tuple[dict[str, Any], str, list[str]]]:
        """Read all rows once and hash the images.

        Args:
            title (`str`): Title of the progress bar.

        Yields:
            `tuple[dict, str, list[str]]`: The other columns of a row, the key of its images, and the images' paths, if
            they have some.
        """
        with tqdm(total=self.num_rows, desc=f"Reading {title}", unit="question") as progress:
            for (file, group), start in zip(self._groups, self._starts, strict=True):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                    records = batch.drop_columns([self.column]).to_pylist()
                    for offset, record in enumerate(records):
                        images = _images_of(batch.column(self.column)[offset])
                        yield record, self._key(start + offset, images), [name for _, name in images if name]
                    start += len(records)
                    progress.update(len(records))

    def is_missing(self, media: str) -> bool:
        return media in self._missing

    def load(self, media: str, num_frames: int) -> list[Image.Image]:
        if media in self._missing:
            raise UnreadableFrame(f"there is {media}")
        images = self._read(self._rows[media])
        return [
            _decode(io.BytesIO(content), f"{number} of {len(images)}")
            for number, (content, _) in enumerate(images, start=1)
        ]

    def _key(self, row: int, images: Sequence[tuple[pa.Buffer | None, str | None]]) -> str:
        if not images or not all(content for content, _ in images):
            media = f"no image in row {row + 1}"
            self._missing.add(media)
            return media
        digests = [hashlib.sha256(content).digest() for content, _ in images]
        media = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
        self._rows.setdefault(media, row)
        return media

    def _read(self, row: int) -> list[tuple[pa.Buffer, str | None]]:
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._current or row < self._first:
            file, index = self._groups[group]
            self._batches = file.iter_batches(BATCH_ROWS, row_groups=[index], columns=[self.column], use_threads=False)
            self._current, self._first, self._batch = group, self._starts[group], next(self._batches)
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches)
        return _images_of(self._batch.column(0)[row - self._first])


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a Parquet file for streaming; raises `ValueError` if it is damaged or not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` is not a complete Parquet file ({error}); download it again.") from error


def check_columns(file: Path, opened: pq.ParquetFile, columns: Sequence[str]):
    """Raise `ValueError` if a file lacks columns."""
    names = opened.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise ValueError(
            f"`{file}` has the columns {', '.join(names)}, but lacks {', '.join(missing)}; give another file."
        )


def _check_images(file: Path, kind: pa.DataType, column: str):
    import pyarrow as pa

    element = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(element) or element.get_field_index("bytes") < 0:
        raise ValueError(
            f"The column `{column}` of `{file}` holds {kind} instead of images with their bytes; download it again."
        )


def _images_of(value: pa.Scalar) -> list[tuple[pa.Buffer | None, str | None]]:
    """Return bytes and path of each image of a row, without copying the bytes."""
    import pyarrow as pa

    if not value.is_valid:
        return []
    structs = [value] if isinstance(value, pa.StructScalar) else value.values
    return [
        (struct["bytes"].as_buffer(), struct["path"].as_py() if "path" in struct else None)
        if struct.is_valid
        else (None, None)
        for struct in structs
    ]


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Decode an image, RGB and upright. The error names it, with the same text in every process."""
    return to_rgb(turn_upright(open_image(source, name)), f"The image `{name}`")
