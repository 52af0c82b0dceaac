"""Instruction sets in the format of TRL's SFTTrainer."""

import copy
import glob
import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import PIL.Image
from datasets import Dataset, Image, List, concatenate_datasets, load_dataset
from pyarrow import ArrowException
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ...data_scripts.common.downloads import is_url
from ...data_scripts.common.files import blame_file
from ...data_scripts.common.image_shapes import require_similar_shapes
from ...data_scripts.common.images import BROKEN, UnreadableFrame, open_image, require_file, to_rgb, turn_upright
from ...modeling_spa3r.scene_images import download_image
from ...modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor

COLUMNS = ("images", "messages")
ROLES = ("system", "user", "assistant", "tool")
# Placeholders of other formats, and what the tokenizer would read as a part of the chat template.
LITERAL = re.compile(r"<image>|<video>|<\|[a-z_]+\|>")
END_OF_JPEG = b"\xff\xd9"
# As in `spa3r convert-data`.
MAX_ASPECT_RATIO = 20
# Upper bound on the tokens that a chat template adds to a message, or a processor to an image.
TOKENS_AROUND = 16


def split_source(source: str) -> tuple[str, float]:
    """Split `FOLDER` or `FOLDER@WEIGHT` into folder and weight.

    Raises:
        ValueError: If the weight is not a number above 0.
    """
    folder, mark, text = source.rpartition("@")
    if not mark or Path(source).is_dir():
        return source, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"The weight of an instruction set must be above 0, got `{source}`; leave `@` out for 1.")
    return folder, weight


def load_instructions(sources: list[str], seed: int, columns: Sequence[str] = ()) -> Dataset:
    """Load instruction sets in TRL's conversational vision format, one after another, and check each record.

    Args:
        sources (`list[str]`):
            `FOLDER`, with `data/*.parquet` in it, or `FOLDER@WEIGHT`: 0.25 takes a quarter of its records, 2.5 takes
            all of them twice and half of them once more.
        seed (`int`): Decides which records a fraction takes.
        columns (`Sequence[str]`, *optional*): Columns that are kept besides `images` and `messages`.

    Raises:
        ValueError: If a weight is wrong, a folder has no readable instruction set with images and messages, or a
            record has no answer, a missing image, or another number of images than places for them.

    Returns:
        `datasets.Dataset`: With the columns `images`, not decoded (see `open_images`), and `messages`.
    """
    parts = []
    for source in sources:
        folder, weight = split_source(source)
        files = [str(file) for file in _files(folder)]
        if not files:
            raise ValueError(
                f"`{folder}` holds no instruction set: there is no `data/*.parquet` in it. Make one with `spa3r "
                "convert-data` or `spa3r room-questions`."
            )
        part = _load_files(folder, files)
        kept = [*COLUMNS, *columns]
        if missing := [name for name in kept if name not in part.column_names]:
            way_out = ", or set `grounding_weight` to 0" if set(missing) <= set(columns) else ""
            raise ValueError(
                f"The instruction set `{folder}` has no column {missing}, but {part.column_names}: write it again "
                f"with `spa3r room-questions`{way_out}."
            )
        part = _with_image_column(folder, part.select_columns(kept))
        with blame_file(folder, "write it again, with messages of a role and a content"):
            _check_records(folder, part)
        parts += _weigh(part, weight, seed)
    return concatenate_datasets(parts)


def without_decoding(dataset: Dataset) -> Dataset:
    """Make a data set give its images as `{"bytes", "path"}`, for `open_images`."""
    return dataset.cast_column("images", List(Image(decode=False)))


def open_images(images: Sequence[dict[str, Any] | PIL.Image.Image] | None) -> list[PIL.Image.Image]:
    """Open the images of a record as all other ways in do: upright RGB on white, with errors that name them.

    The library's own decoder stops at damaged EXIF data and keeps 16-bit images, which then become white. Images that
    are open stay as they are.
    """
    return [_open(image) if isinstance(image, dict) else image for image in images or ()]


