"""Annotated questions in the formats of their data sets, made into instruction sets in TRL's vision format.

An instruction set is a folder:

    data/train-<block>.parquet   `images` (paths, decoded when read), `messages`, `scene_id`, `question_type`,
                                 `source` and `id`
    frames/, marked/             frames of videos, and images with markers drawn on them
    manifest.json                options, fingerprint of the input, and counts
    README.md                    says to the `datasets` library where the rows are, among all these files
    rejected.jsonl               records that could not be used: line, id, reason and detail

The input is read in blocks of records; each block becomes a file of its own, in whichever process. So memory does not
grow with the number of records, and a conversion that was killed goes on after its last complete block and ends with
the same bytes. `data` appears when all of it is there; until then everything is in `.unfinished`.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..common.files import (
    claim_folder,
    remove_unfinished,
    replace_when_complete,
    require_same_settings,
    write_json,
    write_text,
)
from ..common.processes import call_in_processes
from ..common.records import BadRecord, check_text, parse_record, read_records
from ..common.videos import spread_evenly
from .exclusions import BENCHMARKS, fetch_benchmark_scenes, find_excluded, find_scene, read_excluded
from .media import (
    MAX_VIDEO_FRAMES,
    MediaFolders,
    find_image,
    find_video,
    forget_media,
    mark_images,
)

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
# Raised when the same input would give other bytes.
FORMAT = 1
# Small, as progress shows block by block, and videos that are seen first take seconds each.
BLOCK_RECORDS, BLOCK_BYTES = 512, 16 << 20
# What is counted by name, and the name of what is left when there are more names than anyone would read.
TABLES = ("rejected_by_reason", "excluded_by_scene", "question_types_by_source")
MAX_COUNTED, OTHERS = 10_000, "others"
UNFINISHED = ".unfinished"
# Without it the `datasets` library takes frames in a folder named `train` for the data set.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
"""
PLACEHOLDER = re.compile("(<image>|<video>)")
# In the first turn the official code drops one line break after each placeholder.
FIRST_PLACEHOLDER = re.compile("(<image>|<video>)\n?")
# A chat template's own marks would be read as such: a stray image mark ends a training run.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")


@dataclass(frozen=True)
class RawSample:
    """A record of any format, in common terms.

    Args:
        conversations (`Any`): Turns `{"from": "human" | "gpt", "value": text}`, as they are in the record.
        question_type (`Any`): Type of the question; `unknown` if there is none.
        images (`Sequence[str]`, *optional*): Paths of images, relative to the media folder.
        video (`Any`, *optional*): Path of a video, or folder of frames, in place of images.
        id (`Any`, *optional*): Text or number; defaults to the source and the record's line.
        scene_id (`Any`, *optional*): Scene; by default found in the path.
        data_source (`Any`, *optional*): What the record comes from; by default the first folder of its path.
        spar_info (`Mapping`, *optional*): SPAR's markers, to be drawn on copies of the images.
    """

    conversations: Any
    question_type: Any
    images: Sequence[str] = ()
    video: Any = None
    id: Any = None
    scene_id: Any = None
    data_source: Any = None
    spar_info: Mapping[str, Any] | None = None


def read_common(record: Mapping[str, Any], **known: Any) -> RawSample:
    """A sample of the fields that all formats share, but for those that are known."""
    images = record.get("images") or record.get("image") or []
    if not isinstance(images, (str, list)):
        raise BadRecord("malformed record", f"images are a path or a list of paths, got {images!r:.200}")
    fields = {name: record.get(name) for name in ("conversations", "question_type", "id", "data_source")}
    fields |= {"images": [images] if isinstance(images, str) else images, "video": record.get("video") or None}
    return RawSample(**fields | known)


@dataclass(frozen=True)
class Job:
    """What each process needs to convert a block."""

    read_record: Callable[[dict[str, Any]], RawSample]
    source: str
    folders: MediaFolders
    excluded: frozenset[str]


@dataclass
class Block:
    """Outcome of a block: counts by name, or by name and value, and the rejected records."""

    counts: Counter = field(default_factory=Counter)
    tables: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in TABLES})
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def count(self, table: str, value: str) -> None:
        self.tables[table][value] += 1


