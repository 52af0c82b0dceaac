"""Convert the records of a published data set to an instruction set, in blocks that survive an interruption.

An instruction set is a folder:

    data/train-<block>.parquet   the rows; see `FEATURES`. Images are paths, decoded when they are read
    frames/, marked/             frames of videos, and images with markers drawn on them; see `media`
    manifest.json                options, fingerprint of the input, and counts
    README.md                    tells the `datasets` library which of these files hold the rows
    rejected.jsonl               records that could not be used: line, id, reason and detail

The input is read in blocks of records, and each block becomes one file, in any process: memory does not grow with the
number of records, and an interrupted conversion resumes after its last complete block and ends with the same bytes.
Unfinished work is in `.unfinished`; `data` appears when all blocks are complete.

The engines of `datasets` were measured instead: `from_generator` starts again after a kill, `map` resumes whole shards
with the same number of processes only, and `to_parquet` refuses a compression for image columns, which changes the
bytes. For 100,000 records they took 18.4 s of CPU time and 587 MB, where this engine took 10.4 s and 466 MB.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..common.exclusions import count_found, find_excluded
from ..common.files import (
    claim_folder,
    remove_unfinished,
    replace_when_complete,
    require_same_settings,
    write_json,
    write_text,
)
from ..common.processes import call_in_processes
from ..common.records import BadRecord, parse_record, read_records
from .media import MediaFolders, clear_caches
from .rows import ConvertedRecord, ExcludedScene, Job, RawSample, convert_record, name_media

logger = logging.getLogger(__name__)

FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "scene_id": Value("string"),
        "question_type": Value("string"),
        "source": Value("string"),
        "id": Value("string"),
    }
)
# Increase it when the same input would give other bytes.
FORMAT = 1
# Small: progress shows block by block, and decoding a new video takes seconds.
BLOCK_RECORDS, BLOCK_BYTES = 512, 16 << 20
# Most names that a table of counts holds; further ones are counted together.
MAX_COUNTED, OTHERS = 10_000, "others"
UNFINISHED = ".unfinished"
# Without it, the `datasets` library takes a folder of frames named `train` for the data set.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
"""


@dataclass
class Tally:
    """Counts of a block or of a whole conversion, as numbers and as numbers by name."""

    counts: Counter = field(default_factory=Counter)
    rejected_by_reason: Counter = field(default_factory=Counter)
    excluded_by_scene: Counter = field(default_factory=Counter)
    # By "<source>\t<type>".
    question_types_by_source: Counter = field(default_factory=Counter)

    def add_row(self, converted: ConvertedRecord) -> None:
        row, data_source, num_dropped, num_rewritten = converted
        self.counts.update(
            kept=1,
            images=len(row["images"]),
            leading_turns_dropped=num_dropped,
            video_placeholders_rewritten=num_rewritten,
        )
        self.question_types_by_source[f"{data_source}\t{row['question_type']}"] += 1

    def add(self, other: "Tally") -> None:
        """Add another tally; a table that is full counts further names as `others`."""
        self.counts.update(other.counts)
        for table in ("rejected_by_reason", "excluded_by_scene", "question_types_by_source"):
            mine = getattr(self, table)
            for name, number in getattr(other, table).items():
                mine[name if name in mine or len(mine) < MAX_COUNTED else OTHERS] += number

    def summary(self) -> dict[str, Any]:
        """The counts as the manifest holds them; rows also by type, by source, and by both."""
        names = ("records", "kept", "excluded", "rejected", "images", "leading_turns_dropped")
        totals = {name: self.counts[name] for name in (*names, "video_placeholders_rewritten")}
        types, sources, types_by_source = Counter(), Counter(), {}
        for pair, number in sorted(self.question_types_by_source.items()):
            source, _, question_type = pair.partition("\t")
            question_type = question_type or OTHERS
            types[question_type] += number
            sources[source] += number
            types_by_source.setdefault(source, {})[question_type] = number
        return totals | {
            "rejected_by_reason": dict(sorted(self.rejected_by_reason.items())),
            "excluded_by_scene": dict(sorted(self.excluded_by_scene.items())),
            "question_types": dict(sorted(types.items())),
            "sources": dict(sources),
            "question_types_by_source": types_by_source,
        }


