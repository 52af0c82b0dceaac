"""A record of a published data set as a row of an instruction set, in TRL's conversational vision format."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..common.exclusions import find_excluded, find_scene
from ..common.records import BadRecord, check_text
from ..common.videos import spread_evenly
from .media import MAX_VIDEO_FRAMES, MediaFolders, mark_images, require_images, video_frames

IMAGE, VIDEO = "<image>", "<video>"
PLACEHOLDER = re.compile(f"({IMAGE}|{VIDEO})")
# The official code drops one line break after each placeholder of the first turn.
FIRST_TURN_PLACEHOLDER = re.compile(f"({IMAGE}|{VIDEO})\n?")
# The tokenizer reads these as part of the chat template; a stray image token ends a training run.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")


@dataclass(frozen=True)
class RawSample:
    """A record in the terms that all published formats share; only `images` and `video` have been checked for type.

    Args:
        conversations (`Any`): Turns `{"from": "human" | "gpt", "value": text}`.
        question_type (`Any`): Type of the question; `unknown` if empty.
        images (`Sequence[str]`, *optional*): Paths of images, relative to the media folder.
        video (`Any`, *optional*): Path of a video or of a folder of frames, instead of images.
        id (`Any`, *optional*): Text or number; defaults to the data set's name and the record's line.
        scene_id (`Any`, *optional*): Scene; defaults to the one that the first path names.
        data_source (`Any`, *optional*): Origin of the record; defaults to the first folder of its path.
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

    @classmethod
    def from_record(cls, record: Mapping[str, Any], **overrides: Any) -> "RawSample":
        """Take the fields that all formats share from a record, and the others from `overrides`."""
        images = record.get("images") or record.get("image") or []
        if not isinstance(images, (str, list)):
            raise BadRecord("malformed record", f"images are a path or a list of paths, got {images!r:.200}")
        fields = {name: record.get(name) for name in ("conversations", "question_type", "id", "data_source")}
        fields |= {"images": [images] if isinstance(images, str) else images, "video": record.get("video") or None}
        return cls(**fields | overrides)


@dataclass(frozen=True)
class Job:
    """The settings of a conversion that every record needs; sent to each worker process."""

    read_record: Callable[[dict[str, Any]], RawSample]
    source: str
    folders: MediaFolders
    excluded: frozenset[str]


class ConvertedRecord(NamedTuple):
    """A row of the instruction set, and what the manifest counts about it."""

    row: dict[str, Any]
    data_source: str
    leading_turns_dropped: int
    video_placeholders_rewritten: int


class ExcludedScene(Exception):
    """The record is about a scene that the conversion leaves out; its text is the scene's id."""


def convert_record(record: dict[str, Any], line: int, job: Job) -> ConvertedRecord:
    """Convert one record, and make the frames or marked images that it needs.

    Args:
        record (`dict`): The parsed record.
        line (`int`): Its line in the annotation file, for a record without an id.
        job (`Job`): Settings of the conversion.

    Raises:
        BadRecord: If the record cannot be used.
        ExcludedScene: If its scene is left out. Its media are not looked for.
    """
    sample = job.read_record(record)
    paths, scene_id = name_media(sample)
    if excluded := find_excluded([*paths, scene_id], job.excluded):
        raise ExcludedScene(excluded)
    if not isinstance(sample.id, (str, int, type(None))):
        raise BadRecord("malformed record", f"an id is text or a number, got {sample.id!r:.200}")
    row_id = f"{job.source}-{line}" if sample.id is None else check_text(str(sample.id), "an id")
    question_type = check_text(sample.question_type or "unknown", "the type of a question")
    folder, _, name = paths[0].partition("/")
    data_source = check_text(sample.data_source or (folder if name else job.source), "the source of data")
    turns, num_dropped = read_turns(sample.conversations)
    turns, num_rewritten = _rewrite_video_placeholders(sample, turns)
    placeholder = _check_placeholders(sample, turns)
    images = _make_images(job.folders, sample)
    if placeholder == VIDEO and sample.video is None:
        images = [images[index] for index in spread_evenly(len(images), MAX_VIDEO_FRAMES)]
    row = {
        "images": [{"bytes": None, "path": path} for path in images],
        "messages": compose_messages(turns, len(images)),
        "scene_id": scene_id,
        "question_type": question_type,
        "source": job.source,
        "id": row_id,
    }
    return ConvertedRecord(row, data_source, num_dropped, num_rewritten)


