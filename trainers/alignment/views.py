"""Views of scenes as the inputs of Spa3-VLM's encoders, each image token with the points that its patches show."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ...data_scripts.common.images import UnreadableFrame, to_rgb, turn_upright
from ...data_scripts.scenes.index import frame_path, read_camera, read_depth
from ...data_scripts.scenes.views import CAMERA_FILES, DEPTH_FILES, SceneFrames
from ...modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from .objects import check_objects, read_objects
from .patch_points import patch_positions, points_at


class AlignmentViews(SceneFrames):
    """Views of scenes, prepared by a model's own image processor; see `SceneFrames`.

    The views of an item come in the order of their frames, and the first is the reference view. An item has what the
    image processor returns but `num_views`, and:

    - **patch_pixels** (`torch.LongTensor` of shape `(num_tokens, patches_per_token, 3)`) -- View, row and column of
      the pixel at the center of each patch, among the images for the spatial encoder.
    - **points** (`torch.Tensor` of shape `(num_tokens, patches_per_token, 3)`) -- The point that each patch shows at
      its center, in meters in the first view's frame, NaN where its depth is unknown. With `depth`.
    - **names**, **places** and **first_views** -- The fields of `SceneObjects`. With `objects`.

    Args:
        scenes (`datasets.Dataset`): Scenes, from `load_scenes`.
        image_processor (`Spa3VLMImageProcessor`): The model's.
        depth (`bool`): Whether to read cameras and depth.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        objects (`bool`, *optional*, defaults to `False`): Whether to read the objects of the scenes.

    Raises:
        ValueError: If a scene lacks cameras, depth or objects that are to be read.
    """

    def __init__(
        self,
        scenes: Dataset,
        image_processor: Spa3VLMImageProcessor,
        depth: bool,
        seed: int = 0,
        objects: bool = False,
    ):
        if image_processor.image_fit != "crop":
            raise ValueError(
                f"Alignment needs images whose patches it can place: `image_fit` must be `crop`, got "
                f"`{image_processor.image_fit}` in the model's processor_config.json."
            )
        if depth:
            check_labelled(scenes)
        if objects:
            check_objects(scenes)
        super().__init__(scenes, seed)
        self.image_processor = image_processor
        self.depth = depth
        self.objects = objects

    def make_view(self, scene: dict[str, Any], frame: int, image: Image.Image | np.ndarray) -> dict[str, Any]:
        """The image of a frame, where its patches lie and, with `depth`, what they show."""
        try:
            return self._make_view(scene, frame, image)
        except UnreadableFrame:
            raise
        except ValueError as error:
            raise UnreadableFrame(f"{frame_path(scene, frame)}: {error}") from error

    def _make_view(self, scene: dict[str, Any], frame: int, image: Image.Image | np.ndarray) -> dict[str, Any]:
        if isinstance(image, Image.Image):
            # Cameras and depth describe the stored pixels. An array has no EXIF data, so that nobody will turn it.
            image = np.asarray(to_rgb(image if self.depth else turn_upright(image), frame_path(scene, frame)))
        size = image.shape[:2]
        self.require_usual_shape(scene, frame, size)
        positions = patch_positions(self.image_processor, size)
        view = {"image": image, "positions": positions, "scene": scene, "frame": frame}
        if self.depth:
            extrinsics, intrinsics = read_camera(scene, frame, size)
            view["extrinsics"] = extrinsics
            view["points"] = points_at(positions.in_image, size, read_depth(scene, frame), extrinsics, intrinsics)
        return view

    def arrange(self, views: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
        """Prepare the images of a scene together, so that they get one size."""
        item = dict(self.image_processor([view["image"] for view in views], return_tensors="pt"))
        sizes = item["geometry_sizes"].tolist()
        item["patch_pixels"] = torch.cat(
            [
                _patch_pixels(index, view["positions"].in_view, view["positions"].view_size, size)
                for index, (view, size) in enumerate(zip(views, sizes, strict=True))
            ]
        )
        if self.depth:
            first = views[0]["extrinsics"]
            points = torch.cat([view["points"] for view in views])
            item["points"] = (points @ first[:3, :3].T + first[:3, 3]).float()
        if self.objects:
            frames = [view["frame"] for view in views]
            item |= read_objects(views[0]["scene"], frames)._asdict()
        return item


def _patch_pixels(view: int, centers: Tensor, view_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """View, row and column of the pixels around some positions (x, y) in a view that is centered in a larger image."""
    left, top = ((size[axis] - view_size[axis]) // 2 for axis in (1, 0))
    x, y = centers.long().unbind(-1)
    return torch.stack([torch.full_like(x, view), y + top, x + left], dim=-1)


def collate_alignment(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put items of `AlignmentViews` into a batch.

    Returns:
        `dict[str, Any]`: Tensors of all scenes one after the other, `num_views`, `num_tokens` and, if there are any,
        `num_objects` of each scene, the list of `scene_id`, and one list each of the `replaced_frames` and
        `dropped_scenes` of all items.
    """
    names = [name for name, value in items[0].items() if torch.is_tensor(value) and name != "num_views"]
    batch: dict[str, Any] = {name: torch.cat([item[name] for item in items]) for name in names}
    batch["num_views"] = torch.tensor([len(item["image_grid_thw"]) for item in items])
    batch["num_tokens"] = torch.tensor([len(item["patch_pixels"]) for item in items])
    if "names" in batch:
        batch["num_objects"] = torch.tensor([len(item["names"]) for item in items])
    batch["scene_id"] = [item["scene_id"] for item in items]
    for name in ("replaced_frames", "dropped_scenes"):
        batch[name] = [each for item in items for each in item[name]]
    return batch


def check_labelled(scenes: Dataset):
    """Refuse scenes without the cameras or the depth that known points come from."""
    for scene in scenes.select_columns(["scene_id", "poses", "intrinsics", "transforms", "depths"]):
        has_camera = scene["transforms"] or (scene["poses"] and scene["intrinsics"])
        needed = {f"cameras ({CAMERA_FILES})": has_camera, f"depth ({DEPTH_FILES})": scene["depths"]}
        if missing := [name for name, found in needed.items() if not found]:
            raise ValueError(
                f"`targets` are `depth`, but scene {scene['scene_id']} has no {' and no '.join(missing)}: exclude it, "
                "or give `--targets vggt --geometry FOLDER`."
            )