def convert(
    read_record: Callable[[dict[str, Any]], RawSample],
    source: str,
    input_file: str | os.PathLike,
    media_root: str | os.PathLike,
    output: str | os.PathLike,
    excluded: Iterable[str],
    workers: int = 1,
    max_records: int | None = None,
) -> dict[str, Any]:
    """Convert an annotation file, or go on with a conversion that was interrupted.

    Args:
        read_record (`Callable[[dict], RawSample]`): Reads a record of the data set; a function of a module.
        source (`str`): Name of the data set.
        input_file (`str` or `os.PathLike`): Lines of JSON, or one JSON list.
        media_root (`str` or `os.PathLike`): Folder that the records' paths are relative to.
        output (`str` or `os.PathLike`): Folder of the instruction set.
        excluded (`Iterable[str]`): Scenes to leave out; of ScanNet all scans of their rooms are left out.
        workers (`int`, *optional*, defaults to 1): Number of processes; 1 converts in this one.
        max_records (`int`, *optional*): Read no more than the first so many records.

    Returns:
        `dict[str, Any]`: The manifest.

    Raises:
        FileNotFoundError: If there is no input or no media folder.
        ValueError: If a number is out of range, `output` holds something else or was made with other options or from
            another input, another process is writing to it, or no record can be used.
    """
    _check_inputs(input_file, media_root, workers, max_records)
    forget_media()
    output = Path(output).absolute()
    excluded = frozenset(excluded)
    options = {
        "format": FORMAT,
        "source": source,
        "media_root": os.path.abspath(media_root),
        "input_sha256": _file_sha256(input_file),
        "excluded_sha256": hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest(),
        "max_records": max_records,
    }
    if (output / "data").exists():
        return _finished(output, options)
    _claim(output)
    try:
        # The operating system lets go of the lock when this process ends in whatever way.
        with FileLock(output / UNFINISHED / "lock", timeout=0):
            if (output / "data").exists():
                return _finished(output, options)
            return _convert(read_record, output, options, input_file, excluded, workers)
    except Timeout:
        raise ValueError(
            f"Another process is converting to {output}: wait until it has ended, or choose another output folder."
        ) from None


def _convert(
    read_record: Callable[[dict[str, Any]], RawSample],
    output: Path,
    options: Mapping[str, Any],
    input_file: str | os.PathLike,
    excluded: frozenset[str],
    workers: int,
) -> dict[str, Any]:
    unfinished = output / UNFINISHED
    claim_folder(unfinished / "options.json", json.dumps(options))
    scratch = unfinished / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in (scratch, unfinished / "data", unfinished / "blocks"):
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
    folders = MediaFolders(options["media_root"], str(output), str(scratch))
    job = Job(read_record, options["source"], folders, excluded)
    num_blocks = _convert_blocks(job, input_file, workers, options["max_records"])
    manifest = _merge(unfinished, num_blocks, output)
    if not manifest["kept"]:
        raise ValueError(_nothing_kept(input_file, manifest, output))
    manifest = {"options": options, "input": os.path.basename(input_file), "listed_scenes": len(excluded)} | manifest
    write_json(output / "manifest.json", manifest, sort_keys=False)
    write_text(output / "README.md", CARD)
    os.replace(unfinished / "data", output / "data")
    shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _check_inputs(
    input_file: str | os.PathLike, media_root: str | os.PathLike, workers: int, max_records: int | None
) -> None:
    if not os.path.isfile(input_file):
        raise FileNotFoundError(f"There is no file `{input_file}` to read records from.")
    if not os.path.isdir(media_root):
        raise FileNotFoundError(f"There is no folder `{media_root}` that images and videos could be in.")
    if workers < 1 or (max_records is not None and max_records < 1):
        raise ValueError(f"Workers and records must be at least 1, got workers={workers}, max_records={max_records}.")