class InstructionCollator(DataCollatorForVisionLanguageModeling):
    """TRL's own collator, for records whose images are not decoded."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """See `DataCollatorForVisionLanguageModeling`; there is no batch of records that a stream skips."""
        if examples[0]["messages"] is None:
            return {}
        return super().torch_call([example | {"images": open_images(example["images"])} for example in examples])


def _open(image: dict[str, Any]) -> PIL.Image.Image:
    name = image["path"] or "of the instruction set"
    if "://" in name and not image["bytes"]:
        content = download_image(name) if is_url(name) else _read_from_elsewhere(name)
        return to_rgb(turn_upright(open_image(content, name)), name)
    return to_rgb(turn_upright(open_image(io.BytesIO(image["bytes"]) if image["bytes"] else name, name)), name)


def _read_from_elsewhere(name: str) -> io.BytesIO:
    """Read an image from the Hub, from an archive or from whatever else fsspec knows."""
    try:
        with fsspec.open(name, "rb") as file:
            return io.BytesIO(file.read())
    except Exception as error:  # each file system raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFrame(f"The image `{name}` cannot be read: {reason}; check the address.") from error


def _with_image_column(folder: str, part: Dataset) -> Dataset:
    """Take images in the forms that Parquet files hold without the metadata of `datasets`: paths, bytes, or both."""
    try:
        return without_decoding(part)
    except (TypeError, ValueError, ArrowException) as error:
        raise ValueError(
            f"The column `images` of the instruction set `{folder}` holds {part.features['images']}, and no lists of "
            "images: write it as a list of paths, of bytes, or of both as `path` and `bytes`."
        ) from error


def _load_files(folder: str, files: list[str]) -> Dataset:
    try:
        # The library takes paths for patterns.
        return load_dataset("parquet", data_files=[glob.escape(file) for file in files], split="train")
    # A broken file raises errors of any type; a full disk keeps its own error.
    except Exception as error:
        cause = error.__cause__ or error
        if getattr(cause, "errno", None) is not None:
            raise cause from error
        raise ValueError(
            f"The instruction set `{folder}` cannot be read ({' '.join(str(cause).split())}): a file is broken or has "
            "no record; write it again."
        ) from error


def _weigh(part: Dataset, weight: float, seed: int) -> list[Dataset]:
    """Repeat a data set as often as the weight says, and add a fraction of it for the rest."""
    number = math.ceil(weight % 1 * len(part))
    return [part] * int(weight) + ([part.shuffle(seed=seed).select(range(number))] if number else [])


def _check_records(folder: str, part: Dataset):
    """Refuse an instruction set with a record that training could not use, and name the first one."""
    described = part.map(examine_record, remove_columns=list(COLUMNS), desc=f"Checking {folder}")
    problems = described["problem"]
    row = next((row for row, problem in enumerate(problems) if problem), None)
    if row is not None:
        number = sum(map(bool, problems))
        raise ValueError(
            f"Record {row} of the instruction set `{folder}` {problems[row]}: correct it, or leave it out "
            f"({number} of {len(problems)} records have a problem)."
        )
    if missing := _missing_image(part):
        raise ValueError(
            f"The image `{missing}` of the instruction set `{folder}` is missing: move the images back, or write the "
            "set again."
        )
    if not any(described["num_images"]):
        raise ValueError(
            f"None of the {len(problems)} records of `{folder}` has an image: give an instruction set with images."
        )


def _missing_image(part: Dataset) -> str | None:
    """The first missing image file, if any; each file is checked once."""
    paths = {}  # an ordered set
    for batch in part.select_columns("images").iter(1000):
        images = (image for images in batch["images"] for image in images or ())
        paths |= dict.fromkeys(image["path"] for image in images if image["path"] and not image["bytes"])
    return next((path for path in paths if "://" not in path and not os.path.exists(path)), None)


def _describe_record(record: dict[str, Any]) -> dict[str, Any]:
    """The problem of a record, if any, and the numbers that bound its length."""
    images, messages = record["images"] or [], record["messages"] or []
    contents = [message["content"] or "" for message in messages]
    # A message can be a plain text; TRL then puts all images before the first user message.
    texts = [
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
        for content in contents
    ]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    kinds, places = {part.get("type") for part in parts}, sum(part.get("type") == "image" for part in parts)
    roles = [message["role"] for message in messages]
    unknown = [role for role in roles if role not in ROLES]
    literal = next((match[0] for text in texts if (match := LITERAL.search(text))), None)
    empty = [index for index, role in enumerate(roles) if role == "assistant" and not texts[index].strip()]
    problem = ""
    if unknown:
        problem = f"has a turn of `{unknown[0]}`; turns are of {', '.join(ROLES)}"
    elif kinds - {"image", "text"}:
        problem = (
            f"has parts of the types {sorted(kinds, key=str)} in its messages; only image and text can be trained"
        )
    elif not roles or roles[-1] != "assistant":
        problem = f"does not end with an answer: its turns are of {roles}"
    elif empty:
        problem = f"has an empty answer, in turn {empty[0]}"
    elif literal:
        problem = f"has `{literal}` in a text, where it stays text; write images as parts of a message instead"
    elif places != len(images) and not any(isinstance(content, str) for content in contents):
        problem = f"has {len(images)} images, but places for {places} in its messages"
    else:
        problem = _refusal_of_trl(messages, len(images))
    return {
        "problem": problem,
        "num_images": len(images),
        "num_bytes": sum(len(text.encode()) for text in texts),
        "num_messages": len(messages),
    }


def leave_images_out(dataset: Dataset) -> Dataset:
    """Keep only the text of each record."""

    def text_alone(record: dict[str, Any]) -> dict[str, Any]:
        messages = [
            message | {"content": [part for part in message["content"] if part["type"] != "image"]}
            if not isinstance(message["content"], str)
            else message
            for message in record["messages"]
        ]
        return {"images": [], "messages": messages}

    return dataset.map(text_alone, desc="Leaving images out")


def examine_record(record: dict[str, Any]) -> dict[str, Any]:
    """The problem of a record and its images, if any, and the numbers that bound its length."""
    described = _describe_record(record)
    return described | {"problem": described["problem"] or _problem_of_images(record["images"] or ())}


def _refusal_of_trl(messages: Sequence[dict[str, Any]], num_images: int) -> str:
    """Why TRL would not put the images into the messages; empty if it would."""
    try:
        prepare_multimodal_messages(copy.deepcopy(messages), images=[None] * num_images)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        return f"is refused by TRL ({' '.join(str(error).split())})"
    return ""


def _problem_of_images(images: Sequence[dict[str, Any]]) -> str:
    """What is wrong with images, as the processor would find in training; empty if nothing is, or they are missing."""
    sizes = {}
    for number, image in enumerate(images):
        name = f"`{image['path'] or f'number {number}'}`"
        if not _is_local(image):
            continue  # missing files are looked for at each start
        try:
            width, height = _measure(image)
        except UnreadableFrame as error:
            return f"has an image that cannot be used ({error})"
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            return f"has the image {name} of {width} x {height} pixels, which is too elongated"
        sizes[name] = height, width
    try:
        require_similar_shapes(sizes)
    except ValueError as error:
        return f"has images that cannot be used together ({str(error).removesuffix('.')})"
    return ""


def _is_local(image: dict[str, Any]) -> bool:
    """Whether an image can be read without the web."""
    name = image["path"] or ""
    return bool(image["bytes"]) or ("://" not in name and os.path.exists(name))


def _measure(image: dict[str, Any]) -> tuple[int, int]:
    """Width and height of an image; all but complete JPEG files of 8 bits are decoded for it."""
    try:
        if not image["bytes"]:
            require_file(image["path"])
        with open(image["path"], "rb") if not image["bytes"] else io.BytesIO(image["bytes"]) as file:
            with PIL.Image.open(file) as opened:
                is_jpeg, size = opened.format == "JPEG", opened.size
            if is_jpeg:
                file.seek(-len(END_OF_JPEG), os.SEEK_END)
                if file.read() == END_OF_JPEG:
                    return size
    except BROKEN:
        pass  # the full decoder says why
    return _open(image).size


def check_lengths(dataset: Dataset, processor: Spa3VLMProcessor, max_length: int):
    """Refuse a data set with a record that is too long; records are never cut, because a cut may split an image.

    Args:
        dataset (`Dataset`): See `load_instructions`.
        processor (`Spa3VLMProcessor`): Makes tokens from records.
        max_length (`int`): Most tokens of a record.

    Raises:
        ValueError: If a record is longer.
    """
    described = dataset.map(_describe_record, remove_columns=list(COLUMNS), desc="Measuring records")
    images, text, messages = (np.array(described[name]) for name in ("num_images", "num_bytes", "num_messages"))
    # A token is at least one byte. Only records above this bound are tokenised.
    bound = _most_tokens(processor.image_processor) + processor.num_appended_tokens + TOKENS_AROUND
    longest = images * bound + text + (messages + 2) * TOKENS_AROUND
    collator = InstructionCollator(processor)
    for row in np.flatnonzero(longest > max_length).tolist():
        length = collator([dataset[row]])["input_ids"].shape[1]
        if length > max_length:
            raise ValueError(
                f"Record {row} has {length} tokens with its {images[row]} images, more than `max_length` "
                f"{max_length}: raise `max_length`, leave it out for no limit, or use fewer images."
            )


def _most_tokens(image_processor: Spa3VLMImageProcessor) -> int:
    """A bound of the tokens of an image, which is never higher than wide."""
    side, width = image_processor.patch_size * image_processor.merge_size, image_processor.image_width
    if not image_processor.do_resize:
        return (width // side) ** 2
    # Sides are rounded to whole tokens, and up in a small image that is enlarged.
    return max((width // side + 1) ** 2, 4 * image_processor.size["shortest_edge"] // side**2)


def digest_instructions(sources: list[str]) -> str:
    """A hash of the names and sizes of all files, which changes when the sets in the folders change."""
    files = [file for source in sources for file in _files(split_source(source)[0])]
    names = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256(names.encode()).hexdigest()


def _files(folder: str) -> list[Path]:
    return sorted((Path(folder) / "data").glob("*.parquet"))