def convert(
    read_record: Callable[[dict[str, Any]], RawSample],
    source: str,
    input_file: str | os.PathLike,
    media_root: str | os.PathLike,
    output: str | os.PathLike,
    excluded: Iterable[str],
    workers: int = 1,
    max_records: int | None = None,
    exclude_may_match_nothing: bool = True,
) -> dict[str, Any]:
    """Convert an annotation file, or resume a conversion that was interrupted.

    Args:
        read_record (`Callable[[dict], RawSample]`): Reads a record of the data set; a module-level function.
        source (`str`): Name of the data set.
        input_file (`str` or `os.PathLike`): Lines of JSON, or one JSON list.
        media_root (`str` or `os.PathLike`): Folder that the records' paths are relative to.
        output (`str` or `os.PathLike`): Folder of the instruction set.
        excluded (`Iterable[str]`): Scenes to leave out. A ScanNet scan excludes every scan of its room.
        workers (`int`, *optional*, defaults to 1): Number of processes; 1 converts in this one.
        max_records (`int`, *optional*): Read only this many records, from the beginning.
        exclude_may_match_nothing (`bool`, *optional*, defaults to `True`): Whether `excluded` may leave out no record.

    Returns:
        `dict[str, Any]`: The manifest.

    Raises:
        FileNotFoundError: If the input or the media folder does not exist.
        ValueError: If a number is out of range, `output` holds other files or was made with other options or from
            another input, another process is writing to it, no record can be used, or none is about an excluded scene
            and `exclude_may_match_nothing` is false.
    """
    _check_arguments(input_file, media_root, workers, max_records)
    clear_caches()
    output = Path(output).absolute()
    excluded = frozenset(excluded)
    with open(input_file, "rb") as file:
        input_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    options = {
        "format": FORMAT,
        "source": source,
        "media_root": os.path.abspath(media_root),
        "input_sha256": input_sha256,
        "excluded_sha256": hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest(),
        "max_records": max_records,
    }
    if (output / "data").exists():
        return _read_finished(output, options)
    if excluded and not exclude_may_match_nothing:
        _require_excluded_record(read_record, input_file, excluded, max_records)
    _create_unfinished(output)
    try:
        # The operating system releases the lock even if this process is killed.
        with FileLock(output / UNFINISHED / "lock", timeout=0):
            if (output / "data").exists():
                return _read_finished(output, options)
            num_blocks = _convert(read_record, output, options, input_file, excluded, workers)
            return _finish(output, options, input_file, num_blocks, excluded)
    except Timeout:
        raise ValueError(
            f"Another process is converting to `{output}`: wait until it has ended, or choose another output folder."
        ) from None


