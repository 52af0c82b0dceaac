"""The objects of rendered rooms and where they are: what a language model learns to say of their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ...data_scripts.rooms.ground_truth import read_description, read_ground_truth
from ...data_scripts.rooms.labels import LABELS, STRUCTURE
from ...data_scripts.scenes.index import frame_path
from ..runs.grounding import SceneObjects

OBJECT_NAMES = tuple(name for name in LABELS if name not in STRUCTURE)
# A view shows an object that covers at least this share of it: what is much smaller than a patch of 14 pixels in an
# image of 112 x 84 cannot be told apart.
MIN_VISIBLE_SHARE = 0.015


def read_objects(scene: Mapping[str, Any], frames: Sequence[int]) -> SceneObjects:
    """Read the objects that some frames of a rendered room show, each name once, in alphabetical order.

    Args:
        scene (`Mapping`): Row from `load_scenes`, of the kind `rooms`.
        frames (`Sequence[int]`): Frames in the order in which they are shown, at least two.

    Raises:
        ValueError: If the description of the room cannot be read.
    """
    image = Path(frame_path(scene, frames[0]))
    description = read_description(image.parent.parent)
    positions = {int(frame["frame"]): position for position, frame in enumerate(description["frames"])}
    views = [positions[int(Path(frame_path(scene, frame)).stem)] for frame in frames]
    room = read_ground_truth(image.parent.parent, description, views, MIN_VISIBLE_SHARE)
    found = room.named_objects
    unknown = [float("nan")] * 3
    return SceneObjects(
        torch.tensor([OBJECT_NAMES.index(each.name) for each in found], dtype=torch.long),
        torch.tensor([each.place or unknown for each in found]).view(-1, 3),
        torch.tensor([each.first_view for each in found]),
    )


def add_absent(objects: SceneObjects, count: int, generator: torch.Generator | None = None) -> SceneObjects:
    """Add the names of a few objects that are not there, and shuffle all."""
    others = torch.tensor(sorted(set(range(len(OBJECT_NAMES))) - set(objects.names.tolist())), dtype=torch.long)
    others = others[torch.randperm(len(others), generator=generator)[:count]]
    unknown = torch.full((len(others), 4), float("nan"))
    order = torch.randperm(len(objects.names) + len(others), generator=generator)
    joined = zip(objects, (others, unknown[:, :3], unknown[:, 3]), strict=True)
    return SceneObjects(*(torch.cat(parts)[order] for parts in joined))


def join_objects(objects: Sequence[SceneObjects], device: torch.device) -> SceneObjects:
    """The objects of several scenes, one after the other."""
    return SceneObjects(*(torch.cat(values).to(device) for values in zip(*objects, strict=True)))


def check_objects(scenes: Dataset):
    """Refuse scenes whose objects nobody has written down."""
    for scene in scenes.select_columns(["scene_id", "labels"]):
        if not scene["labels"]:
            raise ValueError(
                f"`grounding` needs scenes whose objects are known, but scene {scene['scene_id']} is no rendered "
                "room: leave `grounding` out, or give `--scenes rooms:FOLDER`."
            )
