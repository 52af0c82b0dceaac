"""Scenes as training batches: which scenes and how many views make a batch, which frames are drawn, how they stack.

Every draw is a function of the seed, the number of the pass over the scenes and the scene's index alone, so that
neither the number of workers and processes nor an interruption changes what is learnt from.
"""

import functools
import itertools
import logging
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

from ..common.images import UnreadableFrame
from .index import frame_path, read_camera, read_depth, read_images
from .view_transforms import crop_to_common, fit_depth, fit_intrinsics, load_frame, sample_frames

logger = logging.getLogger(__name__)

# Batches in a row that share their number of views: up to 8 processes, which take one each, have equal work.
BATCHES_PER_VIEW_COUNT = 8


def seeded_draws(*key: int | str) -> random.Random:
    """A generator of draws that depend on `key` alone; equal in every process, unlike `hash`."""
    return random.Random("/".join(map(str, key)))


def partition_views(num_views: int, context_ratio: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Split the views of a scene at random into context views, which the encoder sees, and target views.

    Draws the partition that the official code draws from the same generator state (there `mask_ratio` is
    `1 - context_ratio`): the first view is always context.

    Args:
        num_views (`int`): Views of the scene.
        context_ratio (`float`): Share of context views, rounded down to at least one view.
        generator (`torch.Generator`): Source of the draws, on the CPU.

    Returns:
        `tuple[torch.Tensor, int]`: The order that puts the context views before the target views, each in their
        original order, of shape `(num_views,)`; and the number of context views.
    """
    num_context_views = max(1, int(num_views * context_ratio))
    ranks = torch.rand(num_views - 1, generator=generator).argsort().argsort()
    is_target = torch.cat([torch.tensor([False]), ranks >= num_context_views - 1])
    return is_target.long().argsort(stable=True), num_context_views


class ViewBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Plans batches of requests `(pass, scene_index, num_views)` for `SceneViews`.

    The plan is one endless sequence of batches, cut into epochs of constant length. Passes over the scenes, each in an
    order of its own, follow each other without a gap, so that a batch may end one and begin the next. Processes take
    turns: with `accelerate`, process `r` of `n` gets the batches `r, r + n, ...`. The number of views is drawn anew
    every 8 batches, from shuffled rounds in which each number occurs once.

    A scene occurs twice in a batch only if there are fewer scenes than the batch holds.

    Args:
        num_scenes (`int`): Scenes to draw from.
        min_views (`int`, *optional*, defaults to 4): Least number of views of a scene.
        max_views (`int`, *optional*, defaults to 12): Greatest number of views of a scene.
        images_per_batch (`int`, *optional*, defaults to 24):
            Views in a batch: as many scenes as fit, at least one.
        seed (`int`, *optional*, defaults to 0): Seed of the plan.
        batches_per_epoch_multiple (`int`, *optional*, defaults to 1):
            The length of an epoch, about one pass, is rounded up to a multiple of it. Set it to processes times
            gradient accumulation steps, or the wrappers of `accelerate` repeat batches to fill the last step.
    """

    def __init__(
        self,
        num_scenes: int,
        min_views: int = 4,
        max_views: int = 12,
        images_per_batch: int = 24,
        seed: int = 0,
        batches_per_epoch_multiple: int = 1,
    ):
        if num_scenes < 1:
            raise ValueError(f"There must be at least 1 scene to draw from, got {num_scenes}.")
        if not 2 <= min_views <= max_views:
            raise ValueError(
                "A scene needs at least 2 views, one to see and one to predict: set 2 <= `min_views` <= `max_views`, "
                f"got {min_views} and {max_views}."
            )
        self.num_scenes = num_scenes
        self.view_counts = list(range(min_views, max_views + 1))
        self.images_per_batch = images_per_batch
        self.seed = seed
        self.epoch = 0
        self._round_size = BATCHES_PER_VIEW_COUNT * sum(map(self._batch_size, self.view_counts))
        mean_batch_size = self._round_size / BATCHES_PER_VIEW_COUNT / len(self.view_counts)
        multiple = batches_per_epoch_multiple
        self._num_batches = math.ceil(math.ceil(num_scenes / mean_batch_size) / multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        first = self.epoch * len(self)
        for batch in range(first, first + len(self)):
            num_views, start = self._locate(batch)
            yield [
                (*self._scene_at(position), num_views)
                for position in range(start, start + self._batch_size(num_views))
            ]

    def _batch_size(self, num_views: int) -> int:
        return max(1, self.images_per_batch // num_views)

    def _locate(self, batch: int) -> tuple[int, int]:
        """Number of views in a batch, and how many requests come before it.

        As a round holds each number of views equally often, all rounds hold the same number of requests.
        """
        group, batch_in_group = divmod(batch, BATCHES_PER_VIEW_COUNT)
        round_index, group_in_round = divmod(group, len(self.view_counts))
        counts = self.view_counts.copy()
        seeded_draws(self.seed, "views", round_index).shuffle(counts)
        sizes = [self._batch_size(count) for count in counts]
        before = BATCHES_PER_VIEW_COUNT * sum(sizes[:group_in_round]) + batch_in_group * sizes[group_in_round]
        return counts[group_in_round], round_index * self._round_size + before

    def _scene_at(self, position: int) -> tuple[int, int]:
        """Pass and scene at a position of the endless sequence of passes."""
        pass_index, place = divmod(position, self.num_scenes)
        max_batch_size = self._batch_size(self.view_counts[0])
        return pass_index, _scene_order(self.num_scenes, max_batch_size, self.seed, pass_index)[place]


@functools.lru_cache(maxsize=4)
def _scene_order(num_scenes: int, max_batch_size: int, seed: int, pass_index: int) -> list[int]:
    """Scenes in the order in which a pass visits them.

    The scenes that end the pass before are kept from the first places, which may share a batch with them. That takes
    enough scenes for the beginning and the end of a pass not to meet; with fewer, all passes keep one order, in which
    a scene returns only after all others.
    """
    near = max_batch_size - 1
    if num_scenes < 3 * near:
        return _shuffled(num_scenes, seed, 0)
    order = _shuffled(num_scenes, seed, pass_index)
    if pass_index == 0:
        return order
    just_seen = set(_shuffled(num_scenes, seed, pass_index - 1)[num_scenes - near :])
    first = [scene for scene in order if scene not in just_seen][:near]
    return list(dict.fromkeys(first + order))


def _shuffled(num_scenes: int, seed: int, pass_index: int) -> list[int]:
    order = list(range(num_scenes))
    seeded_draws(seed, "scenes", pass_index).shuffle(order)
    return order


class SceneViews(torch.utils.data.Dataset):
    """Views of scenes on request: frames drawn, read, sized, and ordered context first.

    An item is asked for by `(pass, scene_index, num_views)`; its frames and their partition are drawn from the seed,
    the pass and the scene. Held-out scenes are always asked for in pass 0, so that their draws stay the same.

    - **pixel_values** (`torch.Tensor` of bytes of shape `(num_views, 3, height, width)`) -- RGB, context views first.
    - **num_context_views** (`int`) -- How many of the views are context.
    - **scene_id** (`str`) and **frame_indices** (`list[int]`) -- Where the views come from.
    - **extrinsics** (`torch.Tensor` of shape `(num_views, 4, 4)`) -- World-to-camera, OpenCV axes. With `cameras`.
    - **intrinsics** (`torch.Tensor` of shape `(num_views, 3, 3)`) -- In pixels of the views. With `cameras`.
    - **depth** (`torch.Tensor` of shape `(num_views, height, width)`) -- In meters, 0 where unknown. With `depth`.
    - **replaced_frames** (`list[str]`) -- Frames that could not be used, with the reasons. Each was replaced by the
      nearest frame of the scene that is not in use yet, or by one that is where there is no other.
    - **dropped_scenes** (`list[str]`) -- Scenes without a readable frame, in whose place the next scene is given.

    Args:
        scenes (`datasets.Dataset`): Scenes, from `load_scenes`.
        image_width (`int`, *optional*, defaults to 518): Width of the views before they are cropped to whole patches.
        context_ratio (`float`, *optional*, defaults to 0.5): Share of context views.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        cameras (`bool`, *optional*, defaults to `False`): Whether to read cameras.
        depth (`bool`, *optional*, defaults to `False`): Whether to read depth.
    """

    def __init__(
        self,
        scenes: Dataset,
        image_width: int = 518,
        context_ratio: float = 0.5,
        seed: int = 0,
        cameras: bool = False,
        depth: bool = False,
    ):
        if not 0 < context_ratio < 1:
            raise ValueError(
                "`context_ratio` must lie between 0 and 1, so that there are context views to see and target views "
                f"to predict, got {context_ratio}."
            )
        if image_width < 14:
            raise ValueError(f"`image_width` must be at least 14, the width of a patch, got {image_width}.")
        _check_files(scenes, cameras, depth)
        self.scenes = scenes
        self.image_width = image_width
        self.context_ratio = context_ratio
        self.seed = seed
        self.cameras = cameras
        self.depth = depth
        self._unreadable_scenes: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, request: tuple[int, int, int]) -> dict[str, Any]:
        pass_index, scene_index, num_views = request
        if num_views < 2:
            raise ValueError(f"A scene needs at least 2 views, one to see and one to predict, got {num_views}.")
        dropped = []
        for step in range(len(self.scenes)):
            index = (scene_index + step) % len(self.scenes)
            scene = self.scenes[index]
            if index not in self._unreadable_scenes:
                rng = seeded_draws(self.seed, "frames", pass_index, index)
                frames = sample_frames(scene["num_frames"], num_views, scene["interval"], rng)
                views, unreadable = self._read_scene(scene, frames)
                if views:
                    return self._arrange(views, rng) | {
                        "scene_id": scene["scene_id"],
                        "replaced_frames": unreadable,
                        "dropped_scenes": dropped,
                    }
                logger.warning(f"No frame of scene {scene['scene_id']} is readable; it is dropped: {unreadable[0]}")
                self._unreadable_scenes[index] = unreadable[0]
            dropped.append(scene["scene_id"])
        reason = self._unreadable_scenes[scene_index]
        raise ValueError(f"None of the {len(self.scenes)} scenes has a readable frame, for example {reason}.")

    def _read_scene(self, scene: dict[str, Any], frames: list[int]) -> tuple[list[dict[str, Any]], list[str]]:
        """The wanted frames or their stand-ins as views, and why frames were not readable; no views if none was."""
        views: dict[int, dict[str, Any]] = {}
        reasons: dict[int, str] = {}

        def read(wanted: Sequence[int]) -> None:
            for frame, image in read_images(scene, wanted):
                try:
                    views[frame] = self._make_view(scene, frame, image)
                except UnreadableFrame as error:
                    reasons[frame] = str(error)

        def is_readable(frame: int) -> bool:
            if frame not in views and frame not in reasons:
                read([frame])
            return frame in views

        read(frames)
        chosen = []
        for frame in frames:
            if frame not in views:
                nearest = sorted(range(scene["num_frames"]), key=lambda other, frame=frame: abs(other - frame))
                unused = [other for other in nearest if other not in frames and other not in chosen]
                frame = next(filter(is_readable, itertools.chain(unused, nearest)), None)
                if frame is None:
                    return [], list(reasons.values())
            chosen.append(frame)
        return [views[frame] for frame in sorted(chosen)], list(reasons.values())

    def _make_view(self, scene: dict[str, Any], frame: int, image) -> dict[str, Any]:
        if isinstance(image, UnreadableFrame):
            raise image
        try:
            pixels, size = load_frame(image, self.image_width)
        except ValueError as error:
            raise UnreadableFrame(f"{frame_path(scene, frame)}: {error}") from error
        view = {"frame_indices": frame, "pixel_values": pixels}
        if self.cameras:
            extrinsics, intrinsics = read_camera(scene, frame, size.original)
            view["extrinsics"] = extrinsics.float()
            view["intrinsics"] = fit_intrinsics(intrinsics, size).float()
        if self.depth:
            view["depth"] = fit_depth(read_depth(scene, frame), size)
        return view

    def _arrange(self, views: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
        """Stack the views of a scene, context first."""
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        order, num_context_views = partition_views(len(views), self.context_ratio, generator)
        ordered = [views[index] for index in order.tolist()]
        stacked = _stack({name: [view[name] for view in ordered] for name in ordered[0] if name != "frame_indices"})
        frames = [view["frame_indices"] for view in ordered]
        return stacked | {"frame_indices": frames, "num_context_views": num_context_views}


def collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items of `SceneViews` into a batch.

    Images of different sizes are center-cropped to the smallest height and width of the batch, with their depth and
    intrinsics following.

    Args:
        items (`Sequence[dict[str, Any]]`): Items with the same number of views.

    Returns:
        `dict[str, Any]`: Tensors with a batch dimension in front; `num_context_views` as one `int`; lists of
        `scene_id` and `frame_indices`; `replaced_frames` and `dropped_scenes` of all items in one list each.
    """
    shapes = {(len(item["pixel_values"]), item["num_context_views"]) for item in items}
    if len(shapes) > 1:
        raise ValueError(
            "The scenes of a batch must have the same number of views and of context views, "
            f"got {sorted(shapes)}; take the requests from `ViewBatchSampler`."
        )
    tensors = {name: [item[name] for item in items] for name, value in items[0].items() if torch.is_tensor(value)}
    return _stack(tensors) | {
        "num_context_views": items[0]["num_context_views"],
        "scene_id": [item["scene_id"] for item in items],
        "frame_indices": [item["frame_indices"] for item in items],
        "replaced_frames": [frame for item in items for frame in item["replaced_frames"]],
        "dropped_scenes": [scene for item in items for scene in item["dropped_scenes"]],
    }


def _stack(tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Stack images, cameras and depth maps, cropped to a common size."""
    stacked = {name: torch.stack(values) for name, values in tensors.items() if name in ("extrinsics", "intrinsics")}
    stacked["pixel_values"], starts = crop_to_common(tensors["pixel_values"])
    if "intrinsics" in stacked:
        # (row, column) of the crop to (x, y) of the principal point, the same for all views of an item.
        shift = starts[:, [-1, -2]].to(stacked["intrinsics"].dtype)
        stacked["intrinsics"][..., :2, 2] -= shift.view(len(shift), *[1] * (stacked["intrinsics"].dim() - 3), 2)
    if "depth" in tensors:
        stacked["depth"] = crop_to_common(tensors["depth"])[0]
    return stacked


def _check_files(scenes: Dataset, cameras: bool, depth: bool) -> None:
    """Check that each scene has the files that it is to be read with."""
    for scene in scenes.select_columns(["scene_id", "poses", "intrinsics", "transforms", "depths"]):
        if cameras and not (scene["transforms"] or (scene["poses"] and scene["intrinsics"])):
            files = (
                "pose/*.txt and intrinsic/intrinsic_color.txt, or ScanNet++'s nerfstudio/transforms_undistorted.json"
            )
            raise ValueError(f"Scene {scene['scene_id']} has no {files}: exclude it, or set `cameras` to false.")
        if depth and not scene["depths"]:
            raise ValueError(f"Scene {scene['scene_id']} has no depth/*.png: exclude it, or set `depth` to false.")