def _finished(output: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Manifest of a conversion that is complete, if it was the same one."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        made_with = manifest["options"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ValueError(_foreign(output, "data")) from None
    require_same_settings(output, made_with, options)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    logger.warning(f"{output} is complete. To convert again, as after adding media, delete it or choose another.")
    return manifest


def _claim(output: Path) -> None:
    """Make the output folder, or go on with it, but take no folder that holds anything else."""
    if output.is_dir() and not (output / UNFINISHED).exists():
        if others := sorted(name for name in os.listdir(output) if not name.startswith(".")):
            raise ValueError(_foreign(output, others[0]))
    (output / UNFINISHED).mkdir(parents=True, exist_ok=True)


def _foreign(output: Path, name: str) -> str:
    return f"{output} holds `{name}`, which no conversion has left there: choose an empty or new output folder."


def _nothing_kept(input_file: str | os.PathLike, manifest: Mapping[str, Any], output: Path) -> str:
    reasons = ", ".join(f"{reason} ({number})" for reason, number in manifest["rejected_by_reason"].items())
    return (
        f"None of the {manifest['records']} records of `{input_file}` can be used: {manifest['excluded']} are of "
        f"excluded scenes, {manifest['rejected']} are rejected{f' for {reasons}' if reasons else ''}; see "
        f"{output / 'rejected.jsonl'}, put right what is wrong, and delete {output}."
    )


def _convert_blocks(job: Job, input_file: str | os.PathLike, workers: int, max_records: int | None) -> int:
    """Convert all blocks that are not there yet; returns how many blocks there are."""
    num_blocks = kept_blocks = 0

    def missing() -> Iterator[tuple[Job, int, list[tuple[int, bytes | BadRecord]]]]:
        nonlocal num_blocks, kept_blocks
        for index, block in enumerate(_blocks(itertools.islice(read_records(input_file), max_records))):
            num_blocks += 1
            if _block_file(job, index).exists():
                kept_blocks += 1
                progress.update(_num_bytes(block))
            else:
                yield job, index, block

    totals = Counter()
    with tqdm(total=os.path.getsize(input_file), desc=job.source, unit="B", unit_scale=True) as progress:
        for num_bytes, counts in call_in_processes(_convert_block, missing(), workers):
            totals.update(counts)
            progress.update(num_bytes)
            progress.set_postfix(records=totals["records"], rejected=totals["rejected"])
        if kept_blocks:
            progress.write(
                f"{kept_blocks} of {num_blocks} blocks were finished before and are kept, with what they rejected."
            )
    return num_blocks


def _blocks(records: Iterator[tuple[int, bytes | BadRecord]]) -> Iterator[list[tuple[int, bytes | BadRecord]]]:
    """Records in blocks of a limited number, and of a limited size but for the last of each."""
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
    """Convert records and write them, and then what became of them: that file tells that the block is complete."""
    block, rows = Block(), []
    for line, raw in records:
        block.counts["records"] += 1
        record = {}
        try:
            record = parse_record(raw)
            row = _convert_record(job, record, line, block)
        except BadRecord as error:
            block.counts["rejected"] += 1
            block.count("rejected_by_reason", error.reason)
            block.rejected.append(_rejection(record, line, error))
            continue
        if row is not None:
            rows.append(row)
    table = Path(job.folders.output) / UNFINISHED / "data" / f"train-{index:06d}.parquet"
    if rows:
        with replace_when_complete(table) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), temporary, compression="zstd")
    else:  # there may be one of an earlier attempt, when media were there
        table.unlink(missing_ok=True)
    outcome = {"counts": block.counts, "tables": block.tables, "rejected": block.rejected}
    write_text(_block_file(job, index), json.dumps(outcome))
    return _num_bytes(records), block.counts


def _convert_record(job: Job, record: dict[str, Any], line: int, block: Block) -> dict[str, Any] | None:
    """Row of a record, or nothing if its scene is excluded; counts on `block` if it is not rejected."""
    sample = job.read_record(record)
    if bool(sample.images) == (sample.video is not None):
        raise BadRecord("malformed record", "a record has either images or a video")
    paths = list(sample.images) if sample.video is None else [sample.video]
    for path in paths:
        check_text(path, "the path of an image or video")
    scene_id = check_text(sample.scene_id or find_scene(paths[0], is_video=sample.video is not None), "a scene")
    if excluded := find_excluded(paths + [scene_id], job.excluded):
        block.counts["excluded"] += 1
        block.count("excluded_by_scene", excluded)
        return None
    if not isinstance(sample.id, (str, int, type(None))):
        raise BadRecord("malformed record", f"an id is text or a number, got {sample.id!r:.200}")
    row_id = f"{job.source}-{line}" if sample.id is None else check_text(str(sample.id), "an id")
    question_type = check_text(sample.question_type or "unknown", "the type of a question")
    folder, _, name = paths[0].partition("/")
    data_source = check_text(sample.data_source or (folder if name else job.source), "the source of data")
    turns, dropped = read_turns(sample.conversations)
    turns, rewritten = _name_video(sample, turns)
    needed = _count_placeholders(sample, turns)
    images = _find_media(job.folders, sample)
    if needed == "<video>" and sample.video is None:
        images = [images[index] for index in spread_evenly(len(images), MAX_VIDEO_FRAMES)]
    row = {
        "images": [{"bytes": None, "path": path} for path in images],
        "messages": compose_messages(turns, len(images)),
        "scene_id": scene_id,
        "question_type": question_type,
        "source": job.source,
        "id": row_id,
    }
    block.counts.update(
        kept=1, images=len(images), leading_turns_dropped=dropped, video_placeholders_rewritten=rewritten
    )
    block.count("question_types_by_source", f"{data_source}\t{question_type}")
    return row


