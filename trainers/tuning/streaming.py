"""Stream instruction sets that are larger than a disk, and resume to the same batches.

`spa3r sft --streaming true` reads Parquet shards with their images inside, from a folder or an address such as
`hf://datasets/you/set` or `s3://bucket/set`, a row group at a time. What streams through `datasets` is light: the
order of records, as references to rows of row groups. Each process and each of its workers has row groups of its own
and reads a row only when its turn has come. A resumed run draws the same references again and reads none of those that
it has trained on. So no checkpoint keeps a shuffle buffer; `IterableDataset.state_dict` leaves it out, and the records
that follow would be others.

Row groups are shuffled, and the records of `GROUPS_OF_WINDOW` of them together. Every pass has the same order.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, List
from datasets.table import table_cast
from pyarrow import ArrowException, parquet
from torch.utils.data import get_worker_info
from transformers import TrainingArguments

from .instruction_data import COLUMNS, examine_record, split_source

# Whose records are shuffled together, and which a worker holds in memory.
GROUPS_OF_WINDOW = 4
# For the footers of shards, which are far away.
THREADS = 16
REFERENCE = ["file", "group", "row"]


class UnusableRecord(OSError):
    """A record cannot be trained on, or a shard cannot be read."""

    def __init__(self, text: str):
        # A loader raises the error of its worker again, with a traceback before the sentence.
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


class RowGroup(NamedTuple):
    """Some rows of a Parquet file, with their number and their size, by which a change is noticed."""

    file: str
    index: int
    num_rows: int
    num_bytes: int


@lru_cache(maxsize=1)
def list_row_groups(sources: tuple[str, ...], seed: int) -> list[RowGroup]:
    """All row groups of instruction sets, as often as their weights say; a fraction is one of row groups.

    Raises:
        ValueError: If a weight is wrong, or a source holds no instruction set.
    """
    groups = []
    for source in sources:
        folder, weight = split_source(source)
        system, path = fsspec.url_to_fs(folder)
        files = [system.unstrip_protocol(file) for file in sorted(system.glob(f"{path}/data/*.parquet"))]
        if not files:
            raise ValueError(
                f"`{folder}` holds no instruction set: there is no `data/*.parquet` in it. Make one with `spa3r "
                "convert-data` or `spa3r room-questions`."
            )
        with ThreadPoolExecutor(THREADS) as threads:
            part = [group for shard in threads.map(_groups_of_file, files) for group in shard]
        order = np.random.default_rng(seed).permutation(len(part))[: math.ceil(weight % 1 * len(part))]
        groups += part * int(weight) + [part[index] for index in order]
    return groups


def _groups_of_file(file: str) -> list[RowGroup]:
    try:
        with fsspec.open(file) as opened:
            metadata = parquet.ParquetFile(opened).metadata
    except ArrowException as error:
        raise ValueError(f"`{file}` cannot be read ({error}): write this shard again.") from error
    if missing := set(COLUMNS) - {metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)}:
        raise ValueError(f"`{file}` has no column {sorted(missing)}: an instruction set has {list(COLUMNS)}.")
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [RowGroup(file, index, group.num_rows, group.total_byte_size) for index, group in enumerate(groups)]


def count_records(dataset: Dataset | IterableDataset, sources: Sequence[str], seed: int) -> int:
    """The records of a pass over instruction sets, streamed or not."""
    if isinstance(dataset, Dataset):
        return len(dataset)
    return sum(group.num_rows for group in list_row_groups(tuple(sources), seed))


def digest_stream(sources: Sequence[str], seed: int) -> str:
    """A hash of all row groups, which changes when the shards change."""
    names = [f"{group.file.rpartition('/')[2]} {group[1:]}" for group in list_row_groups(tuple(sources), seed)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def stream_instructions(sources: Sequence[str], args: TrainingArguments, skip_steps: int = 0) -> IterableDataset:
    """Stream the records of instruction sets without end.

    Args:
        sources (`Sequence[str]`): `FOLDER` or `FOLDER@WEIGHT`; a folder may be an address that `fsspec` understands.
        args (`TrainingArguments`): The seed, and the sizes of batches and of the run.
        skip_steps (`int`): Steps that were taken before: their records come as `None`, and are not read.

    Raises:
        ValueError: If there are fewer row groups than processes and workers that read them.

    Returns:
        `datasets.IterableDataset`: With the columns `images`, not decoded, and `messages`. An unusable record raises
        `UnusableRecord` when it is read.
    """
    groups = list_row_groups(tuple(sources), args.seed)
    readers = args.world_size * max(1, args.dataloader_num_workers)
    if len(groups) < readers:
        raise ValueError(
            f"`instructions` hold {len(groups)} row groups for {readers} readers ({args.world_size} processes, "
            f"`dataloader_num_workers` {args.dataloader_num_workers}): use fewer workers, or write smaller row groups."
        )
    order = np.random.default_rng(args.seed).permutation(len(groups))
    size = min(GROUPS_OF_WINDOW, len(groups) // readers)
    windows = [[groups[index] for index in order[start : start + size]] for start in range(0, len(order), size)]
    references = IterableDataset.from_generator(_references, gen_kwargs={"windows": windows, "seed": args.seed})
    reader = RecordReader(skip_steps * args.gradient_accumulation_steps, args.per_device_train_batch_size)
    return references.repeat(None).map(reader, with_indices=True, input_columns=REFERENCE, remove_columns=REFERENCE)


def _references(windows: list[list[RowGroup]], seed: int) -> Iterator[dict[str, Any]]:
    """The records of each window in random order."""
    for window in windows:
        rows = [(group.file, group.index, row) for group in window for row in range(group.num_rows)]
        for index in np.random.default_rng([seed, *(group.index for group in window)]).permutation(len(rows)):
            yield dict(zip(REFERENCE, rows[index], strict=True))


@dataclass
class RecordReader:
    """Reads the record that a reference names, unless a run before this one has trained on it.

    Args:
        skip_batches (`int`): Batches of this process that were trained on.
        batch_size (`int`): Records of a batch.
    """

    skip_batches: int
    batch_size: int

    def __call__(self, file: str, group: int, row: int, position: int) -> dict[str, Any]:
        """The record at a position of this reader's stream."""
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        # Workers take turns, a batch each.
        if position < self.batch_size * len(range(worker, self.skip_batches, num_workers)):
            return dict.fromkeys(COLUMNS)
        record = _read_row_group(file, group)[row]
        if problem := examine_record(record)["problem"]:
            raise UnusableRecord(
                f"Record {row} of row group {group} of `{file}` {problem}: correct it, or leave it out."
            )
        return record


@lru_cache(maxsize=GROUPS_OF_WINDOW)
def _read_row_group(file: str, group: int) -> Dataset:
    try:
        with fsspec.open(file) as opened:
            table = parquet.ParquetFile(opened).read_row_group(group, columns=list(COLUMNS))
        features = Features.from_arrow_schema(table.schema) | {"images": List(Image(decode=False))}
        return Dataset(table_cast(table, Features(features).arrow_schema))
    except (ArrowException, ValueError, TypeError) as error:
        raise UnusableRecord(f"`{file}` cannot be read ({' '.join(str(error).split())}).") from error
