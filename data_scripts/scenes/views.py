"""Read the views of scenes that `sampling` asks for, and stack them into batches."""

import functools
import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ..common.image_shapes import is_elongated
from ..common.images import UnreadableFrame
from ..common.videos import spread_evenly
from .index import frame_path, read_camera, read_depth, read_images, read_labels
from .sampling import partition_views, sample_frames, seeded_generator
from .view_transforms import crop_to_common, fit_depth, fit_intrinsics, load_frame

logger = logging.getLogger(__name__)

# What a scene lacks, for messages.
CAMERA_FILES = "pose/*.txt and intrinsic/intrinsic_color.txt, or ScanNet++'s nerfstudio/transforms_undistorted.json"
DEPTH_FILES = "depth/*.png"
# How many scenes are looked at to learn the shape of most images.
SAMPLED_SCENES = 15


class SceneFrames(torch.utils.data.Dataset):
    """Frames of scenes for requests `(pass, scene_index, num_views)`; a subclass makes views and items of them.

    The frames of an item are drawn from the seed, the pass and the scene. Evaluation always asks for pass 0, so that
    its draws stay the same. Each item tells:

    - **scene_id** (`str`) -- Where the views come from.
    - **replaced_frames** (`list[str]`) -- Errors that name the frames that could not be used. Each was replaced by the
      nearest unused frame of the scene, or by the nearest used one if no other can be read.
    - **dropped_scenes** (`list[str]`) -- Scenes without a readable frame; the item shows the next scene instead.

    Args:
        scenes (`datasets.Dataset`): Scenes, from `load_scenes`.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
    """

    def __init__(self, scenes: Dataset, seed: int = 0):
        self.scenes = scenes
        self.seed = seed
        self._unreadable_scenes: dict[int, str] = {}

    def make_view(self, scene: dict[str, Any], frame: int, image: Image.Image | np.ndarray) -> dict[str, Any]:
        """Make a view of a frame; an `UnreadableFrame` error has another frame take its place."""
        raise NotImplementedError

    def arrange(self, views: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
        """Make an item of the views of a scene, which come in the order of its frames."""
        raise NotImplementedError

    def require_usual_shape(self, scene: dict[str, Any], frame: int, size: tuple[int, int]) -> None:
        """Refuse a panorama among other images, which would be cropped to its shape.

        Raises:
            UnreadableFrame: If a frame of this height and width is a panorama, and most frames are none.
        """
        if is_elongated(size) and not self._is_mostly_elongated:
            raise UnreadableFrame(
                f"{frame_path(scene, frame)}: has {size[1]} x {size[0]} pixels, a panorama among other images; crop "
                "it or leave it out"
            )

    @functools.cached_property
    def _is_mostly_elongated(self) -> bool:
        """Whether most scenes consist of panoramas, as far as their middle frames tell."""
        found = []
        for index in spread_evenly(len(self.scenes), SAMPLED_SCENES):
            scene = self.scenes[index]
            for _, image in read_images(scene, [scene["num_frames"] // 2]):
                if not isinstance(image, UnreadableFrame):
                    found.append(is_elongated(image.size if isinstance(image, Image.Image) else image.shape[:2]))
        return 2 * sum(found) > len(found)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, request: tuple[int, int, int]) -> dict[str, Any]:
        pass_index, scene_index, num_views = request
        if num_views < 2:
            raise ValueError(f"`num_views` must be at least 2, one as context and one to predict, got {num_views}.")
        dropped = []
        for step in range(len(self.scenes)):
            index = (scene_index + step) % len(self.scenes)
            scene = self.scenes[index]
            if index not in self._unreadable_scenes:
                rng = seeded_generator(self.seed, "frames", pass_index, index)
                frames = sample_frames(scene["num_frames"], num_views, scene["interval"], rng)
                views, unreadable = self._read_scene(scene, frames)
                if views:
                    return self.arrange(views, rng) | {
                        "scene_id": scene["scene_id"],
                        "replaced_frames": unreadable,
                        "dropped_scenes": dropped,
                    }
                logger.warning(f"Scene {scene['scene_id']} is dropped; no frame can be read: {unreadable[0]}")
                self._unreadable_scenes[index] = unreadable[0]
            dropped.append(scene["scene_id"])
        reason = self._unreadable_scenes[scene_index]
        raise UnreadableFrame(f"No frame of the {len(self.scenes)} scenes can be read. For example: {reason}")

    def _read_scene(self, scene: dict[str, Any], frames: list[int]) -> tuple[list[dict[str, Any]], list[str]]:
        """Views of the frames or of their replacements, and the errors of unreadable frames.

        If no frame of the scene can be read, there are no views.
        """
        views: dict[int, dict[str, Any]] = {}
        reasons: dict[int, str] = {}

        def read(wanted: Sequence[int]) -> None:
            for frame, image in read_images(scene, wanted):
                try:
                    if isinstance(image, UnreadableFrame):
                        raise image
                    views[frame] = self.make_view(scene, frame, image)
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


class SceneViews(SceneFrames):
    """Views of scenes, context views first; see `SceneFrames`. The partition is drawn as the frames are.

    - **pixel_values** (`torch.Tensor` of bytes of shape `(num_views, 3, height, width)`) -- RGB, context views first.
    - **num_context_views** (`int`) -- How many of the views are context.
    - **scene_id** (`str`) and **frame_indices** (`list[int]`) -- Where the views come from.
    - **extrinsics** (`torch.Tensor` of shape `(num_views, 4, 4)`) -- World-to-camera, OpenCV axes. With `cameras`.
    - **intrinsics** (`torch.Tensor` of shape `(num_views, 3, 3)`) -- In pixels of the views. With `cameras`.
    - **depth** (`torch.Tensor` of shape `(num_views, height, width)`) -- In meters, 0 where unknown. With `depth`.
    - **labels** (`torch.Tensor` of bytes of shape `(num_views, height, width)`) -- Category of each pixel, 0 where
      unknown. With `labels`.
    - **replaced_frames** and **dropped_scenes** (`list[str]`) -- See `SceneFrames`.

    Args:
        scenes (`datasets.Dataset`): Scenes, from `load_scenes`.
        image_width (`int`, *optional*, defaults to 518): Width of the views before they are cropped to whole patches.
        context_ratio (`float`, *optional*, defaults to 0.5):
            Share of context views: 1 - the paper's mask ratio (Tab. 6).
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        cameras (`bool`, *optional*, defaults to `False`): Whether to read cameras.
        depth (`bool`, *optional*, defaults to `False`): Whether to read depth.
        labels (`bool`, *optional*, defaults to `False`): Whether to read categories; rooms have them.

    Attributes:
        patch_size (`int`): Side of a patch in pixels, 14 by default; the sides of a view are multiples of it.
    """

    patch_size = 14

    def __init__(
        self,
        scenes: Dataset,
        image_width: int = 518,
        context_ratio: float = 0.5,
        seed: int = 0,
        cameras: bool = False,
        depth: bool = False,
        labels: bool = False,
    ):
        if not 0 < context_ratio < 1:
            raise ValueError(
                f"`context_ratio` must lie between 0 and 1, got {context_ratio}: there must be context views and "
                "target views."
            )
        if image_width < 14:
            raise ValueError(f"`image_width` must be at least 14, the width of a patch, got {image_width}; raise it.")
        _check_files(scenes, cameras, depth, labels)
        super().__init__(scenes, seed)
        self.image_width = image_width
        self.context_ratio = context_ratio
        self.cameras = cameras
        self.depth = depth
        self.labels = labels

    def make_view(self, scene: dict[str, Any], frame: int, image: Image.Image | np.ndarray) -> dict[str, Any]:
        """Pixels of a frame, with the camera and the depth that follow them."""
        has_maps = self.cameras or self.depth or self.labels
        with _named(scene, frame):
            pixels, size = load_frame(image, self.image_width, self.patch_size, upright=not has_maps)
        self.require_usual_shape(scene, frame, size.original)
        view = {"frame_indices": frame, "pixel_values": pixels}
        if self.cameras:
            extrinsics, intrinsics = read_camera(scene, frame, size.original)
            view["extrinsics"] = extrinsics.float()
            view["intrinsics"] = fit_intrinsics(intrinsics, size).float()
        if self.depth:
            depth = read_depth(scene, frame)
            with _named(scene, frame):
                view["depth"] = fit_depth(depth, size)
        if self.labels:
            labels = read_labels(scene, frame)
            with _named(scene, frame):
                view["labels"] = fit_depth(labels, size)
        return view

    def arrange(self, views: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
        """Stack the views of a scene, context first."""
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        order, num_context_views = partition_views(len(views), self.context_ratio, generator)
        ordered = [views[index] for index in order.tolist()]
        stacked = _stack({name: [view[name] for view in ordered] for name in ordered[0] if name != "frame_indices"})
        frames = [view["frame_indices"] for view in ordered]
        return stacked | {"frame_indices": frames, "num_context_views": num_context_views}


@contextmanager
def _named(scene: dict[str, Any], frame: int) -> Iterator[None]:
    """Make an error about a frame an `UnreadableFrame` that names it."""
    try:
        yield
    except ValueError as error:
        raise UnreadableFrame(f"{frame_path(scene, frame)}: {error}") from error


def collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items of `SceneViews` into a batch.

    Images of different sizes are center-cropped to the smallest height and width of the batch; depth and intrinsics
    follow.

    Args:
        items (`Sequence[dict[str, Any]]`): Items with the same number of views.

    Returns:
        `dict[str, Any]`: Tensors with a batch dimension in front; `num_context_views` as one `int`; lists of
        `scene_id` and `frame_indices`; one list each of the `replaced_frames` and `dropped_scenes` of all items.
    """
    shapes = {(len(item["pixel_values"]), item["num_context_views"]) for item in items}
    if len(shapes) > 1:
        raise ValueError(
            "All scenes of a batch must have the same numbers of views and of context views, "
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
    """Stack images, cameras and depth maps after cropping them to a common size."""
    stacked = {name: torch.stack(values) for name, values in tensors.items() if name in ("extrinsics", "intrinsics")}
    stacked["pixel_values"], starts = crop_to_common(tensors["pixel_values"])
    if "intrinsics" in stacked:
        # From (row, column) of the crop to (x, y) of the principal point; all views of an item share the crop.
        shift = starts[:, [-1, -2]].to(stacked["intrinsics"].dtype)
        stacked["intrinsics"][..., :2, 2] -= shift.view(len(shift), *[1] * (stacked["intrinsics"].dim() - 3), 2)
    for name in ("depth", "labels"):
        if name in tensors:
            stacked[name] = crop_to_common(tensors[name])[0]
    return stacked


def warn_of_short_scenes(scenes: Dataset, num_views: int) -> None:
    """Name a scene that is too short for so many views, a smallest step apart; see `sample_frames`."""
    sizes = zip(scenes["num_frames"], scenes["interval"], strict=True)
    short = [row for row, (num_frames, (low, _)) in enumerate(sizes) if num_frames <= (num_views - 1) * low]
    if short:
        scene = scenes[short[0]]
        logger.warning(
            f"{len(short)} of {len(scenes)} scenes are too short for {num_views} views {scene['interval'][0]} or more "
            f"frames apart, such as {scene['scene_id']} with {scene['num_frames']} frames: their views are taken "
            "anywhere, and repeat where frames are fewer than views. Give longer scenes, smaller steps such as "
            f"`{scene['source']}:FOLDER@1-3`, or a lower `--max_views`."
        )


def _check_files(scenes: Dataset, cameras: bool, depth: bool, labels: bool) -> None:
    """Refuse scenes without the cameras, the depth or the categories that will be read."""
    for scene in scenes.select_columns(["scene_id", "poses", "intrinsics", "transforms", "depths", "labels"]):
        if cameras and not (scene["transforms"] or (scene["poses"] and scene["intrinsics"])):
            raise ValueError(
                f"Scene {scene['scene_id']} has no {CAMERA_FILES}: set `--cameras false`, so that VGGT estimates the "
                "cameras, or exclude it."
            )
        if depth and not scene["depths"]:
            raise ValueError(f"Scene {scene['scene_id']} has no {DEPTH_FILES}: set `--depth false`, or exclude it.")
        if labels and not scene["labels"]:
            raise ValueError(
                f"Scene {scene['scene_id']} has no label-filt/*.png with categories: set `--object_weight 1`, exclude "
                "it, or render rooms with `spa3r rooms`."
            )