def read_turns(conversations: Any) -> tuple[list[tuple[str, str]], int]:
    """Check the turns of a conversation.

    Args:
        conversations (`Any`): A list of turns `{"from": "human" | "gpt", "value": text}`.

    Returns:
        `tuple[list[tuple[str, str]], int]`: Role (`user` or `assistant`) and text of each turn, and the number of
        leading turns that are not the human's and are dropped, as in the official training: 0 or 1.

    Raises:
        BadRecord: If there is no answer, or turns do not alternate between question and answer.
    """
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise BadRecord("malformed record", f"`conversations` is a list of turns, got {conversations!r:.200}")
    dropped = int(bool(conversations) and conversations[0].get("from") != "human")
    turns = conversations[dropped:]
    speakers = [turn.get("from") for turn in turns]
    if "gpt" not in speakers or speakers[-1] != "gpt":
        raise BadRecord("no answer turn", f"a conversation ends with a turn from gpt; turns are from {speakers}")
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        raise BadRecord("turns do not alternate", f"human and gpt take turns; turns are from {speakers}")
    result = []
    for role, turn in zip(itertools.cycle(["user", "assistant"]), turns, strict=False):
        text = check_text(turn.get("value"), "the value of a turn")
        if not text.strip():
            reason = "no answer turn" if role == "assistant" else "malformed record"
            raise BadRecord(reason, f"a turn from {turn['from']} is empty")
        if token := CONTROL_TOKEN.search(text):
            raise BadRecord("control token in text", f"{token[0]} would be read as a part of the chat template")
        result.append((role, text))
    return result, dropped


def compose_messages(turns: Sequence[tuple[str, str]], num_images: int) -> list[dict[str, Any]]:
    """Messages in TRL's vision format, with images where the placeholders are.

    Args:
        turns (`Sequence[tuple[str, str]]`): Role and text; the user's text with `<image>` for each image or one
            `<video>` for all. In the first turn a line break after a placeholder is dropped, as officially.
        num_images (`int`): Number of images of the record.

    Returns:
        `list[dict[str, Any]]`: `{"role", "content": [{"type": "image" | "text", "text"}]}`; the text of an image is
        None.
    """
    messages = []
    for index, (role, text) in enumerate(turns):
        if role == "assistant":
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
            continue
        content = []
        for piece in (FIRST_PLACEHOLDER if index == 0 else PLACEHOLDER).split(text):
            if piece in ("<image>", "<video>"):
                content += [{"type": "image", "text": None}] * (num_images if piece == "<video>" else 1)
            elif piece:
                content.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": content})
    return messages