def name_media(sample: RawSample) -> tuple[list[str], str]:
    """The paths of a sample's images or video, and the scene that they show.

    Raises:
        BadRecord: If it has no images and no video, or both, or something else than texts for them.
    """
    if bool(sample.images) == (sample.video is not None):
        raise BadRecord("malformed record", "a record has either images or a video")
    paths = list(sample.images) if sample.video is None else [sample.video]
    for path in paths:
        check_text(path, "the path of an image or video")
    return paths, check_text(sample.scene_id or find_scene(paths[0], is_video=sample.video is not None), "a scene")


def read_turns(conversations: Any) -> tuple[list[tuple[str, str]], int]:
    """Check the turns of a conversation.

    Args:
        conversations (`Any`): A list of turns `{"from": "human" | "gpt", "value": text}`.

    Returns:
        `tuple[list[tuple[str, str]], int]`: Role (`user` or `assistant`) and text of each turn, and the number of
        leading turns dropped, 0 or 1: as the official training does, a first turn that is not from `human` is dropped.

    Raises:
        BadRecord: If there is no answer, or questions and answers do not alternate.
    """
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise BadRecord("malformed record", f"`conversations` is a list of turns, got {conversations!r:.200}")
    num_dropped = int(bool(conversations) and conversations[0].get("from") != "human")
    turns = conversations[num_dropped:]
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
    return result, num_dropped


def compose_messages(turns: Sequence[tuple[str, str]], num_images: int) -> list[dict[str, Any]]:
    """Compose messages in TRL's vision format, with images where the placeholders are.

    Args:
        turns (`Sequence[tuple[str, str]]`):
            Role and text of each turn. The user's text has `<image>` for each image, or one `<video>` for all images.
            In the first turn, the line break after a placeholder is dropped, as in the official code.
        num_images (`int`): Number of images of the record.

    Returns:
        `list[dict[str, Any]]`: `{"role", "content": [{"type": "image" | "text", "text"}]}`; `text` is None for images.
    """
    messages = []
    for index, (role, text) in enumerate(turns):
        if role == "assistant":
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
            continue
        content = []
        for piece in (FIRST_TURN_PLACEHOLDER if index == 0 else PLACEHOLDER).split(text):
            if piece in (IMAGE, VIDEO):
                content += [{"type": "image", "text": None}] * (num_images if piece == VIDEO else 1)
            elif piece:
                content.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": content})
    return messages


def _rewrite_video_placeholders(sample: RawSample, turns: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Turn `<image>` into `<video>` in questions about a video: VSI-590K and VLM-3R write `<image>` for both."""
    if sample.video is None:
        return turns, 0
    rewritten = [(role, text.replace(IMAGE, VIDEO) if role == "user" else text) for role, text in turns]
    return rewritten, int(rewritten != turns)


def _check_placeholders(sample: RawSample, turns: Sequence[tuple[str, str]]) -> str:
    """Return the placeholder that the questions use; raise `BadRecord` if their number does not match the media."""
    found = Counter(match for role, text in turns if role == "user" for match in PLACEHOLDER.findall(text))
    if found == {VIDEO: 1}:
        return VIDEO
    if sample.video is None and found == {IMAGE: len(sample.images)}:
        return IMAGE
    media = "one video" if sample.video is not None else f"{len(sample.images)} images"
    seen = " and ".join(f"{number} {name}" for name, number in sorted(found.items())) or "no placeholder"
    raise BadRecord("wrong number of placeholders", f"{seen} for {media}")


def _make_images(folders: MediaFolders, sample: RawSample) -> list[str]:
    if sample.video is not None:
        return video_frames(folders, sample.video)
    if sample.spar_info is not None:
        return mark_images(folders, sample.images, sample.spar_info)
    return require_images(folders, sample.images)
