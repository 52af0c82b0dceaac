"""The objects of rendered rooms and where they are: what a language model learns to say of their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from ...data_scripts.rooms.ground_truth import read_description, read_ground_truth
from ...data_scripts.rooms.labels import LABELS, STRUCTURE
from ...data_scripts.scenes.index import frame_path

OBJECT_NAMES = tuple(name for name in LABELS if name not in STRUCTURE)
# A view shows an object that covers at least this share of it: what is much smaller than a patch of 14 pixels in an
# image of 112 x 84 cannot be told apart.
MIN_VISIBLE_SHARE = 0.015


class SceneObjects(NamedTuple):
    """
    Objects that some views show, or that the text names although no view shows them.

    names (`torch.LongTensor` of shape `(num_objects,)`):
        Places of their names in `OBJECT_NAMES`.
    places (`torch.Tensor` of shape `(num_objects, 3)`):
        Centers, in meters in the first view's frame; NaN where no view shows one, or the name fits several objects.
    first_views (`torch.Tensor` of shape `(num_objects,)`):
        When a view first shows one, from 0, the first view, to 1, the last; NaN where none does.
    """

    names: Tensor
    places: Tensor
    first_views: Tensor


def read_objects(scene: Mapping[str, Any], frames: Sequence[int]) -> SceneObjects:
    """Read the objects that some frames of a rendered room show, each name once, in the order of `OBJECT_NAMES`.

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
    unique = {item.category: item for item in room.unique_objects}
    names, places, first_views = [], [], []
    for name_id, name in enumerate(OBJECT_NAMES):
        shown = [(item.pixels >= room.min_visible_pixels).nonzero()[0] for item in room.of_category(name)]
        if first := [views_of_item[0] for views_of_item in shown if len(views_of_item)]:
            names.append(name_id)
            center = room.in_cameras(unique[name].center[None])[0, 0] if name in unique else [float("nan")] * 3
            places.append(torch.as_tensor(center, dtype=torch.float32))
            first_views.append(float(min(first)) / (len(views) - 1))
    places = torch.stack(places) if places else torch.empty(0, 3)
    return SceneObjects(torch.tensor(names, dtype=torch.long), places, torch.tensor(first_views))


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