def _name_video(sample: RawSample, turns: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Turn `<image>` into `<video>` in questions about a video, which VSI-590K and VLM-3R write so."""
    if sample.video is None:
        return turns, 0
    named = [(role, text.replace("<image>", "<video>") if role == "user" else text) for role, text in turns]
    return named, int(named != turns)


def _count_placeholders(sample: RawSample, turns: Sequence[tuple[str, str]]) -> str:
    """Which placeholder the questions use; raises `BadRecord` where their number is not that of the media."""
    found = Counter(match for role, text in turns if role == "user" for match in PLACEHOLDER.findall(text))
    if found == {"<video>": 1}:
        return "<video>"
    if sample.video is None and found == {"<image>": len(sample.images)}:
        return "<image>"
    media = "one video" if sample.video is not None else f"{len(sample.images)} images"
    seen = " and ".join(f"{number} {name}" for name, number in sorted(found.items())) or "no placeholder"
    raise BadRecord("wrong number of placeholders", f"{seen} for {media}")


def _find_media(folders: MediaFolders, sample: RawSample) -> list[str]:
    if sample.video is not None:
        return find_video(folders, sample.video)
    if sample.spar_info is not None:
        return mark_images(folders, sample.images, sample.spar_info)
    return [find_image(folders, path) for path in sample.images]


def _rejection(record: Mapping[str, Any], line: int, error: BadRecord) -> dict[str, Any]:
    named = record.get("id")
    return {
        "line": line,
        "id": named if isinstance(named, (str, int)) else None,
        "reason": error.reason,
        "detail": error.detail,
    }


def _merge(unfinished: Path, num_blocks: int, output: Path) -> dict[str, Any]:
    """Write the rejected records of all blocks, and add up their counts."""
    counts, tables = Counter(), {name: Counter() for name in TABLES}
    rejected = output / "rejected.jsonl"
    with replace_when_complete(rejected) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for index in range(num_blocks):
            outcome = json.loads((unfinished / "blocks" / f"{index:06d}.json").read_text(encoding="utf-8"))
            counts.update(outcome["counts"])
            for name, values in outcome["tables"].items():
                for value, number in values.items():
                    known = value in tables[name] or len(tables[name]) < MAX_COUNTED
                    tables[name][value if known else OTHERS] += number
            file.writelines(json.dumps(rejection) + "\n" for rejection in outcome["rejected"])
    names = ("records", "kept", "excluded", "rejected", "images", "leading_turns_dropped")
    totals = {name: counts[name] for name in (*names, "video_placeholders_rewritten")}
    totals |= {name: dict(sorted(tables[name].items())) for name in ("rejected_by_reason", "excluded_by_scene")}
    return totals | _count_by_source(tables["question_types_by_source"])


def _count_by_source(pairs: Mapping[str, int]) -> dict[str, Any]:
    """Numbers of rows by type of question, by source, and by both."""
    types, sources, types_by_source = Counter(), Counter(), {}
    for pair, number in sorted(pairs.items()):
        source, _, question_type = pair.partition("\t")
        question_type = question_type or OTHERS
        types[question_type] += number
        sources[source] += number
        types_by_source.setdefault(source, {})[question_type] = number
    return {
        "question_types": dict(sorted(types.items())),
        "sources": dict(sources),
        "question_types_by_source": types_by_source,
    }


def _block_file(job: Job, index: int) -> Path:
    return Path(job.folders.output) / UNFINISHED / "blocks" / f"{index:06d}.json"


def _num_bytes(records: Sequence[tuple[int, bytes | BadRecord]]) -> int:
    """Bytes of the input that records take, with the line break or comma after each."""
    return sum(len(raw) + 1 for _, raw in records if not isinstance(raw, BadRecord))


def _file_sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _excluded_scenes(options: argparse.Namespace) -> frozenset[str]:
    if options.no_exclude:
        return frozenset()
    return read_excluded(options.exclude) if options.exclude else fetch_benchmark_scenes()


def run_command_line(
    read_record: Callable[[dict[str, Any]], RawSample],
    source: str,
    description: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Command line of a converter, `spa3r convert-data <source>`.

    Args:
        read_record (`Callable[[dict], RawSample]`): Reads a record of the data set.
        source (`str`): Name of the data set.
        description (`str`): What `--help` says.
        arguments (`Sequence[str]`, *optional*): Command line; defaults to that of the process.
    """
    program = f"spa3r convert-data {source.replace('_', '-')}"
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="annotations: lines of JSON, or one JSON list")
    parser.add_argument("--media-root", required=True, help="folder that the annotations' paths are relative to")
    parser.add_argument("--output", required=True, help="folder of the instruction set; an earlier run is resumed")
    exclusion = parser.add_mutually_exclusive_group()
    exclusion.add_argument(
        "--exclude",
        nargs="+",
        metavar="FILE",
        help="scenes to leave out: lists, one id a line, or benchmarks' own files, Parquet or JSON with the column "
        f"scene_name (default: the test sets of {' and '.join(BENCHMARKS)}, fetched from the Hub)",
    )
    exclusion.add_argument("--no-exclude", action="store_true", help="leave no scene out")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--max-records", type=int, help="read only the first so many records")
    options = parser.parse_args(arguments)
    try:
        manifest = convert(
            read_record,
            source,
            options.input,
            options.media_root,
            options.output,
            _excluded_scenes(options),
            options.workers,
            options.max_records,
        )
    except BrokenProcessPool:
        sys.exit(
            f"{program}: a worker ended abruptly, as when memory runs out; run again to go on, with fewer `--workers`."
        )
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        # Of the operating system's own errors, such as a full disk, conversions recover.
        again = "; what was converted is kept: put it right and run again" if getattr(error, "errno", None) else ""
        sys.exit(f"{program}: {error}{again}")
    print(
        f"{manifest['kept']} of {manifest['records']} records are in {options.output}; {manifest['excluded']} are of "
        f"excluded scenes, {manifest['rejected']} are rejected (rejected.jsonl says why)."
    )