def _check_arguments(
    input_file: str | os.PathLike, media_root: str | os.PathLike, workers: int, max_records: int | None
) -> None:
    if not os.path.isfile(input_file):
        raise FileNotFoundError(f"The annotation file `{input_file}` does not exist; check its path.")
    if not os.path.isdir(media_root):
        raise FileNotFoundError(
            f"The media folder `{media_root}` does not exist; name the folder that the records' paths are relative to."
        )
    for name, value in (("workers", workers), ("max_records", max_records)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _require_excluded_record(
    read_record: Callable[[dict[str, Any]], RawSample],
    input_file: str | os.PathLike,
    excluded: frozenset[str],
    max_records: int | None,
) -> None:
    """Refuse a list of scenes that no record is about, before hours of conversion; reads up to the first match."""
    num_records = 0
    for _, raw in itertools.islice(read_records(input_file), max_records):
        num_records += 1
        try:
            paths, scene_id = name_media(read_record(parse_record(raw)))
        except BadRecord:
            continue
        if find_excluded([*paths, scene_id], excluded):
            return
    raise ValueError(
        f"`--exclude` does nothing: none of the {num_records} records of `{input_file}` is about one of the "
        f"{len(excluded)} listed scenes, such as {min(excluded)!r}. Correct the list, or run the command again with "
        "`--exclude-may-match-nothing`."
    )


def _read_finished(output: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a complete conversion if it was made with the same options."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        made_with = manifest["options"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ValueError(_describe_foreign_file(output, "data")) from None
    require_same_settings(output, made_with, options)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    logger.warning(f"`{output}` is complete. To convert again, for example after adding media, delete it first.")
    return manifest


def _create_unfinished(output: Path) -> None:
    """Create the output folder unless it exists; refuse one that holds anything but an unfinished conversion."""
    if output.is_dir() and not (output / UNFINISHED).exists():
        if others := sorted(name for name in os.listdir(output) if not name.startswith(".")):
            raise ValueError(_describe_foreign_file(output, others[0]))
    (output / UNFINISHED).mkdir(parents=True, exist_ok=True)


def _describe_foreign_file(output: Path, name: str) -> str:
    return f"`{output}` holds `{name}`, which is not from a conversion: choose an empty or new output folder."


def _convert(
    read_record: Callable[[dict[str, Any]], RawSample],
    output: Path,
    options: Mapping[str, Any],
    input_file: str | os.PathLike,
    excluded: frozenset[str],
    workers: int,
) -> int:
    """Convert all blocks, and return their number."""
    unfinished = output / UNFINISHED
    claim_folder(unfinished / "options.json", json.dumps(options))
    scratch = unfinished / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in (scratch, unfinished / "data", unfinished / "blocks"):
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
    folders = MediaFolders(options["media_root"], str(output), str(scratch))
    job = Job(read_record, options["source"], folders, excluded)
    return _convert_blocks(job, input_file, workers, options["max_records"])


def _finish(
    output: Path,
    options: Mapping[str, Any],
    input_file: str | os.PathLike,
    num_blocks: int,
    excluded: frozenset[str],
) -> dict[str, Any]:
    """Make the blocks an instruction set, and return its manifest."""
    unfinished = output / UNFINISHED
    manifest = _merge_blocks(unfinished, num_blocks, output)
    if not manifest["kept"]:
        raise ValueError(_describe_empty_set(input_file, manifest, output))
    scenes = {
        "num_scenes": _count_scenes(unfinished / "data") + len(manifest["excluded_by_scene"]),
        "listed_scenes": len(excluded),
        "listed_scenes_found": count_found(manifest["excluded_by_scene"], excluded),
    }
    manifest = {"options": options, "input": os.path.basename(input_file)} | scenes | manifest
    write_json(output / "manifest.json", manifest, sort_keys=False)
    write_text(output / "README.md", CARD)
    os.replace(unfinished / "data", output / "data")
    shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _count_scenes(folder: Path) -> int:
    scenes: set[str] = set()
    for file in folder.glob("*.parquet"):
        scenes.update(pq.read_table(file, columns=["scene_id"])["scene_id"].to_pylist())
    return len(scenes)


def _describe_empty_set(input_file: str | os.PathLike, manifest: Mapping[str, Any], output: Path) -> str:
    reasons = ", ".join(f"{reason} ({number})" for reason, number in manifest["rejected_by_reason"].items())
    return (
        f"None of the {manifest['records']} records of `{input_file}` can be used: {manifest['excluded']} are about "
        f"excluded scenes, {manifest['rejected']} are rejected{f': {reasons}' if reasons else ''}. See "
        f"`{output / 'rejected.jsonl'}`, correct the input, the media folder or the exclusions, and delete `{output}`."
    )


def _convert_blocks(job: Job, input_file: str | os.PathLike, workers: int, max_records: int | None) -> int:
    """Convert the blocks that are not complete yet, and return the number of all blocks."""
    num_blocks = num_complete = 0

    def incomplete_blocks() -> Iterator[tuple[Job, int, list[tuple[int, bytes | BadRecord]]]]:
        nonlocal num_blocks, num_complete
        for index, block in enumerate(_split(itertools.islice(read_records(input_file), max_records))):
            num_blocks += 1
            if _outcome_file(job, index).exists():
                num_complete += 1
                progress.update(_num_bytes(block))
            else:
                yield job, index, block

    totals = Counter()
    with tqdm(total=os.path.getsize(input_file), desc=job.source, unit="B", unit_scale=True) as progress:
        for num_bytes, counts in call_in_processes(_convert_block, incomplete_blocks(), workers):
            totals.update(counts)
            progress.update(num_bytes)
            progress.set_postfix(records=totals["records"], rejected=totals["rejected"])
        if num_complete:
            progress.write(f"Resumed: {num_complete} of {num_blocks} blocks were complete, with their rejections.")
    return num_blocks


def _split(records: Iterator[tuple[int, bytes | BadRecord]]) -> Iterator[list[tuple[int, bytes | BadRecord]]]:
    """Split records into blocks that end when they reach `BLOCK_RECORDS` or `BLOCK_BYTES`."""
    block, num_bytes = [], 0
    for line, raw in records:
        block.append((line, raw))
        num_bytes += 0 if isinstance(raw, BadRecord) else len(raw)
        if len(block) == BLOCK_RECORDS or num_bytes >= BLOCK_BYTES:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block


def _convert_block(job: Job, index: int, records: Sequence[tuple[int, bytes | BadRecord]]) -> tuple[int, Counter]:
    """Write the rows of a block, and then its outcome: the file of the outcome marks the block as complete."""
    tally, rows, rejected = Tally(), [], []
    for line, raw in records:
        tally.counts["records"] += 1
        record = {}
        try:
            record = parse_record(raw)
            converted = convert_record(record, line, job)
        except ExcludedScene as excluded:
            tally.counts["excluded"] += 1
            tally.excluded_by_scene[str(excluded)] += 1
        except BadRecord as error:
            tally.counts["rejected"] += 1
            tally.rejected_by_reason[error.reason] += 1
            row_id = record.get("id") if isinstance(record.get("id"), (str, int)) else None
            rejected.append({"line": line, "id": row_id, "reason": error.reason, "detail": error.detail})
        else:
            tally.add_row(converted)
            rows.append(converted.row)
    table = Path(job.folders.output) / UNFINISHED / "data" / f"train-{index:06d}.parquet"
    if rows:
        with replace_when_complete(table) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), temporary, compression="zstd")
    else:  # An earlier attempt may have found media that are gone now.
        table.unlink(missing_ok=True)
    write_text(_outcome_file(job, index), json.dumps(vars(tally) | {"rejected": rejected}))
    return _num_bytes(records), tally.counts


def _merge_blocks(unfinished: Path, num_blocks: int, output: Path) -> dict[str, Any]:
    """Write the rejected records of all blocks to one file, and return the sum of their counts."""
    total = Tally()
    with replace_when_complete(output / "rejected.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for index in range(num_blocks):
            outcome = json.loads((unfinished / "blocks" / f"{index:06d}.json").read_text(encoding="utf-8"))
            file.writelines(json.dumps(rejection) + "\n" for rejection in outcome.pop("rejected"))
            total.add(Tally(**outcome))
    return total.summary()


def _outcome_file(job: Job, index: int) -> Path:
    return Path(job.folders.output) / UNFINISHED / "blocks" / f"{index:06d}.json"


def _num_bytes(records: Sequence[tuple[int, bytes | BadRecord]]) -> int:
    """Bytes of the input that records take, with the line break or comma after each."""
    return sum(len(raw) + 1 for _, raw in records if not isinstance(raw, BadRecord))
